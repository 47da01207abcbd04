"""Makes the pack of a site from its folder, and of the coordinator from a run's folder."""

import json
import platform
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

from lepton_cli.packs.archive import ROSTER, Manifest, key_of, list_members, write_pack
from lepton_cli.packs.coordinator_facts import AUDIT, CONFIG
from lepton_cli.packs.extract import Shown, charged_to, of_run, show
from lepton_cli.packs.facts import FACTS, Origin, as_json, compute, packed
from lepton_cli.packs.pages import pdf, texts
from lepton_cli.packs.proposed import PROPOSAL, STUDY, kept_study
from lepton_cli.packs.site_facts import LEDGER, POLICY
from lepton_cli.sbom import installed_sbom
from lepton_client.proposals import FOLDER as PROPOSALS
from lepton_client.proposals import STUDIES
from lepton_client.site import (
    AUDIT_FILE,
    KEY_FILE,
    LEDGER_FILE,
    ROOT_FILE,
    ROSTER_FILE,
    SITE_FILE,
    read_site_file,
)
from lepton_common.arrays import digest_of
from lepton_common.audit import read_records
from lepton_common.errors import (
    EvidenceContradicts,
    EvidenceForeign,
    EvidenceUnreadable,
    RunNotFound,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import read_versions
from lepton_common.identity.study import read_study
from lepton_common.privacy.ledger_file import read_ledger, read_lines
from lepton_common.settings import Settings
from lepton_common.strict import Digest, to_json
from lepton_server.run_folder import RunFolder

VERSIONS, SBOM, PDF = "versions.json", "sbom.cdx.json", "page.pdf"


@dataclass(frozen=True)
class Made:
    """A pack, before it is written.

    Attributes:
        manifest: what it holds.
        data: the archive.
        chains: the site's chains, by member; empty for the coordinator, whose log is in full.
        root: of the federation's roster.
        simulated: whether nobody but this machine is behind that root.
        lacks: the study that the run was proposed in, where the pack is without it.
    """

    manifest: Manifest
    data: bytes
    chains: dict[str, Shown]
    root: Digest
    simulated: bool
    lacks: str | None


def make_site_pack(
    folder: Path,
    run: str,
    *,
    study: Path | None = None,
    passphrase: str | None = None,
    whole: bool = False,
) -> Made:
    """Returns a site's pack of a run.

    Args:
        folder: the site's.
        run: name of the run, as the coordinator calls it.
        study: a signed study; None: the site's own of the name that the run was proposed in.
        passphrase: opens a sealed key.
        whole: whether records of other runs are shown in full too.

    Raises:
        RunNotFound: the site has no record of such a run.
        AuditError, LedgerInvalid: its log or ledger does not verify.
        IdentityError: key, roster or study are not good.
    """
    file = read_site_file(folder / SITE_FILE)
    key = SigningKey.load(folder / KEY_FILE, passphrase)
    records = list(read_records(folder / AUDIT_FILE, key.public_hex))
    numbers = of_run(records, run)
    if not numbers:
        known = sorted({str(r.body["run"]) for r in records if "run" in r.body})
        raise RunNotFound(
            f"{file.name} has no record of a run '{run}'; it knows: {', '.join(known) or 'none'}."
        )
    lines = (folder / AUDIT_FILE).read_bytes().split(b"\n")[:-1]
    chains = {AUDIT: show(lines, set(range(len(lines))) if whole else numbers)}
    entries, charged = [], set[int]()
    if (folder / LEDGER_FILE).exists():
        charged = charged_to(read_ledger(folder / LEDGER_FILE, key.public_hex).records, run)
        entries = read_lines(folder / LEDGER_FILE)
    if whole:
        charged = set(range(len(entries)))
    chains[LEDGER] = show(entries, charged) if entries else Shown(b"", 0, 0)
    sources = {member: chain.data for member, chain in chains.items()}
    sources[POLICY] = to_json(packed(file)).encode()
    roster, root = _text(folder / ROSTER_FILE), _text(folder / ROOT_FILE).strip()
    origin = Origin("site", file.name, key.public_hex, run, read_versions(roster, root), root)
    sources[VERSIONS] = as_json(_versions())
    if (proposal := folder / PROPOSALS / f"{run}.json").exists():
        sources[PROPOSAL] = proposal.read_bytes()
    return _finish(origin, roster, key, sources, study, folder / STUDIES, chains)


def make_coordinator_pack(
    folder: RunFolder,
    settings: Settings,
    key: SigningKey,
    *,
    study: Path | None = None,
    studies: Path | None = None,
) -> Made:
    """Returns the coordinator's pack of a run.

    Args:
        folder: the run's.
        settings: its whole configuration.
        key: the coordinator's, as the roster names it.
        study: a signed study; None: of ``studies`` the one that the run was proposed in.
        studies: the coordinator's folder of studies.

    Raises:
        AuditError: the log does not verify, or the model is not the one that it names.
        IdentityError: roster or study are not good.
    """
    run = folder.path.name
    if not folder.audit.exists():
        raise RunNotFound(f"The run {run} has no log yet; wait for its first round.")
    roster, root = _text(folder.roster), _text(folder.roster_root).strip()
    versions = read_versions(roster, root)
    known = versions[-1].coordinator
    name = known.name if known else "coordinator"
    origin = Origin("coordinator", name, key.public_hex, run, versions, root)
    sources = {AUDIT: folder.audit.read_bytes(), CONFIG: to_json(settings).encode()}
    about = json.loads(_text(folder.about)) if folder.about.exists() else {}
    run_with = {name: about[name] for name in ("started", "git", "versions") if name in about}
    sources[VERSIONS] = as_json(_versions() | ({"run_with": run_with} if run_with else {}))
    if folder.proposal.exists():
        sources[PROPOSAL] = folder.proposal.read_bytes()
    made = _finish(origin, roster, key, sources, study, studies, {})
    model = compute(folder.path, origin, sources).facts["model"]
    kept = digest_of(folder.final_model.read_bytes()) if folder.final_model.exists() else None
    if kept is not None and (model is None or kept != model["sha256"]):
        raise EvidenceContradicts(
            f"{folder.final_model} is not the model of the last round in the run's log."
        )
    return made


def _finish(
    origin: Origin,
    roster: str,
    key: SigningKey,
    sources: dict[str, bytes],
    study: Path | None,
    studies: Path | None,
    chains: dict[str, Shown],
) -> Made:
    """Adds what is computed and written for people, and signs."""
    _check_named(origin)
    members = {**sources, ROSTER: roster.encode(), SBOM: installed_sbom().encode()}
    facts = compute(Path(origin.run), origin, members).facts
    day = date.fromisoformat(facts["last"][:10])
    text = _text(study).encode() if study is not None else None
    if text is None and studies is not None:
        sites = facts.get("participants", [origin.signer])
        text = kept_study(studies, origin.versions, facts, sites)
    agreed = read_study(text.decode(), origin.roster, day) if text is not None else None
    if text is not None:
        members[STUDY] = text
    members[FACTS] = as_json(facts)
    draft = Manifest(
        kind=origin.kind,
        run=origin.run,
        federation=origin.roster.federation,
        signer=origin.signer,
        public_key=origin.public_key,
        time=facts["last"],
        made_by=metadata.version("lepton-fl"),
        members=[],
    )
    members |= texts(draft, facts, agreed)
    members[PDF] = pdf(draft, facts)
    manifest = Manifest(**{**vars(draft), "members": list_members(members)})
    data = write_pack(manifest, members, key)
    named = (facts.get("proposal") or {}).get("study")
    lacks = named if agreed is None else None
    return Made(manifest, data, chains, origin.root, facts["simulated"], lacks)


def _check_named(origin: Origin) -> None:
    """Refuses to make a pack that nobody could verify.

    Raises:
        EvidenceForeign: the roster does not name the key that would sign.
    """
    if key_of(origin.roster, origin.kind, origin.signer) != origin.public_key:
        raise EvidenceForeign(
            f"The roster does not name the {origin.kind} whose key is here, so nobody could check "
            "its pack; join the newest roster, or run a simulation of an earlier version again."
        )


def _versions() -> dict[str, object]:
    return {
        "lepton-fl": metadata.version("lepton-fl"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise EvidenceUnreadable(f"Cannot read {path}, which a pack needs.") from None
