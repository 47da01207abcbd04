"""A round under secure aggregation: one sum of the cohort, or one for each group drawn from it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.arrays import Vector
from lepton_common.errors import MalformedMessage, SecAggError, TooFewSites
from lepton_common.messages import SiteFacts, TrainRequest
from lepton_common.secagg.grouping import COMMIT_BYTES, SECRET_BYTES, Draw, Grouping
from lepton_common.secagg.messages import Signed, join_signed
from lepton_common.secagg.spec import RosterEntry
from lepton_common.settings import Settings, least_updates
from lepton_common.stages import SecAggStage, StageRequest, read_stage_reply, stage_content
from lepton_common.summing import run_id_of
from lepton_server.rounds.conversation import Ask, Conversation, hold, hold_together
from lepton_server.rounds.gathered import Gathered, Means
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.secure_round import SecureRound

_DRAWS = 10  # tried where sites drop out in the middle of one


def gather_secure(
    grid: Grid,
    settings: Settings,
    cohort: dict[int, SiteFacts],
    request: TrainRequest,
    model: Vector,
    journal: SumJournal,
) -> Gathered:
    """Returns the mean of the cohort's updates, or the mean of each group's.

    Raises:
        TooFewSites: too few sites, or groups, came to a sum; the run may be resumed.
        RoundLost: a site may have helped to unmask, and too few sums can be finished.
    """
    if settings.secagg.groups == 1:
        everyone = roster_of(cohort.values())
        round_ = SecureRound(settings, cohort, request, model, journal, everyone)
        return hold(grid, round_.gather())
    draw = Draw(
        federation=settings.federation.name,
        run_id=run_id_of(request.run),
        round=request.round,
        roster=(),
        groups=settings.secagg.groups,
        model_hash=bytes.fromhex(request.model_digest),
    )
    grouping, failed = agree_on_groups(
        grid, draw, cohort, journal, settings.colluders + 2, settings.secagg.stage_timeout_s
    )
    members = {name for name, _ in grouping.draw.roster}
    request = _for_members(request, members)
    parts = split_cohort(cohort, grouping)
    rounds = [
        SecureRound(settings, sites, request, model, own, group, grouping.to_bytes())
        for sites, own, group in zip(
            parts, journal.groups(len(parts)), grouping.groups, strict=True
        )
    ]
    results = hold_together(grid, [round_.gather() for round_ in rounds])
    came = [result for result in results if isinstance(result, Gathered)]
    quorum = math.ceil(settings.federation.quorum * len(parts))
    for sites, result in zip(parts, results, strict=True):
        if isinstance(result, SecAggError):
            if len(came) < max(quorum, least_updates(settings.strategy)):
                raise result
            failed |= {facts.name: type(result).__name__ for facts in sites.values()}
    return _joined(came, failed)


def roster_of(sites: Iterable[SiteFacts]) -> tuple[RosterEntry, ...]:
    """Returns the roster of some sites, in order of their names."""
    return tuple(sorted((site.name, bytes.fromhex(site.public_key)) for site in sites))


def split_cohort(cohort: Mapping[int, SiteFacts], grouping: Grouping) -> list[dict[int, SiteFacts]]:
    """Returns the sites of each group that are there, by node."""
    names = [{name for name, _ in group} for group in grouping.groups]
    return [{n: facts for n, facts in cohort.items() if facts.name in group} for group in names]


def agree_on_groups(
    grid: Grid,
    draw: Draw,
    cohort: Mapping[int, SiteFacts],
    journal: SumJournal,
    least: int,
    timeout_s: float,
) -> tuple[Grouping, dict[str, str]]:
    """Returns the groups of a round, drawn now or before a crash, and who could not take part.

    Args:
        grid: the way to the sites.
        draw: what groups are drawn for; its roster is filled in here.
        cohort: the sites, by node.
        journal: of the round's sums.
        least: fewest sites in a group.
        timeout_s: longest wait for each stage.

    Raises:
        TooFewSites: too few for groups of ``least``.
    """
    entry_of = {entry[0]: entry for entry in roster_of(cohort.values())}
    before = journal.grouping(draw.model_hash)
    whole = before is not None and set(before.draw.roster) <= set(entry_of.values())
    # Once updates may have left, the groups stay, and who is not there has dropped out.
    if before is not None and (whole or journal.masking_began(draw)):
        left_out = set(entry_of) - {name for name, _ in before.draw.roster}
        return before, dict.fromkeys(sorted(left_out), "NotInGroup")
    node_of = {facts.name: node for node, facts in cohort.items()}
    failed: dict[str, str] = {}
    for _ in range(_DRAWS):
        names = sorted(set(entry_of) - set(failed))
        if len(names) // draw.groups < least:
            break
        drawn = replace(draw, roster=tuple(entry_of[name] for name in names))
        nodes = {index: node_of[name] for index, name in enumerate(names, start=1)}
        exchange = _Drawing(drawn, nodes, timeout_s)
        grouping = hold(grid, exchange.stages())
        if grouping is not None:
            journal.keep_grouping(grouping)
            return grouping, failed
        failed |= {names[index - 1]: name for index, name in exchange.failed.items()}
    named = ", ".join(f"{site} ({name})" for site, name in list(failed.items())[:5])
    raise TooFewSites(
        f"No {draw.groups} groups of {least} sites and more could be drawn from {len(cohort)} "
        f"sites. Dropped out: {named or 'none'}. Lower secagg.groups, or resume with more sites."
    )


class _Drawing:
    """One draw of groups: all sites commit, then all reveal.

    Attributes:
        failed: error names of the sites that dropped out, by position.
    """

    def __init__(self, draw: Draw, nodes: Mapping[int, int], timeout_s: float) -> None:
        self._draw, self._nodes, self._timeout_s = draw, nodes, timeout_s
        self._commits: dict[int, Signed] = {}
        self._secrets: dict[int, bytes] = {}
        self.failed: dict[int, str] = {}

    def stages(self) -> Conversation[Grouping | None]:
        """Comes to the groups, or to None where a site dropped out."""
        yield self._ask(SecAggStage.COMMIT, b"")
        if self.failed:
            return None
        yield self._ask(SecAggStage.REVEAL, join_signed(self._commits.values()))
        return None if self.failed else Grouping(self._draw, self._commits, self._secrets)

    def _ask(self, stage: SecAggStage, body: bytes) -> Ask:
        content = stage_content(StageRequest(stage, self._draw.to_bytes(), body))
        index_of = {node: index for index, node in self._nodes.items()}
        take = self._take_commit if stage is SecAggStage.COMMIT else self._take_secret
        return Ask(
            step=stage.value,
            contents=dict.fromkeys(index_of, content),
            take=lambda node, answer: take(index_of[node], answer),
            fail=lambda node, name: self.failed.update({index_of[node]: name}),
            timeout_s=self._timeout_s,
        )

    def _take_commit(self, index: int, answer: RecordDict) -> None:
        message = Signed.from_bytes(read_stage_reply(answer), COMMIT_BYTES)
        message.check("commit-draw", self._draw)
        if message.index != index:
            raise MalformedMessage(f"Site {index} commits for site {message.index}.")
        self._commits[index] = message

    def _take_secret(self, index: int, answer: RecordDict) -> None:
        secret = read_stage_reply(answer)
        promised = self._commits[index].body
        if len(secret) != SECRET_BYTES or self._draw.commitment(index, secret) != promised:
            raise MalformedMessage(f"Site {index} revealed another secret than it promised.")
        self._secrets[index] = secret


def _for_members(request: TrainRequest, members: set[str]) -> TrainRequest:
    """Returns the request to those who took part in the draw."""
    form = request.masked
    assert form is not None, "a masked round describes its sum"
    weights = dict.fromkeys(sorted(members), 1)  # robust strategies treat all sites alike
    return replace(request, cohort=len(weights), masked=replace(form, weights=weights))


def _joined(parts: list[Gathered], failed: dict[str, str]) -> Gathered:
    """Returns what all groups came to."""
    counts = [part.mean.count for part in parts]
    joined = Gathered(Means([mean for part in parts for mean in part.mean.each()], sum(counts)))
    joined.failed |= failed
    for part in parts:
        joined.epsilon |= part.epsilon
        joined.heads |= part.heads
        joined.ledgers |= part.ledgers
        joined.failed |= part.failed
        joined.specs += part.specs
    joined.metrics = {
        name: float(np.average([part.metrics[name] for part in parts], weights=counts))
        for name in parts[0].metrics
    }
    joined.sort()
    return joined
