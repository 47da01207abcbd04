"""A federation's folder: drafts that partners sign one by one, and what they have published.

```
roster.json               all published versions of the roster
roster.root               digest of version 1: what every site pins
studies/NAME.json         the newest published version of each study
drafts/roster-2.json      waits for signatures
drafts/roster-2.KEY.sig   a partner's signature; may come by mail
```

The folder holds no secret, and nothing in it is believed but what signatures say.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from lepton_common.durable import write_atomic
from lepton_common.errors import IdentityError, RosterInvalid, StudyInvalid
from lepton_common.identity.joining import Entry
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import (
    Coordinator,
    Member,
    Roster,
    check_roster,
    read_roster,
    read_roster_files,
    root_of,
    with_version,
)
from lepton_common.identity.signed import Kind, Partners, Signed, sign
from lepton_common.identity.study import Study, check_study, newest_studies, signed_study
from lepton_common.strict import Digest, parse_json, to_json

ROSTER_FILE, ROOT_FILE = "roster.json", "roster.root"


@dataclass(frozen=True)
class Draft:
    """A document that waits for signatures.

    Attributes:
        path: its file.
        kind: what it is.
        text: its JSON text.
        signed: which of those asked have signed it.
        missing: how many more must.
    """

    path: Path
    kind: Kind
    text: str
    signed: set[Digest]
    missing: int


class FederationFolder:
    """A folder that partners share by whatever means, as it stands on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._drafts, self._studies = path / "drafts", path / "studies"

    @property
    def roster(self) -> Roster | None:
        """The newest published roster; None before the first one.

        Raises:
            RosterInvalid: it does not verify.
        """
        if not (self.path / ROSTER_FILE).exists():
            return None
        return read_roster_files(self.path / ROSTER_FILE, self.path / ROOT_FILE)

    @property
    def root(self) -> Digest:
        """The digest of the roster's first version."""
        return (self.path / ROOT_FILE).read_text(encoding="utf-8").strip()

    def begin(self, roster: Roster) -> Path:
        """Drafts version 1.

        Raises:
            RosterInvalid: there is a roster here already, or the draft is none.
        """
        if self.path.exists() and any(self.path.iterdir()):
            raise RosterInvalid(f"{self.path} is not empty; choose a new folder.")
        return self._draft("roster", roster, f"roster-{roster.version}")

    def propose(
        self,
        *,
        add: Iterable[Entry],
        remove: Iterable[str],
        partners: Partners | None,
        until: str | None,
    ) -> Path:
        """Drafts the next version of the roster, in the place of an earlier draft of it.

        An entry whose name is in the roster takes the old one's place: so keys rotate.

        Raises:
            RosterInvalid: nothing is published yet, the draft is no roster, or no other one.
        """
        before = self.roster
        if before is None:
            raise RosterInvalid("There is no roster yet; publish its first version.")
        members = {member.name: member for member in before.members}
        people = {person.name: person for person in before.people}
        coordinator = before.coordinator
        for name in remove:
            if members.pop(name, None) is None and people.pop(name, None) is None:
                raise RosterInvalid(f"There is no {name} in the roster to remove.")
        for entry in add:
            if isinstance(entry, Coordinator):
                coordinator = entry
            elif isinstance(entry, Member):
                members[entry.name] = entry
            else:
                people[entry.name] = entry
        after = replace(
            before,
            version=before.version + 1,
            until=until or before.until,
            partners=partners or before.partners,
            coordinator=coordinator,
            members=[members[name] for name in sorted(members)],
            people=[people[name] for name in sorted(people)],
        )
        if after == replace(before, version=after.version):
            raise RosterInvalid("Nothing would change: all that is proposed is in the roster.")
        return self._draft("roster", after, f"roster-{after.version}")

    def propose_study(self, study: Study, today: date) -> Path:
        """Drafts a study.

        Raises:
            StudyInvalid: it is over, does not fit the published roster, or is not its next version.
        """
        roster = self.roster
        if roster is None:
            raise StudyInvalid("A study needs a published roster; publish its first version.")
        check_study(study, roster, today)
        before = self._known_version(study.name)
        if study.version != before + 1:
            raise StudyInvalid(
                f"The next version of the study {study.name} is {before + 1}, not {study.version}."
            )
        return self._draft("study", study, f"study-{study.name}-{study.version}")

    def drafts(self) -> list[Draft]:
        """Returns what waits for signatures.

        Raises:
            IdentityError: a draft is damaged.
        """
        found = [self._read_draft(path) for path in sorted(self._drafts.glob("*.json"))]
        # A crash while publishing may leave a draft of what is published.
        return [draft for draft in found if self._is_next(draft)]

    def studies_naming(self, name: str) -> list[str]:
        """Returns the published studies that a site or a person of a name is in, by name."""
        roster = self.roster
        studies = newest_studies(self._studies, roster).values() if roster else []
        return [s.name for s in studies if name in (*s.sites, *s.leads, *s.auditors)]

    def sign(self, draft: Draft, key: SigningKey, today: date) -> Path:
        """Writes a partner's signature on a draft.

        Raises:
            RosterInvalid: nobody has asked for this key's signature.
            StudyInvalid: it is a study that is over, or does not fit the published roster.
        """
        if draft.kind == "study":
            roster = self.roster
            assert roster is not None, "a study is drafted against one"
            check_study(self.study_of(draft), roster, today)
        if not any(key.public_hex in partners.keys for partners in self._asked(draft)):
            raise RosterInvalid(
                f"The key {key.public_hex[:16]}… is not a partner's, so its signature is worth "
                "nothing."
            )
        signed = Signed(
            document=draft.text,
            signatures={key.public_hex: sign(key, draft.kind, draft.text)},
        )
        path = draft.path.with_suffix(f".{key.public_hex[:16]}.sig")
        write_atomic(path, to_json(signed).encode())
        return path

    def publish(self, draft: Draft, today: date) -> Path:
        """Publishes a draft that enough partners have signed.

        Raises:
            IdentityError: they have not, or it does not fit what is published.
        """
        signed = Signed(document=draft.text, signatures=self._signatures(draft))
        if draft.kind == "study":
            roster = self.roster
            assert roster is not None, "a study is drafted against one"
            text = to_json(signed)
            study = signed_study(text, roster)
            check_study(study, roster, today)
            path = self._studies / f"{study.name}.json"
            self._studies.mkdir(exist_ok=True)
            write_atomic(path, text.encode())
        else:
            path = self.path / ROSTER_FILE
            known = path.read_text(encoding="utf-8") if path.exists() else None
            text = with_version(known, signed)
            read_roster(text, root_of(text) if known is None else self.root)
            if known is None:
                write_atomic(self.path / ROOT_FILE, root_of(text).encode())
            write_atomic(path, text.encode())
        for left in self._drafts.glob(f"{draft.path.stem}.*"):
            left.unlink()
        return path

    def study_of(self, draft: Draft) -> Study:
        """Returns the study that a draft holds."""
        return parse_json(Study, draft.text)

    def roster_of(self, draft: Draft) -> Roster:
        """Returns the roster that a draft holds."""
        return parse_json(Roster, draft.text)

    def _draft(self, kind: Kind, document: Roster | Study, name: str) -> Path:
        if isinstance(document, Roster):
            check_roster(document)
        self._drafts.mkdir(parents=True, exist_ok=True)
        # A partner's signature on an earlier draft must not pass for one on this.
        for left in self._drafts.glob(f"{name}.*"):
            left.unlink()
        path = self._drafts / f"{name}.json"
        write_atomic(path, to_json(document).encode())
        return path

    def _read_draft(self, path: Path) -> Draft:
        kind: Kind = "study" if path.name.startswith("study-") else "roster"
        text = path.read_text(encoding="utf-8")
        try:
            parse_json(Study if kind == "study" else Roster, text)
        except ValueError as error:
            raise IdentityError(f"The draft {path} is {error}; propose it again.") from None
        draft = Draft(path, kind, text, set(), 0)
        signed = Signed(document=text, signatures=self._signatures(draft))
        found = [(partners, partners.signers(signed, kind)) for partners in self._asked(draft)]
        return replace(
            draft,
            signed=set().union(*(keys for _, keys in found)),
            missing=max(max(0, partners.threshold - len(keys)) for partners, keys in found),
        )

    def _asked(self, draft: Draft) -> list[Partners]:
        """Returns of whom a draft needs signatures: today's partners, and those it names."""
        roster = self.roster
        asked = [roster.partners] if roster else []
        if draft.kind == "roster":
            asked.append(self.roster_of(draft).partners)
        return asked

    def _signatures(self, draft: Draft) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in sorted(self._drafts.glob(f"{draft.path.stem}.*.sig")):
            try:
                signed = parse_json(Signed, path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise IdentityError(f"The signature {path} is {error}; sign again.") from None
            if signed.document == draft.text:
                found |= signed.signatures
        return found

    def _is_next(self, draft: Draft) -> bool:
        if draft.kind == "study":
            study = self.study_of(draft)
            return study.version > self._known_version(study.name)
        roster = self.roster
        return roster is None or self.roster_of(draft).version > roster.version

    def _known_version(self, name: str) -> int:
        path = self._studies / f"{name}.json"
        if not path.exists():
            return 0
        return parse_json(
            Study, parse_json(Signed, path.read_text(encoding="utf-8")).document
        ).version
