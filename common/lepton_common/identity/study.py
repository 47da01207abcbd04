"""A study: some sites of the roster, for one purpose, until a day, signed by k of n partners."""

import contextlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lepton_common.durable import write_atomic
from lepton_common.errors import StudyInvalid
from lepton_common.identity.roster import Roster
from lepton_common.identity.signed import Signed
from lepton_common.strict import (
    Count,
    Day,
    Name,
    OpenFraction,
    Positive,
    parse_json,
    record,
)

EARLIER = "earlier"  # folder of the versions that another took the place of
Sentence = Annotated[str, Field(min_length=1, max_length=2000)]


@record
class Study:
    """What the partners have agreed on.

    Attributes:
        name: its name in the federation.
        federation: the federation's name.
        version: 1, and one more with each change.
        purpose: what it is for, in words.
        legal_basis: what allows it, in words.
        ethics_reference: number of the ethics vote, or why none is needed.
        until: its last day.
        sites: who takes part, by name in ascending order.
        leads: people of the roster who may propose runs, by name.
        auditors: people of the roster who may read its evidence, by name.
        tasks: tasks that may be trained.
        data: the sites' own ids of the data that may be used.
        max_epsilon: what all its runs together may spend of each site's budget.
        max_delta: largest delta of a run.
    """

    name: Name
    federation: Name
    version: Count
    purpose: Sentence
    legal_basis: Sentence
    ethics_reference: Sentence
    until: Day
    sites: Annotated[list[Name], Field(min_length=2)]
    leads: Annotated[list[Name], Field(min_length=1)]
    auditors: list[Name]
    tasks: Annotated[list[Name], Field(min_length=1)]
    data: Annotated[list[Name], Field(min_length=1)]
    max_epsilon: Positive
    max_delta: OpenFraction


def check_study(study: Study, roster: Roster, today: date) -> None:
    """Checks a study that is about to be signed or published.

    Raises:
        StudyInvalid: it is over, is another federation's, or names someone who is not in the
            roster.
    """
    _check_agreed(study, roster, today)
    known = {
        "site": {member.name for member in roster.members},
        "lead": {person.name for person in roster.people if "lead" in person.roles},
        "auditor": {person.name for person in roster.people if "auditor" in person.roles},
    }
    named = {"site": study.sites, "lead": study.leads, "auditor": study.auditors}
    for what, names in named.items():
        if strangers := sorted(set(names) - known[what]):
            raise StudyInvalid(
                f"The study {study.name} names {strangers[0]}, who is no {what} in version "
                f"{roster.version} of the roster."
            )


def read_study(text: str, roster: Roster, today: date) -> Study:
    """Returns the study in the text of a file.

    Whoever has left the roster since is in it by name only: what makes a site or a person one is
    the roster, and the study goes on among those who are left.

    Raises:
        StudyInvalid: it is damaged, over or another federation's, or too few partners have signed
            it.
    """
    study = signed_study(text, roster)
    _check_agreed(study, roster, today)
    return study


def _check_agreed(study: Study, roster: Roster, today: date) -> None:
    if study.federation != roster.federation:
        raise StudyInvalid(f"The study {study.name} is of another federation than the roster.")
    if study.sites != sorted(set(study.sites)):
        raise StudyInvalid(f"The study {study.name} lists a site twice, or out of order.")
    if today.isoformat() > study.until:
        raise StudyInvalid(f"The study {study.name} ended on {study.until}.")


def signed_study(text: str, roster: Roster) -> Study:
    """Returns the study in the text of a file, also one that is over or whose people have left.

    Raises:
        StudyInvalid: it is damaged, or too few partners have signed it.
    """
    try:
        signed = parse_json(Signed, text)
        study = parse_json(Study, signed.document)
    except ValueError as error:
        raise StudyInvalid(f"The study is {error}; ask a partner for it again.") from None
    found = len(roster.partners.signers(signed, "study"))
    if found < roster.partners.threshold:
        raise StudyInvalid(
            f"{found} of the partners have signed the study {study.name} and "
            f"{roster.partners.threshold} must."
        )
    return study


def newest_studies(folder: Path, roster: Roster) -> dict[str, Study]:
    """Returns the newest version of each study in a folder by name, also of those that are over."""
    return {path.stem: study for path, study in _signed(folder, roster) if path.stem == study.name}


def sites_before(folder: Path, roster: Roster) -> dict[str, set[str]]:
    """Returns which sites earlier versions of studies named, by the studies' names."""
    sites: dict[str, set[str]] = {}
    for _, study in _signed(folder / EARLIER, roster):
        sites.setdefault(study.name, set()).update(study.sites)
    return sites


def _signed(folder: Path, roster: Roster) -> Iterator[tuple[Path, Study]]:
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(StudyInvalid, OSError, UnicodeDecodeError):
            yield path, signed_study(path.read_text(encoding="utf-8"), roster)


def read_studies(folder: Path, roster: Roster, today: date) -> Iterator[tuple[Study, str]]:
    """Yields the studies in a folder that are good today, by name, each with its file's text."""
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(StudyInvalid, OSError, UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
            study = read_study(text, roster, today)
            if path.stem == study.name:
                yield study, text


def take_study(folder: Path, text: str, roster: Roster, today: date) -> Study:
    """Puts a study into a folder, in the place of an older version of it, which is kept apart.

    Raises:
        StudyInvalid: see `read_study`; or the folder holds a newer version, or another story.
    """
    study = read_study(text, roster, today)
    path = folder / f"{study.name}.json"
    folder.mkdir(exist_ok=True)
    if path.exists():
        before = path.read_text(encoding="utf-8")
        known = parse_json(Signed, before).document
        version = parse_json(Study, known).version
        same = known == parse_json(Signed, text).document
        if study.version < version or (study.version == version and not same):
            raise StudyInvalid(
                f"Version {version} of the study {study.name} is here already, and what came is "
                "older or another; ask the partners which is theirs."
            )
        if study.version > version:
            (folder / EARLIER).mkdir(exist_ok=True)
            write_atomic(folder / EARLIER / f"{study.name}-{version}.json", before.encode())
    write_atomic(path, text.encode())
    return study
