"""The site's veto: a request is held against the site's own policy before any data is read."""

from collections.abc import Iterable

import numpy as np

from lepton_client.site import SiteFile
from lepton_common.arrays import Vector
from lepton_common.datasets.preparation import PER_RECORD
from lepton_common.errors import ConsentRefused, PolicyViolation, RecordsMixed, RosterMismatch
from lepton_common.identity.roster import Roster
from lepton_common.messages import PrivacyRequest, Recipe, TrainRequest
from lepton_common.models.catalog import model_fault
from lepton_common.policy import SitePolicy
from lepton_common.privacy.plan import LARGEST_WEIGHT, PrivacyPlan
from lepton_common.secagg.spec import WEIGHT_BITS, RosterEntry, RoundSpec, default_colluders
from lepton_common.statistics import EvaluationQuery, StatisticsQuery
from lepton_common.summing import bind, bind_layout, bind_privacy, run_id_of, shared_noise
from lepton_common.tasks.catalog import dataset_of, task_names


def check_model(received: Vector) -> None:
    """Refuses a model in which rounding errors would let records influence one another.

    Clipping bounds each record's gradient if it depends on that record alone. Floating-point
    kernels keep that up to rounding, which a server could magnify by absurd weights.

    Raises:
        ConsentRefused: a weight is not finite or beyond 100.
    """
    if not np.abs(received).max(initial=0.0) <= LARGEST_WEIGHT:
        raise ConsentRefused(f"A weight is not finite or beyond {LARGEST_WEIGHT:g}.")


def check_device(device: str, policy: SitePolicy) -> None:
    """Refuses private work on a kind of device that the policy does not name.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``: what a request's device comes to at this site.
        policy: the site's.

    Raises:
        ConsentRefused: it is not among them.
    """
    if device not in policy.devices:
        raise ConsentRefused(f"This site does no private work on {device}.")


def check(
    request: TrainRequest, site: SiteFile, spec: RoundSpec | None = None
) -> PrivacyPlan | None:
    """Returns the privacy plan under which the site will train, or None for no DP.

    The plan joins what the run asks for with what only the site decides: the privacy unit from
    its own schema, and the denominator from its own public size class.

    Args:
        request: what is asked.
        site: the operator's file.
        spec: the round of secure aggregation under which the update will leave, if any.

    Raises:
        ConsentRefused: naming the first bound that the request breaks.
        RecordsMixed: see `check_request`.
    """
    check_request(request, site, masked=spec is not None)
    if request.privacy is None:
        return None
    plan = _plan(request.privacy, site, spec)
    check_own_noise(plan, site.policy)
    rules = site.policy.statistics
    if request.statistics is not None and rules is not None:
        spent = plan.epsilon(plan.max_steps)
        if spent > rules.max_epsilon:
            raise ConsentRefused(
                f"Statistics at epsilon {spent:.4g} exceed this site's {rules.max_epsilon:g}."
            )
    return plan


def check_request(request: TrainRequest, site: SiteFile, *, masked: bool) -> None:
    """Holds all of a request against the site's file but the round that its noise is shared in.

    Raises:
        ConsentRefused: naming the first bound that the request breaks.
        RecordsMixed: records would be mixed before each one's part is bounded.
    """
    policy = site.policy
    served = task_names() if policy.tasks is None else policy.tasks
    if request.task not in served or request.task not in task_names():
        raise ConsentRefused(f"This site does not serve the task '{request.task}'.")
    if dataset_of(request.task) != site.data.dataset:
        raise ConsentRefused(f"This site holds no data for the task '{request.task}'.")
    if request.prepare != site.data.prepare:
        raise ConsentRefused(f"This site's data is prepared by {site.data.prepare}.")
    if request.statistics is not None:
        _check_statistics(request, site)
    if not isinstance(request.statistics, StatisticsQuery):
        _check_kind(request.model, policy)
    if request.grows_trees:
        _check_trees(request)
    if request.cohort < policy.min_cohort:
        raise ConsentRefused(
            f"A cohort of {request.cohort} is below this site's floor of {policy.min_cohort}."
        )
    if masked != (request.masked is not None):
        raise ConsentRefused("A masked sum, and only that, is described in the request.")
    if not masked and not policy.allow_without_secagg:
        raise ConsentRefused("This site's updates leave under secure aggregation only.")
    asked = request.privacy
    if asked and request.masked and request.masked.weight_cap is not None:
        raise ConsentRefused("With DP, no weight may depend on the number of records.")
    if asked is None:
        if not policy.allow_without_dp:
            raise ConsentRefused("This site trains with differential privacy only.")
        return
    if site.data.prepare not in PER_RECORD:
        raise ConsentRefused("This site's data is prepared by statistics that no plan charges for.")
    if request.recipe.mixup and asked.mode != "site":
        raise RecordsMixed(
            "A mixture of two people's records would be clipped as one, so that nobody's part is "
            "bounded: only privacy of whole sites allows train.mixup."
        )
    _check_privacy(asked, request.recipe, policy)


