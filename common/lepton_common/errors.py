"""Every error Lepton raises on purpose, one class per cause.

```
LeptonError                     exit code 1
├── SettingsError               2   what was asked for
│   └── UnknownName
├── DataError                   3   what it should be trained on
│   ├── DataMissing
│   ├── ChecksumMismatch
│   ├── DataInvalid
│   ├── EmptySite
│   └── TooFewRecords
├── PrivacyError                4   what a site will not do
│   ├── PlanError
│   ├── BudgetSpent
│   ├── ConsentRefused
│   ├── PrivateWorkFailed
│   ├── BuffersNotAllowed
│   └── DoorRefused
├── RunError                    5   what went wrong in a round
│   ├── MalformedMessage
│   ├── ModelMismatch
│   ├── UpdateInvalid
│   ├── QuorumNotMet
│   ├── CheckpointUnreadable
│   ├── RunNotFound
│   └── RunNotResumable
├── AuditError                  6   what does not verify
└── Interrupted                 130 Ctrl-C: stopped after a finished round
```

A message says what was expected, what came, and what to do. It never holds site data.
Only the *name* of an error leaves a site, never its text.
"""


class LeptonError(Exception):
    """Base of every error that Lepton raises on purpose."""

    exit_code = 1


class SettingsError(LeptonError):
    """One or more settings are unknown, out of bounds or contradict each other.

    Attributes:
        faults: every fault found, one sentence each.
    """

    exit_code = 2

    def __init__(self, faults: list[str] | str) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class UnknownName(SettingsError):
    """A name that no catalog holds."""


class DataError(LeptonError):
    """The data cannot be used."""

    exit_code = 3


class DataMissing(DataError):
    """A data folder, file or download is not there."""


class ChecksumMismatch(DataError):
    """A data file is not the published one."""


class DataInvalid(DataError):
    """Data of the wrong form: not finite, wrong shape, labels out of range."""


class EmptySite(DataError):
    """A site would hold no record."""


class TooFewRecords(DataError):
    """There are fewer records than sites to hold them."""


class PrivacyError(LeptonError):
    """Something that would break a privacy promise was refused."""

    exit_code = 4


class PlanError(PrivacyError):
    """A privacy plan that gives no guarantee, or cannot be calibrated."""


class BudgetSpent(PrivacyError):
    """The next round would spend more than the site's policy or the plan allows."""


class ConsentRefused(PrivacyError):
    """The site's policy does not allow what was asked."""


class PrivateWorkFailed(PrivacyError):
    """Private work failed after it was charged; one name, whatever the records did."""


class BuffersNotAllowed(PrivacyError):
    """The model holds buffers, which would carry records past clipping and noise."""


class DoorRefused(PrivacyError):
    """Something without a valid provenance tried to leave the site."""


class RunError(LeptonError):
    """A run could not go on."""

    exit_code = 5


class MalformedMessage(RunError):
    """A message from the network does not have the agreed form."""


class ModelMismatch(RunError):
    """Two parties hold different models or different layouts."""


class UpdateInvalid(RunError):
    """A site's update is not finite or outside the range that can be summed exactly."""


class QuorumNotMet(RunError):
    """Too few sites answered in time, or all of them failed."""


class CheckpointUnreadable(RunError):
    """A checkpoint is damaged or not one of ours."""


class RunNotFound(RunError):
    """No run folder by that name."""


class RunNotResumable(RunError):
    """The run is finished, or its configuration changed."""


class AuditError(LeptonError):
    """An audit log does not verify."""

    exit_code = 6


class Interrupted(LeptonError):
    """The user asked to stop; the last round was finished and kept."""

    exit_code = 130
