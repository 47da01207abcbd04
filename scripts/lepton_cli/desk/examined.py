"""A site under examination: what its checks look at, each once, and what they find."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lepton_cli.desk import network
from lepton_cli.desk.folder import Desk, trainer_of
from lepton_client.connectors.report import keep_report
from lepton_client.site import KEY_FILE
from lepton_client.trainer import Described
from lepton_client.trainer_process import RemoteError
from lepton_common.errors import ConnectorMissing, DataError, LeptonError, RosterInvalid
from lepton_common.identity.certificates import Leaf, issue_leaf
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator
from lepton_common.printable import printable

Level = Literal["ok", "warning", "fault", "skipped"]


@dataclass(frozen=True)
class Found:
    """What a check found, where nothing is at fault.

    Attributes:
        said: one sentence.
        warning: what to do about it; "" where nothing is.
    """

    said: str
    warning: str = ""


class Fault(Exception):
    """A fault that no error of ours names: a sentence, and what to do."""


class Examined:
    """One site; what is asked of it is looked up when it is first asked for."""

    def __init__(self, folder: Path, passphrase: str | None) -> None:
        """Looks at nothing yet.

        Args:
            folder: the site's.
            passphrase: of its sealed key, or the PIN of its token.
        """
        self._folder, self._passphrase = folder, passphrase

    @cached_property
    def desk(self) -> Desk:
        """The site's folder."""
        return Desk(self._folder)

    @cached_property
    def key(self) -> SigningKey:
        """The site's key, opened."""
        return SigningKey.load(self._folder / KEY_FILE, self._passphrase)

    @cached_property
    def leaf(self) -> Leaf:
        """A fresh certificate of the site's."""
        return issue_leaf(self.key, self.desk.file.name)

    @cached_property
    def coordinator(self) -> Coordinator:
        """The coordinator that the roster names."""
        found = self.desk.roster.coordinator
        if found is None:
            raise RosterInvalid("The roster names no coordinator.")
        return found

    @cached_property
    def described(self) -> Described:
        """What the trainer finds."""
        try:
            with trainer_of(self.desk) as trainer:
                return trainer.describe()
        except (DataError, ConnectorMissing) as error:
            keep_report(self.desk.folder, error)
            raise
        except Exception as error:
            if not isinstance(error.__cause__, RemoteError):
                raise
            # Only an agent writes the trace to errors.log; this one ends with what was wrong.
            said = str(error.__cause__).strip().rpartition("\n")[2]
            said = printable(said).removeprefix("lepton_common.errors.")
            if isinstance(error, LeptonError):
                raise type(error)(said) from error
            raise Fault(said, "See trainer and data in site.yaml.") from error

    @cached_property
    def answer(self) -> network.Answer:
        """What the coordinator's port answered."""
        return network.ask(self.coordinator, self.leaf)
