"""Where a value that leaves a site comes from, and therefore what protects it."""

from dataclasses import dataclass
from enum import Enum

from lepton_common.privacy.events import Event


class Protection(Enum):
    """What protects a value that leaves."""

    PUBLIC = "public"
    PROTOCOL = "protocol"
    DP = "dp"
    SECAGG = "secagg"
    UNPROTECTED = "unprotected"


@dataclass(frozen=True)
class Provenance:
    """A protection with its proof.

    Attributes:
        protection: which of the five.
        event: for ``dp``, the accounting event that was charged for the value; for ``secagg``
            too, where DP is on.
        spec: for ``secagg``, the hash of the round specification it was masked under.
    """

    protection: Protection
    event: Event | None = None
    spec: str | None = None

    def __post_init__(self) -> None:
        """Refuses a protection without its proof.

        Raises:
            ValueError: ``dp`` without event, ``secagg`` without specification, or either on
                another protection.
        """
        needs_event = self.protection is Protection.DP
        may_have_event = needs_event or self.protection is Protection.SECAGG
        has_event = self.event is not None
        if (
            (needs_event and not has_event)
            or (has_event and not may_have_event)
            or (self.protection is Protection.SECAGG) != bool(self.spec)
        ):
            raise ValueError(f"{self.protection.value} provenance with the wrong proof.")

    def record(self) -> str | dict[str, object]:
        """Returns the provenance as plain values for the audit log."""
        proofs: dict[str, object] = {}
        if self.spec is not None:
            proofs[Protection.SECAGG.value] = self.spec
        if self.event is not None:
            proofs[Protection.DP.value] = self.event.record()
        return proofs or self.protection.value


PUBLIC = Provenance(Protection.PUBLIC)
PROTOCOL = Provenance(Protection.PROTOCOL)
UNPROTECTED = Provenance(Protection.UNPROTECTED)


def protected_by_dp(event: Event) -> Provenance:
    """Returns the provenance of a value released by the mechanism ``event``."""
    return Provenance(Protection.DP, event=event)


def protected_by_secagg(spec: str, event: Event | None) -> Provenance:
    """Returns the provenance of a vector masked under ``spec``, with DP's event where it is on."""
    return Provenance(Protection.SECAGG, event=event, spec=spec)