def _check_kind(model: str, policy: SitePolicy) -> None:
    """Holds the kind of model that is trained, or evaluated, against the policy.

    Raises:
        ConsentRefused: it is not installed, or not among those that the site trains.
    """
    if model_fault(model) is not None:
        raise ConsentRefused(f"No model '{model}' is installed at this site.")
    if not policy.trains(model):
        raise ConsentRefused(f"This site does not train the model '{model}'.")


def _check_statistics(request: TrainRequest, site: SiteFile) -> None:
    """Holds a query for statistics against the policy; its epsilon is known with the plan.

    An evaluation may leave without differential privacy where training may.

    Raises:
        ConsentRefused: naming the first bound that is broken.
    """
    rules, asked, query = site.policy.statistics, request.privacy, request.statistics
    evaluates = isinstance(query, EvaluationQuery)
    assert query is not None, "the caller has looked"
    if rules is None:
        raise ConsentRefused("This site answers no statistics (policy.statistics).")
    if evaluates and site.data.held_back == 0:
        raise ConsentRefused("This site holds nobody's records back (data.held_back).")
    if asked is None and not (evaluates and site.policy.allow_without_dp):
        raise ConsentRefused("Statistics leave with differential privacy only.")
    if asked and (asked.mode == "site" or (asked.sample_rate, asked.steps_per_round) != (1.0, 1)):
        raise ConsentRefused("Statistics are one sum over all people of a site.")
    if request.cohort < rules.min_cohort:
        raise ConsentRefused(
            f"A cohort of {request.cohort} is below this site's floor of {rules.min_cohort} for "
            "statistics."
        )
    form = request.masked
    if form and (form.weight_cap, form.coordinates, form.rotate) != (None, 1.0, False):
        raise ConsentRefused("Statistics are summed as they are.")
    if query.bins > rules.max_bins:
        raise ConsentRefused(f"{query.bins} bins exceed this site's {rules.max_bins}.")


def _check_trees(request: TrainRequest) -> None:
    """Holds a request for a level of trees against what such a sum is.

    Raises:
        ConsentRefused: naming the first bound that is broken.
    """
    asked, form = request.privacy, request.masked
    if asked is not None and (asked.mode == "site" or asked.steps_per_round != 1):
        raise ConsentRefused("A level of trees is one sum over people.")
    if form is not None and (
        (form.coordinates, form.rotate, form.groups, form.weight_cap) != (1.0, False, 1, None)
        or set(form.weights.values()) != {1}
    ):
        raise ConsentRefused("A level of trees is summed whole, and people count alike.")


def _check_privacy(asked: PrivacyRequest, recipe: Recipe, policy: SitePolicy) -> None:
    """Holds what is asked of a privacy plan, and the batches it takes, against the policy.

    Raises:
        ConsentRefused: naming the first bound that is broken.
    """
    for size in (recipe.batch_size, recipe.augmentations):
        if size > policy.max_batch_size:
            raise ConsentRefused(f"A batch of {size} exceeds this site's {policy.max_batch_size}.")
    if recipe.augmentations > recipe.batch_size:
        raise ConsentRefused("A batch must hold all views of a record.")
    if asked.delta > policy.max_delta:
        raise ConsentRefused(f"delta {asked.delta} exceeds this site's {policy.max_delta}.")
    if asked.noise_multiplier < policy.min_noise_multiplier:
        raise ConsentRefused(
            f"A noise multiplier of {asked.noise_multiplier:.4g} is below this site's floor of "
            f"{policy.min_noise_multiplier}."
        )
    if asked.clipping_norm < policy.min_clipping_norm:
        raise ConsentRefused(
            f"A clipping norm of {asked.clipping_norm:g} is below this site's floor of "
            f"{policy.min_clipping_norm:g}."
        )
    if asked.clipping_norm > policy.max_clipping_norm:
        raise ConsentRefused(
            f"A clipping norm of {asked.clipping_norm} exceeds this site's "
            f"{policy.max_clipping_norm}."
        )


