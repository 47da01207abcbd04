"""`lepton site doctor`: goes through the checks of a site, one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

from lepton_cli.desk.checks import CHECKS, Check
from lepton_cli.desk.examined import Examined, Fault, Level
from lepton_common.errors import LeptonError, SettingsError


@dataclass(frozen=True)
class Finding:
    """How one check ended.

    Attributes:
        check: what was looked at.
        level: how it is.
        said: one sentence.
        do: what to do about it; "" where nothing is.
        exit_code: of the fault.
    """

    check: str
    level: Level
    said: str
    do: str = ""
    exit_code: int = 0


def examine(site: Examined, *, offline: bool) -> Iterator[Finding]:
    """Yields what each check found, as it is done; ``offline`` leaves the network out."""
    failed: set[str] = set()
    for check in CHECKS:
        if offline and check.online:
            continue
        missing = [need for need in check.needs if need in failed]
        if missing:
            finding = Finding(check.name, "skipped", f"Not looked at without: {missing[0]}.")
        else:
            finding = _look(check, site)
        if finding.level in ("fault", "skipped"):
            failed.add(check.name)
        yield finding


def _look(check: Check, site: Examined) -> Finding:
    try:
        found = check.look(site)
    except SettingsError as error:
        return Finding(check.name, "fault", " ".join(error.faults), check.do, error.exit_code)
    except LeptonError as error:
        return Finding(check.name, "fault", str(error), check.do, error.exit_code)
    except Fault as fault:
        said, do = map(str, fault.args)
        return Finding(check.name, "fault", said, do, 2)
    except OSError as error:
        said = f"{error.filename or check.name}: {error.strerror or type(error).__name__}."
        return Finding(check.name, "fault", said, check.do, 1)
    level: Level = "warning" if found.warning else "ok"
    return Finding(check.name, level, found.said, found.warning)
