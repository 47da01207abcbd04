"""Calls to a coordinator's control service, as a person of the roster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc

from lepton_client.site import KEY_FILE, ROOT_FILE, ROSTER_FILE
from lepton_common import errors
from lepton_common.control.control_pb2 import RunName
from lepton_common.control.control_pb2_grpc import ControlStub
from lepton_common.errors import LeptonError, RosterInvalid, RunError, ServerUnreachable
from lepton_common.identity.certificates import issue_leaf
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Person, Roster, read_roster_files
from lepton_common.proposal import make_proposal
from lepton_common.settings import Settings


@contextmanager
def control(folder: Path, passphrase: str | None = None) -> Iterator[ControlStub]:
    """Gives the control service of the federation that a person's folder has joined.

    Raises:
        IdentityError: key or roster are not good, or the roster does not name this person.
        ServerUnreachable: the coordinator does not answer, or is another.
        LeptonError: what the coordinator refused a call with.
    """
    key, roster, me = identity(folder, passphrase)
    if roster.coordinator is None:
        raise RosterInvalid("The roster names no coordinator; ask a partner to propose one.")
    leaf = issue_leaf(key, me.name)
    credentials = grpc.ssl_channel_credentials(
        roster.coordinator.authority.encode(), leaf.private_key, leaf.certificate
    )
    target = f"{roster.coordinator.hosts[0]}:{roster.coordinator.port}"
    with grpc.secure_channel(target, credentials) as channel:
        try:
            yield ControlStub(channel)
        except grpc.RpcError as error:
            raise _named(error, target) from None


def proposal_of(folder: Path, settings: Settings, study: str | None, passphrase: str | None) -> str:
    """Returns settings as a signed proposal, without what is this machine's alone.

    Raises:
        IdentityError: see `control`.
    """
    key, roster, me = identity(folder, passphrase)
    federation = replace(settings.federation, name=roster.federation)
    settings = replace(settings, baselines=False, runs="runs", federation=federation)
    return make_proposal(key, me.name, study, roster.federation, settings)


def fetch(service: ControlStub, name: str) -> bytes:
    """Returns what a run has come to: its newest model's file, or its statistics as JSON.

    Raises:
        grpc.RpcError: as a call within `control`, which names it.
    """
    return b"".join(part.data for part in service.Fetch(RunName(name=name)))


def identity(folder: Path, passphrase: str | None) -> tuple[SigningKey, Roster, Person]:
    """Returns a person's key, their roster, and who they are in it.

    Raises:
        IdentityError: key or roster are not good, or the roster does not name this person.
    """
    key = SigningKey.load(folder / KEY_FILE, passphrase)
    roster = read_roster_files(folder / ROSTER_FILE, folder / ROOT_FILE)
    roster.check_date(datetime.now(UTC).date())
    me = next((p for p in roster.people if p.public_key == key.public_hex), None)
    if me is None:
        raise RosterInvalid("The roster names no person with the key here.")
    return key, roster, me


def _named(error: grpc.RpcError, target: str) -> LeptonError:
    """Returns the error that a coordinator has named, as our own of that name."""
    details = str(error.details())
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ServerUnreachable(
            f"The coordinator at {target} does not answer, or is not who the roster says."
        )
    name, _, said = details.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, LeptonError):
        return kind(said)
    return RunError(f"The coordinator refused the call ({error.code().name}).")
