"""What a pack holds for people: one page as HTML and PDF, a model card, and pre-filled records."""

from dataclasses import dataclass, field
from typing import Any

from lepton_cli.packs.archive import Manifest
from lepton_cli.packs.pdf import draw_pdf
from lepton_cli.rendering import render
from lepton_cli.summary import upper
from lepton_common.identity.study import Study

PROVES = (
    "The records are unaltered since they were anchored: each is signed and chained, and the "
    "coordinator's pack holds the heads that it witnessed while the run went on. Each private "
    "release has its charge, and the epsilon above is what the charges come to."
)
PROVES_ALONE = (
    "The records are what the signer put on record: each is signed and chained. That none was "
    "altered since by the signer too, the other side's pack shows, verified together with this."
)
PROVES_NOT = (
    "It does not prove that a site ran unmodified software, that its data is what it says, or "
    "that no record was left out before it was ever written. Policy, versions and bill of "
    "materials are the signer's word on the day the pack was made."
)


@dataclass(frozen=True)
class Page:
    """One page for a person.

    Attributes:
        title: its heading.
        statement: what holds for privacy, in a sentence or two.
        red: whether something left that was not protected as it could be.
        sections: rows of two columns, by heading.
        closing: what the pack proves, and what it does not.
    """

    title: str
    statement: str
    red: bool
    sections: dict[str, list[tuple[str, str]]]
    closing: dict[str, str] = field(
        default_factory=lambda: {"What this proves": PROVES, "What it does not": PROVES_NOT}
    )


def texts(manifest: Manifest, facts: dict[str, Any], study: Study | None) -> dict[str, bytes]:
    """Returns the pack's members that are text, which a verifier makes anew to compare."""
    page = make_page(manifest, facts)
    known = {"manifest": manifest, "facts": facts, "study": study, "page": page}
    made = {
        "page.html": render("evidence/page.html.j2", **known),
        "dpia.md": render("evidence/dpia.md.j2", **known),
        "processing.md": render("evidence/processing.md.j2", **known),
    }
    if manifest.kind == "coordinator":
        made["model-card.md"] = render("evidence/model_card.md.j2", **known)
    return {name: text.encode() for name, text in made.items()}


def pdf(manifest: Manifest, facts: dict[str, Any]) -> bytes:
    """Returns the page as PDF."""
    page = make_page(manifest, facts)
    rows = {title: [f"{a}: {b}" for a, b in lines] for title, lines in page.sections.items()}
    said = {title: [text] for title, text in page.closing.items()}
    return draw_pdf(page.title, page.statement, {**rows, **said}, red=page.red)


def make_page(manifest: Manifest, facts: dict[str, Any]) -> Page:
    """Returns the page of a site's or the coordinator's pack."""
    who = [
        ("Run", manifest.run),
        ("Federation", manifest.federation + (" (simulated)" if facts["simulated"] else "")),
        (f"Signed by the {manifest.kind}", f"{manifest.signer}, key {manifest.public_key[:16]}…"),
        ("Root of the roster", facts["root"]),
        ("Newest record", f"{manifest.time}; pack made by Lepton {manifest.made_by}"),
    ]
    if (asked := facts.get("proposal")) is not None:
        within = f"in the study {asked['study']}" if asked["study"] else "in no study"
        who.append(("Proposed by", f"{asked['by']}, {within}"))
    if manifest.kind == "site":
        statement, red = _site_statement(facts), facts["without_dp"] or facts["readable"]
        sections = {"What left the site": _left(facts), "Records": _chains(facts)}
    else:
        statement, red = _run_statement(facts), facts["privacy"]["mode"] == "none"
        sections = {"The run": _run(facts), "Records": _chains(facts)}
    title = f"Evidence of {manifest.signer} on the run {manifest.run}"
    return Page(title, statement, red, {"What this is": who, **sections})


def _site_statement(facts: dict[str, Any]) -> str:
    plan = facts["plan"]
    if facts["without_dp"]:
        return "NOT PRIVATE: something computed from records left without differential privacy."
    if plan["epsilon"] is None:
        return "Nothing computed from records left this site in this run."
    unit = " and ".join(plan["units"])
    spent = shown_epsilon(plan["epsilon"])
    told = (
        f"In this run the site spent ({spent}, {plan['delta']:g})-differential privacy per {unit}, "
        "add-or-remove-one, recomputed from its charges."
    )
    if plan["shared"] is not None:
        told += " It shares its noise with other sites, and holds while few enough collude."
    if facts["readable"]:
        told += " SECURE AGGREGATION OFF: the server could read this site's updates."
    return told


def _run_statement(facts: dict[str, Any]) -> str:
    privacy, secagg = facts["privacy"], facts["secagg"]
    if privacy["mode"] == "none":
        told = "NOT PRIVATE: the run asked for no differential privacy."
    else:
        told = (
            f"The run asked for {privacy['mode']} privacy"
            + (f", epsilon {privacy['epsilon']:g}" if privacy["epsilon"] is not None else "")
            + (f" at delta {privacy['delta']:g}" if privacy["delta"] is not None else "")
            + "; what each site spent is in its own pack."
        )
    if secagg["mode"] == "none":
        return told + " SECURE AGGREGATION OFF: the server could read each site's updates."
    return told + f" The server saw sums only, against up to {secagg['colluders']} colluding sites."


def _left(facts: dict[str, Any]) -> list[tuple[str, str]]:
    left = {name: f"{size:,} bytes" for name, size in sorted(facts["bytes_left"].items())}
    engines = ", ".join(
        f"{name}" + (f" ({difference:.0e} from Opacus)" if difference is not None else "")
        for name, difference in facts["conformance"].items()
    )
    refused = ", ".join(f"{name} ({count})" for name, count in sorted(facts["refusals"].items()))
    return [
        ("Replies", str(facts["releases"])),
        *left.items(),
        ("Charges", str(facts["plan"]["charges"])),
        ("Refused", refused or "nothing"),
        ("Gradients by", engines or "no private training"),
        ("Data", f"{facts['data']['id']} ({facts['data']['dataset']})"),
        ("Charged to", ", ".join(facts["charged_data"]) or "nothing"),
    ]


def _run(facts: dict[str, Any]) -> list[tuple[str, str]]:
    model, told = facts["model"], facts.get("statistics", {})
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(facts["metrics"].items()))
    files = {"file": "statistics.json", "model_file": "Evaluated model"}
    return [
        ("Task and model", f"{facts['task']}, {facts['model_kind']}, {facts['strategy']}"),
        ("Rounds", f"{len(facts['rounds'])} of {facts['of_rounds']}"),
        ("Sites", ", ".join(facts["participants"]) or "none"),
        ("Model (SHA-256)", model["sha256"] if model else "none"),
        ("Figures", metrics or "none"),
        *((f"{what} (SHA-256)", told[name]) for name, what in files.items() if name in told),
        ("Heads of site logs witnessed", str(facts["witnessed"])),
    ]


def _chains(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name in ("audit", "ledger"):
        chain = facts.get(name)
        if chain and chain["head"]:
            of = f"{chain['in_full']} of {chain['records']} records in full"
            if chain["withheld_within"]:
                of += f", {chain['withheld_within']} withheld amid those of the run"
            rows.append((name.capitalize(), f"{of}; head {chain['head']}"))
    return rows


def shown_epsilon(value: float | str) -> str:
    """Returns an epsilon as it is printed, never rounded down."""
    return value if isinstance(value, str) else upper(value, 3)
