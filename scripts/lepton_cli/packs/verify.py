"""Verifies evidence packs offline: each alone, and all packs of one run against each other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

from lepton_cli.packs.archive import ROSTER, Manifest, Pack, check_signer, read_pack
from lepton_cli.packs.coordinator_facts import AUDIT, CONFIG
from lepton_cli.packs.facts import FACTS, Computed, Origin, as_json, compute
from lepton_cli.packs.make import PDF, SBOM, VERSIONS
from lepton_cli.packs.pages import texts
from lepton_cli.packs.proposed import PROPOSAL, STUDY, study_in
from lepton_cli.packs.site_facts import LEDGER, POLICY
from lepton_common.chain import GENESIS, ChainRecord
from lepton_common.errors import EvidenceContradicts, RosterRolledBack
from lepton_common.identity.roster import Roster, check_newer, read_versions
from lepton_common.identity.study import Study
from lepton_common.strict import Digest

_BOTH = {ROSTER, AUDIT, VERSIONS, SBOM, FACTS, PDF, "page.html", "dpia.md", "processing.md"}
_HELD = {"site": _BOTH | {LEDGER, POLICY}, "coordinator": _BOTH | {CONFIG, "model-card.md"}}
_CLOSE = 1e-6  # relative; what one epsilon may differ by between two machines


@dataclass(frozen=True)
class Checked:
    """A pack that verified.

    Attributes:
        pack: what was read.
        computed: what its records come to.
        pages: whether the pages for people were made anew and are the same; not where another
            version of Lepton made them.
    """

    pack: Pack
    computed: Computed
    pages: bool

    @property
    def manifest(self) -> Manifest:
        """The pack's manifest."""
        return self.pack.manifest

    @property
    def facts(self) -> dict[str, Any]:
        """What the records come to."""
        return self.computed.facts


def verify_pack(path: Path, root: Digest) -> Checked:
    """Checks everything in a pack that it holds itself.

    Raises:
        AuditError: what does not verify, naming the member.
    """
    pack = read_pack(path)
    check_signer(pack, root)
    manifest, held = pack.manifest, set(pack.members)
    if missing := sorted(_HELD[manifest.kind] - held):
        raise EvidenceContradicts(f"{path}: a {manifest.kind}'s pack lacks {', '.join(missing)}.")
    if extra := sorted(held - _HELD[manifest.kind] - {PROPOSAL, STUDY}):
        raise EvidenceContradicts(f"{path}: a {manifest.kind}'s pack has no {', '.join(extra)}.")
    versions = read_versions(pack.members[ROSTER].decode(), root)
    origin = Origin(
        manifest.kind, manifest.signer, manifest.public_key, manifest.run, versions, root
    )
    computed = compute(path, origin, pack.members)
    facts = _same_facts(pack, computed.facts)
    study = _check_study(pack, versions, facts)
    _check_versions(pack)
    return Checked(pack, computed, _check_pages(pack, facts, study))


def verify_together(checked: Sequence[Checked]) -> int:
    """Holds the packs of one run against each other; returns how many witnessed heads were found.

    Raises:
        EvidenceContradicts: naming the two that disagree, and on what.
    """
    for one, other in combinations(checked, 2):
        _check_pair(one, other)
    coordinators = [c for c in checked if c.manifest.kind == "coordinator"]
    sites = [c for c in checked if c.manifest.kind == "site"]
    return sum(_check_witness(coordinator, site) for coordinator in coordinators for site in sites)


def _same_facts(pack: Pack, computed: dict[str, Any]) -> dict[str, Any]:
    """Returns the pack's own facts, which must be what its records come to."""
    where = pack.where(FACTS)
    try:
        said: dict[str, Any] = json.loads(pack.members[FACTS])
        shown = said["plan"]["epsilon"] if pack.manifest.kind == "site" else None
    except (ValueError, KeyError, TypeError) as error:
        raise EvidenceContradicts(f"{where} is not what facts of a run look like.") from error
    again: dict[str, Any] = json.loads(as_json(computed))
    if pack.manifest.kind == "site":
        true = again["plan"]["epsilon"]
        if not _close(shown, true):
            raise EvidenceContradicts(
                f"{where} shows epsilon {shown}, and the charges in {LEDGER} come to {true}."
            )
        again["plan"]["epsilon"] = shown
    wrong = sorted(name for name in {*said, *again} if said.get(name) != again.get(name))
    if wrong or pack.members[FACTS] != as_json(again):
        named = ", ".join(wrong) or "its form"
        raise EvidenceContradicts(f"{where} is not what the records come to: {named}.")
    if pack.manifest.time != again["last"]:
        raise EvidenceContradicts(f"{pack.path}: the manifest's time is not the newest record's.")
    return again


def _close(shown: object, true: object) -> bool:
    if isinstance(shown, float) and isinstance(true, float):
        return abs(shown - true) <= _CLOSE * abs(true)
    return shown == true


