"""What `lepton site doctor` looks at, in this order, and what mends it."""

import contextlib
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from lepton_cli.desk import network
from lepton_cli.desk.budgets import budgets
from lepton_cli.desk.examined import Examined, Fault, Found
from lepton_client.agent import NODE_KEY_FILE
from lepton_client.running import agent_of
from lepton_client.site import KEY_FILE, SITE_FILE
from lepton_common.errors import DataError
from lepton_common.identity.certificates import check_leaf
from lepton_common.privacy.plan import public_size_class

_DAYS_LEFT = 30
_LEAST_FREE = 2 << 30
_CLOCKS_APART_S, _TOO_FAR_S = 60.0, 300.0  # certificates are good from five minutes before
_RESTORE = "Do not start the site; restore the newest copy."


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what is looked at.
        look: looks, and raises what is at fault.
        needs: names of the checks without which it makes no sense.
        do: what mends most of its faults.
        online: whether it needs the network.
    """

    name: str
    look: Callable[[Examined], Found]
    needs: tuple[str, ...] = ()
    do: str = ""
    online: bool = False


def _policy(site: Examined) -> Found:
    file, odd = site.desk.file, []
    policy = file.policy
    if file.trainer is None or file.launch is None:
        raise Fault(
            "site.yaml lacks a section 'trainer' or 'launch'.",
            "Take them over from a site.yaml that `lepton site init` makes.",
        )
    if policy.allow_without_dp:
        odd.append("models may leave without differential privacy (allow_without_dp)")
    if policy.allow_without_secagg:
        odd.append("single updates may leave (allow_without_secagg)")
    if policy.max_epsilon > 10:
        odd.append(f"epsilon {policy.max_epsilon:g} in all protects next to nobody")
    if policy.max_delta * file.public_size > 1:
        odd.append(f"delta {policy.max_delta:g} is above 1 over the public size")
    if policy.min_cohort < 3:
        odd.append(f"in a sum of {policy.min_cohort} sites the others know this one's part")
    if (policy.max_epsilon_per_run or 0) > policy.max_epsilon:
        odd.append("max_epsilon_per_run is above max_epsilon, which counts first")
    if file.trainer.isolation == "process" and not file.trainer.launcher:
        odd.append("the trainer is not cut off from network and keys (isolation: process)")
    if odd:
        return Found(f"Valid, but {'; '.join(odd)}.", f"Change {SITE_FILE} if not meant so.")
    return Found(f"Valid; approval is {file.launch.approval}.")


def _modes(site: Examined) -> Found:
    folder = site.desk.folder
    secret = [path for n in (KEY_FILE, NODE_KEY_FILE) if (path := folder / n).exists()]
    loose = [path.name for path in secret if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if loose:
        raise Fault(
            f"Others on this machine may read {', '.join(loose)}.",
            f"chmod 600 {' '.join(str(folder / name) for name in loose)}; and ask who did.",
        )
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Found("Others may list the site's folder.", f"chmod 700 {folder}")
    return Found("Only its owner reads the folder and the keys.")


def _opens(site: Examined) -> Found:
    if site.key.public_hex != site.desk.key.public_hex:
        raise Fault(
            "signing.pem is not the key that join.json was made with.",
            "Put the site's own key back; 'lepton site rekey' if it is lost.",
        )
    return Found(f"The signing key opens: {site.key.public_hex[:16]}….")


def _log(site: Examined) -> Found:
    records = site.desk.records
    if not records:
        return Found("The audit log is not begun yet.")
    return Found(f"{len(records)} records of the audit log are signed and in place.")


def _ledger(site: Examined) -> Found:
    charges = len(site.desk.charged.charges)
    spent = [b for b in budgets(site.desk) if not b.left > 0]
    said = f"{charges} charges are signed, in place, and all that the log tells of."
    if spent:
        return Found(f"{said} Nothing is left {spent[0].what}.", "See 'lepton site ledger'.")
    return Found(said)


def _roster(site: Examined) -> Found:
    roster, file = site.desk.roster, site.desk.file
    roster.check_date(datetime.now(UTC).date())
    named = {member.name: member.public_key for member in roster.members}
    if named.get(file.name) != site.desk.key.public_hex:
        raise Fault(
            f"Version {roster.version} does not name {file.name} with this site's key.",
            "Ask a partner to propose and sign join.json, then join with the new roster.",
        )
    _ = site.coordinator
    said = f"Version {roster.version} of {roster.federation}, good until {roster.until or 'always'}"
    if roster.until is not None:
        days = (date.fromisoformat(roster.until) - datetime.now(UTC).date()).days
        said += f" ({days} days)"
        if days < _DAYS_LEFT:
            return Found(f"{said}.", "Ask the partners for the next version.")
    return Found(f"{said}; it names this site and its coordinator.")


def _certificate(site: Examined) -> Found:
    roster, name = site.desk.roster, site.desk.file.name
    authority = next(m.authority for m in roster.members if m.name == name)
    until = check_leaf(site.leaf.certificate, authority)
    return Found(f"A certificate can be issued, good until {until:%Y-%m-%d %H:%M} UTC.")


def _disk(site: Examined) -> Found:
    free = shutil.disk_usage(site.desk.folder).free
    said = f"{free / 2**30:.1f} GiB are free."
    if free < _LEAST_FREE:
        return Found(said, "Logs and the ledger must be written before anything leaves.")
    return Found(said)


def _agent(site: Examined) -> Found:
    process = agent_of(site.desk.folder)
    if process is None:
        return Found("No agent works here.", "lepton site start, or its systemd unit.")
    return Found(f"The agent works (process {process}).")


def _trainer(site: Examined) -> Found:
    rules = site.desk.file.trainer
    assert rules is not None, "the check before has asked"
    with contextlib.suppress(DataError):  # which is an answer, and the next check's
        _ = site.described
    where = (
        "launched by " + rules.launcher[0] if rules.launcher else f"isolation: {rules.isolation}"
    )
    return Found(f"The trainer starts and answers ({where}).")


def _gpu(site: Examined) -> Found:
    found = site.described.devices
    wanted = site.desk.file.trainer.gpus if site.desk.file.trainer else None
    if wanted and not found:
        return Found(f"The trainer sees no GPU, and gpus is {wanted!r}.", "Check the driver.")
    return Found(f"The trainer sees {', '.join(found) or 'no GPU'}.")


def _data(site: Examined) -> Found:
    found, file = site.described, site.desk.file
    if found.unit != file.data.unit:
        raise Fault(
            f"The data protects {found.unit!r} as one, and site.yaml says {file.data.unit!r}.",
            "Correct data.unit in site.yaml: the ledger counts by it.",
        )
    said = f"{found.records} records of {found.units} units ({found.unit}) can be read"
    size = public_size_class(found.units)
    if size != file.public_size:
        return Found(
            f"{said}; public_size is {file.public_size}, and their class would be {size}.",
            "A class that differs costs accuracy or tells little; change it only between runs.",
        )
    return Found(f"{said}; public_size {file.public_size} fits.")


def _name(site: Examined) -> Found:
    host, port, proxy = network.way_to(site.coordinator)
    addresses = network.resolve(host, port)
    return Found(f"{'The proxy ' if proxy else ''}{host} is at {', '.join(addresses)}.")


def _connection(site: Examined) -> Found:
    host, port, proxy = network.way_to(site.coordinator)
    network.connect(host, port)
    return Found(f"{'The proxy ' if proxy else ''}{host}:{port} takes connections.")


def _mutual_tls(site: Examined) -> Found:
    status = site.answer.status
    if status == 400:
        raise Fault(
            "The coordinator answers, but does not know this site's certificate (HTTP 400).",
            "Its roster may be older than yours, or yours than its: compare their versions.",
        )
    return Found(f"{site.coordinator.name} proves its key, and answers (HTTP {status}).")


def _clock(site: Examined) -> Found:
    date_ = site.answer.date
    if date_ is None:
        return Found("The coordinator told no date.", "Compare the clocks by hand.")
    apart = abs((datetime.now(UTC) - date_).total_seconds())
    said = f"This clock and the coordinator's are {apart:.0f} s apart."
    if apart > _TOO_FAR_S:
        raise Fault(said, "Certificates live by the clock: set it, by NTP.")
    return Found(said, "Set the clock by NTP." if apart > _CLOCKS_APART_S else "")


_SITE, _KEY, _ROSTER, _TRAINER = "site.yaml", "key", "roster", "trainer"
CHECKS = (
    Check(_SITE, _policy, do="Mend site.yaml."),
    Check("permissions", _modes, (_SITE,), "Run this as the owner of the folder."),
    Check(_KEY, _opens, (_SITE,), "Give --passphrase-file; put the token in."),
    Check("audit log", _log, (_SITE,), _RESTORE),
    Check("ledger", _ledger, (_SITE, "audit log"), _RESTORE),
    Check(_ROSTER, _roster, (_SITE,), "Join, or join again: lepton site join."),
    Check("certificate", _certificate, (_KEY, _ROSTER), "Join again with the newest roster."),
    Check("disk", _disk, (_SITE,)),
    Check("agent", _agent, (_SITE,)),
    Check(_TRAINER, _trainer, (_SITE,), "See trainer and data in site.yaml."),
    Check("data", _data, (_TRAINER,), "See data in site.yaml, and who may read the files."),
    Check("GPU", _gpu, ("data",)),
    Check("name", _name, (_ROSTER,), "Ask your network's operator for its DNS.", online=True),
    Check("connection", _connection, ("name",),
          "See that the coordinator runs; allow it in the firewall; or set https_proxy.",
          online=True),
    Check("TLS", _mutual_tls, ("connection", "certificate"),
           "Something in between may open TLS (have it let this host pass), or a clock is wrong.",
           online=True),
    Check("clock", _clock, ("TLS",), online=True),
)  # fmt: skip
