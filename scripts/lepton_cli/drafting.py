"""What partners give to draft a roster: requests to join, public keys, and its last day."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from lepton_common.errors import JoinInvalid, RosterInvalid, SettingsError
from lepton_common.identity.joining import Entry, read_join
from lepton_common.identity.signed import Partners
from lepton_common.strict import parse


def read_entries(paths: list[Path]) -> list[Entry]:
    """Returns the entries in requests to join.

    Raises:
        JoinInvalid: one cannot be read, or is none; the message names its file.
    """
    found = []
    for path in paths:
        try:
            found.append(read_join(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            raise JoinInvalid(f"Cannot read the request to join {path}.") from None
        except JoinInvalid as error:
            raise JoinInvalid(f"{path}: {error}") from None
    return found


def read_partners(paths: list[Path], threshold: int) -> Partners:
    """Returns the partners whose public keys are in files.

    Raises:
        RosterInvalid: a file holds none, or two the same; or the threshold is no number of them.
    """
    keys = [_public_key(path) for path in paths]
    if len(set(keys)) < len(keys):
        raise RosterInvalid("A partner's key is given twice; give each partner's .pub file once.")
    partners, faults = parse(Partners, {"keys": keys, "threshold": threshold})
    if partners is None:
        raise RosterInvalid(" ".join(faults))
    return partners


def _public_key(path: Path) -> str:
    """Returns the key in a .pub file; says nothing of what else is in a file, as that is secret.

    Raises:
        RosterInvalid: it holds none.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        key = ""
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise RosterInvalid(
            f"{path} holds no partner's public key: give the .pub file of `lepton federation key`."
        )
    return key


def read_day(said: str | None) -> str | None:
    """Returns a last day as rosters have it.

    Raises:
        SettingsError: it is none, or is over.
    """
    if said is None:
        return None
    try:
        day = date.fromisoformat(said)
    except ValueError:
        day = date.max
    if not today() <= day < date(2100, 1, 1):
        raise SettingsError(
            f"--until {said}: give a day to come, before the year 2100, such as {in_a_year()}."
        )
    return day.isoformat()


def today() -> date:
    """Returns the day as rosters count it, by UTC."""
    return datetime.now(UTC).date()


def in_a_year() -> str:
    """Returns the last day of a roster for which nobody gives another."""
    return (today() + timedelta(days=365)).isoformat()