def check_own_noise(plan: PrivacyPlan, policy: SitePolicy) -> None:
    """Holds the noise that the site would add itself against the policy.

    Raises:
        ConsentRefused: it is below the floor.
    """
    own = plan.own_noise / plan.clipping_norm
    if own < policy.min_own_noise_multiplier:
        raise ConsentRefused(
            f"This site's own share of the noise, {own:.4g} times the clipping norm, is below its "
            f"floor of {policy.min_own_noise_multiplier}."
        )


def _plan(asked: PrivacyRequest, site: SiteFile, spec: RoundSpec | None) -> PrivacyPlan:
    if asked.mode == "record":
        return asked.plan(site.data.unit, site.public_size)
    if spec is None:
        raise ConsentRefused("Noise is shared under secure aggregation only.")
    return asked.plan(site.data.unit, site.public_size, shared_noise(spec))


def check_round(spec: RoundSpec, request: TrainRequest, site: SiteFile, roster: Roster) -> None:
    """Holds a round of secure aggregation against the pinned roster and the site's policy.

    Raises:
        RosterMismatch: a site of the round is not in the pinned roster under that key.
        PolicyViolation: it tolerates fewer colluders than the policy asks for, or is not about
            the request that came with it.
    """
    check_members(spec.federation, spec.roster, roster)
    check_colluders(spec, site.policy, roster)
    form = request.masked
    if form is None:
        raise PolicyViolation("A round at this site must be described in its request.")
    names, weights = {name for name, _ in spec.roster}, form.weights
    floor = site.policy.min_cohort
    if request.statistics is not None and site.policy.statistics is not None:
        floor = max(floor, site.policy.statistics.min_cohort)
    weight_bits = WEIGHT_BITS if form.weight_cap else 0
    rules = {
        "sum as many sites as this site's floor asks for": spec.min_survivors >= floor,
        "leave this site a small enough share of the weight": (
            _share(site.name, names, weights, spec.colluders) <= site.policy.max_weight_share
        ),
        "be as large as the cohort it names": len(weights) == request.cohort,
        "be of its own run": spec.run_id == run_id_of(request.run),
        "be bound to its privacy plan": spec.dp == bind_privacy(request.privacy),
        "weigh as its request says": spec.weight_bits == weight_bits,
        "be bound to its request": spec.app_hash == bind(request),
        "be bound to its layout": spec.layout_hash == bind_layout(request),
        "be bound to its model": spec.model_hash.hex() == request.model_digest,
        "weigh its own sites": names <= set(weights)
        and (form.groups > 1 or len(names) == len(weights)),
        "weigh all sites alike, or this one by its public size": (
            len(set(weights.values())) == 1 or weights.get(site.name) == site.public_size
        ),
    }
    broken = [what for what, holds in rules.items() if not holds]
    if broken:
        raise PolicyViolation(f"A round at this site must {broken[0]}.")


def _share(site: str, names: set[str], weights: dict[str, int], colluders: int) -> float:
    """Returns the site's share of the weight that is left once the heaviest others are known.

    Where it is near 1, the sum is this site's own update, however many sites are in it.
    """
    others = sorted(weights.get(name, 0) for name in names if name != site)
    own = weights.get(site, 0)
    left = own + sum(others[: len(others) - colluders])
    return own / left if left else 1.0


def check_colluders(spec: RoundSpec, policy: SitePolicy, roster: Roster) -> None:
    """Checks that a round tolerates as many colluders as the policy asks for.

    The bound is on the whole roster, since the server chose the cohort.

    Raises:
        PolicyViolation: it tolerates fewer.
    """
    least = policy.colluders
    if least is None:
        least = default_colluders(len(roster.members))
    if spec.colluders < least:
        raise PolicyViolation(f"A round at this site must tolerate {least} colluding sites.")


def check_members(federation: str, members: Iterable[RosterEntry], roster: Roster) -> None:
    """Checks that a round's sites are the federation's, under the keys that partners signed.

    Raises:
        RosterMismatch: naming nothing that the server does not know.
    """
    known = {member.name: bytes.fromhex(member.public_key) for member in roster.members}
    if federation != roster.federation:
        raise RosterMismatch("The round is of another federation than this site's.")
    for name, key in members:
        if known.get(name) != key:
            raise RosterMismatch(f"The site {name} is not in the roster under that key.")