def _check_study(pack: Pack, versions: Sequence[Roster], facts: dict[str, Any]) -> Study | None:
    if STUDY not in pack.members:
        return None
    sites = facts.get("participants", [pack.manifest.signer])
    return study_in(pack.path, pack.members[STUDY], versions, facts, sites)


def _check_versions(pack: Pack) -> None:
    try:
        versions = json.loads(pack.members[VERSIONS])["lepton-fl"]
        bill = json.loads(pack.members[SBOM])["metadata"]["component"]["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise EvidenceContradicts(f"{pack.where(SBOM)} or {VERSIONS} names no Lepton.") from error
    if {versions, bill} != {pack.manifest.made_by}:
        raise EvidenceContradicts(
            f"{pack.where(VERSIONS)}, {SBOM} and the manifest name different versions of Lepton."
        )


def _check_pages(pack: Pack, facts: dict[str, Any], study: Study | None) -> bool:
    """Makes the pages for people anew; another version of Lepton may word them otherwise."""
    if pack.manifest.made_by != metadata.version("lepton-fl"):
        return False
    for name, data in texts(pack.manifest, facts, study).items():
        if pack.members[name] != data:
            raise EvidenceContradicts(f"{pack.where(name)} does not say what {FACTS} says.")
    return True


def _check_pair(one: Checked, other: Checked) -> None:
    a, b = one.manifest, other.manifest
    pair = f"{one.pack.path} and {other.pack.path}"
    if a.run != b.run:
        raise EvidenceContradicts(f"{pair} are of different runs: {a.run}, {b.run}.")
    if (a.kind, a.signer) == (b.kind, b.signer):
        raise EvidenceContradicts(f"{pair} are both of {a.signer}; give one.")
    older, newer = sorted((one, other), key=lambda c: len(c.pack.members[ROSTER]))
    try:
        check_newer(older.pack.members[ROSTER].decode(), newer.pack.members[ROSTER].decode())
    except RosterRolledBack:
        raise EvidenceContradicts(f"{pair} hold rosters that tell different stories.") from None
    if one.pack.members.get(PROPOSAL) != other.pack.members.get(PROPOSAL):
        raise EvidenceContradicts(f"{pair} are of different proposals.")
    ours, theirs = _models(one.facts), _models(other.facts)
    for round_ in sorted(set(ours) & set(theirs)):
        if not set(ours[round_]) & set(theirs[round_]):
            raise EvidenceContradicts(
                f"{pair}: round {round_} began from different models, "
                f"{ours[round_][0][:12]}… and {theirs[round_][0][:12]}…."
            )


def _models(facts: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the digests of the models that rounds began from."""
    if "models" in facts:
        return dict(facts["models"])
    rounds = [row for row in facts["rounds"] if row["model_before"]]
    return {str(row["round"]): [row["model_before"]] for row in rounds}


def _check_witness(coordinator: Checked, site: Checked) -> int:
    """Checks that what the coordinator saw of a site is in the site's pack; returns how much."""
    log, records, name = coordinator.computed.coordinator, site.computed.site, site.manifest.signer
    assert log is not None, "a coordinator's pack holds a log"
    assert records is not None, "a site's pack holds chains"
    pair = f"{coordinator.pack.path} and {site.pack.path}"
    shown = {record.hash for record in records.audit.records}
    private = coordinator.facts["privacy"]["mode"] != "none"
    # A private answer's newest entry is the release of its own charge; else it may be another's.
    entries = {r.hash for r in records.ledger.records} if private else {*records.ledger.hashes}
    found = 0
    for record in log:
        head = record.body.get("heads", {}).get(name)
        if head is not None and head not in shown:
            raise EvidenceContradicts(
                f"{pair}: the record {head[:12]}…, which the coordinator witnessed, is not in the "
                f"site's {AUDIT} as one of this run."
            )
        entry = record.body.get("ledgers", {}).get(name)
        if entry not in (None, GENESIS) and entry not in entries:
            raise EvidenceContradicts(
                f"{pair}: the entry {entry[:12]}…, which the coordinator witnessed, is not in the "
                f"site's {LEDGER}."
            )
        # Who dropped out before its update came has shown a log, and no ledger.
        if record.kind == "collected" and entry is not None and record.body["secagg"]:
            _check_masked(pair, record, site.facts)
        found += head is not None
    return found


def _check_masked(pair: str, record: ChainRecord, facts: dict[str, Any]) -> None:
    """Checks that a site masked its update for one of the sums that it was collected in."""
    masked = {t["specification"] for t in facts["transcripts"] if t["stage"] == "MASKED"}
    if not masked & set(record.body["secagg"]):
        raise EvidenceContradicts(
            f"{pair}: the coordinator has the site in a sum of round {record.body['round']} under "
            "a transcript that is not in the site's log."
        )
