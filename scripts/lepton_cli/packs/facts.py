"""The computed part of a pack: one function, for whoever makes it and whoever verifies it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_cli.packs.archive import PackKind
from lepton_cli.packs.coordinator_facts import (
    CONFIG,
    coordinator_facts,
    read_coordinator_records,
)
from lepton_cli.packs.proposed import check_configuration, check_noted, proposal_in
from lepton_cli.packs.site_facts import POLICY, SiteRecords, read_site_records, site_facts
from lepton_client.site import SiteFile
from lepton_common.chain import ChainRecord
from lepton_common.errors import EvidenceContradicts
from lepton_common.identity.roster import Roster
from lepton_common.policy import SitePolicy
from lepton_common.proposal import Proposal
from lepton_common.strict import Digest, Name, Size, parse_json, record

FACTS = "facts.json"


@record
class PackedData:
    """What a pack tells of a site's data: as `lepton_client.site.SiteData`, without its places."""

    id: Name
    dataset: Name
    prepare: str
    unit: Name


@record
class PackedSite:
    """What a pack tells of a site file.

    Attributes:
        name: the site's name.
        public_size: its public size class.
        data: see `PackedData`.
        policy: see `SitePolicy`.
    """

    name: Name
    public_size: Size
    data: PackedData
    policy: SitePolicy


def packed(file: SiteFile) -> PackedSite:
    """Returns what a pack tells of a site file."""
    data = PackedData(
        id=file.data.id,
        dataset=file.data.dataset,
        prepare=file.data.prepare,
        unit=file.data.unit,
    )
    return PackedSite(name=file.name, public_size=file.public_size, data=data, policy=file.policy)


@dataclass(frozen=True)
class Origin:
    """Of whom and of what run a pack is.

    Attributes:
        kind: whose pack it is.
        signer: by the name in the roster.
        public_key: the signer's.
        run: name of the run.
        versions: of the federation's roster, the first one first.
        root: digest of the roster's first version.
    """

    kind: PackKind
    signer: Name
    public_key: Digest
    run: Name
    versions: tuple[Roster, ...]
    root: Digest

    @property
    def roster(self) -> Roster:
        """The newest version."""
        return self.versions[-1]

    @property
    def simulated(self) -> bool:
        """Whether nobody but one machine is behind the roster."""
        coordinator = self.roster.coordinator
        return coordinator is None or not coordinator.authority


@dataclass(frozen=True)
class Computed:
    """What a pack's records come to.

    Attributes:
        facts: as `FACTS` holds them.
        site: a site's chains; None in the coordinator's pack.
        coordinator: the coordinator's log; None in a site's pack.
    """

    facts: dict[str, Any]
    site: SiteRecords | None = None
    coordinator: list[ChainRecord] | None = None


def compute(where: Path, origin: Origin, members: Mapping[str, bytes]) -> Computed:
    """Verifies the records in a pack and returns what they come to.

    Raises:
        AuditError: a record does not verify.
        EvidenceContradicts: records do not fit each other, the run or the signer.
    """
    try:
        if origin.kind == "site":
            return _compute_site(where, origin, members)
        log = read_coordinator_records(where, origin.run, origin.roster, members)
        check_noted(where, log, members, simulated=origin.simulated)
        proposal = proposal_in(where, members, origin.versions)
        check_configuration(where, proposal, members[CONFIG])
        facts = coordinator_facts(log, members[CONFIG])
        return Computed(_with_origin(facts, origin, proposal), coordinator=log)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceContradicts(
            f"{where}: its records have not the form that this version of Lepton reads "
            f"({type(error).__name__})."
        ) from error


def _compute_site(where: Path, origin: Origin, members: Mapping[str, bytes]) -> Computed:
    policy = parse_json(PackedSite, members[POLICY].decode())
    if policy.name != origin.signer:
        raise EvidenceContradicts(f"{where / POLICY} is of the site {policy.name}.")
    records = read_site_records(where, origin.signer, origin.run, origin.public_key, members)
    check_noted(where, records.of_run, members, simulated=origin.simulated)
    facts = site_facts(records, origin.run, json.loads(members[POLICY]))
    proposal = proposal_in(where, members, origin.versions)
    return Computed(_with_origin(facts, origin, proposal), site=records)


def _with_origin(
    facts: dict[str, Any], origin: Origin, proposal: Proposal | None
) -> dict[str, Any]:
    first, last = (
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) for when in facts.pop("times")
    )
    facts |= {"first": first, "last": last, "root": origin.root}
    facts |= {"simulated": origin.simulated}
    if proposal is not None:
        facts["proposal"] = {"by": proposal.by, "study": proposal.study}
    return dict(json.loads(as_json(facts)))


def as_json(facts: Mapping[str, Any]) -> bytes:
    """Returns plain values as the JSON text of a member."""
    return json.dumps(facts, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"
