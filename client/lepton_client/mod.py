"""The Flower mod that puts any Message-API app under SA1: ``ClientApp(mods=[secure_aggregation])``.

The node's configuration names a site folder (``site``), whose key, pinned roster and policy
apply. Only masked training leaves: a plain training request, an evaluation or a query, whose
replies the server could read, is refused.
"""

from collections.abc import Callable

from flwr.app import Context, Message, MetricRecord

from lepton_client import consent, secure
from lepton_client.answering import answer_at_site
from lepton_client.door import Outbound
from lepton_client.drawing import check_group, draw_groups
from lepton_client.participant import Participant
from lepton_client.site import Site
from lepton_client.work import introduce
from lepton_common.content import records_of
from lepton_common.errors import ConsentRefused, MalformedMessage, PolicyViolation
from lepton_common.messages import TRAIN
from lepton_common.privacy.provenance import PROTOCOL
from lepton_common.secagg.spec import RoundSpec
from lepton_common.stages import DRAWING, SecAggStage, StageRequest, read_stage
from lepton_common.terms import (
    RECORD,
    Terms,
    change_of,
    hash_content,
    hash_layout,
    hash_model,
    hash_run_config,
    only_arrays,
    read_terms,
)

ClientAppCallable = Callable[[Message, Context], Message]


def secure_aggregation(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers a stage of SA1; the app itself is called only to train."""
    return answer_at_site(
        message, context, lambda asked, site: _answer(asked, context, call_next, site)
    )


def _answer(
    message: Message, context: Context, call_next: ClientAppCallable, site: Site
) -> Message:
    if message.metadata.message_type != TRAIN:
        raise ConsentRefused("Replies to evaluations and queries would be readable.")
    if set(message.content) == {"request"}:
        return introduce(message, site)
    asked = read_stage(message.content, alone=False)
    about = {"run": f"flower-{context.run_id}"}
    if asked.stage in DRAWING:
        return draw_groups(message, asked, site)
    if asked.stage is SecAggStage.ADVERTISE:
        spec, terms = RoundSpec.from_bytes(asked.spec), read_terms(message.content)
        _check(spec, terms, context, site)
        check_group(spec, asked.body, terms.groups, terms.round, site)
        part = secure.begin(spec, site)
        items = [Outbound("secagg", part.advertise(), PROTOCOL)]
        return secure.release(message, part, items, site, about)
    with secure.resumed(asked, site) as part:
        if asked.stage is SecAggStage.MASK:
            items = _train(message, context, call_next, part, asked, site)
        else:
            items = [Outbound("secagg", secure.answer(part, asked), PROTOCOL)]
        return secure.release(message, part, items, site, about)


def _check(spec: RoundSpec, terms: Terms, context: Context, site: Site) -> None:
    """Holds a round against the site's policy, and against the run that it is said to be of.

    Raises:
        ConsentRefused: the site trains with DP only, which a plain app does not prove.
        PolicyViolation: another bound is broken.
    """
    consent.check_members(spec.federation, spec.roster, site.roster)
    consent.check_colluders(spec, site.file.policy, site.roster)
    if not site.file.policy.allow_without_dp:
        raise ConsentRefused("This site trains with differential privacy only.")
    if spec.min_survivors < site.file.policy.min_cohort:
        raise ConsentRefused("The round may sum fewer sites than this site's floor.")
    if terms.run_config != hash_run_config(context.run_config):
        raise PolicyViolation("The run's configuration is not the one that the round is bound to.")
    if spec.app_hash != terms.hash or spec.dp != b"none":
        raise PolicyViolation("A round at this site must be bound to its terms, without DP.")


def _train(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    part: Participant,
    asked: StageRequest,
    site: Site,
) -> list[Outbound]:
    terms = read_terms(message.content)
    inner = message.content.copy()
    del inner["secagg"], inner[RECORD]
    before = only_arrays(inner)
    bound = (terms.hash, hash_layout(before, terms), hash_model(before))
    if bound != (part.spec.app_hash, part.spec.layout_hash, part.spec.model_hash):
        raise PolicyViolation("The arrays or terms are not those that the round is bound to.")
    if terms.content != hash_content(inner) or message.metadata.group_id:
        raise PolicyViolation("What the app is sent is not what the round is bound to.")
    site.spent.check_masking(part.spec)
    part.open(asked.body)
    outer = message.content
    message.content = inner
    try:
        reply = call_next(message, context)
    finally:
        message.content = outer
    found = [] if reply.has_error() else list(records_of(reply.content, MetricRecord).values())
    if len(found) != 1:
        raise MalformedMessage("The app should reply with arrays and one MetricRecord.")
    (metrics,) = found
    counted = metrics.get(terms.weighted_by)
    if not isinstance(counted, int | float) or not counted > 0:
        raise MalformedMessage(f"The app should return '{terms.weighted_by}', above zero.")
    values = change_of(before, only_arrays(reply.content), metrics, terms)
    return secure.mask(part, values, min(counted / terms.weight_cap, 1.0))
