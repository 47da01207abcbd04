"""Every error Lepton raises on purpose, one class per cause.

```
LeptonError                     exit code 1
├── SettingsError               2   what was asked for
│   ├── UnknownName
│   ├── AppMissing
│   ├── AppInvalid
│   ├── TrackerMissing
│   ├── ConnectorMissing
│   ├── BaseMissing
│   ├── BaseUnreadable
│   ├── BaseMisfit
│   └── FileUnusable
├── DataError                   3   what it should be trained on
│   ├── DataMissing
│   ├── ChecksumMismatch
│   ├── DataInvalid
│   │   ├── TableInvalid
│   │   ├── FileDamaged
│   │   ├── SizeMismatch
│   │   └── OneClassOnly
│   ├── SourceUnreachable
│   ├── EmptySite
│   └── TooFewRecords
├── PrivacyError                4   what a site will not do
│   ├── PlanError
│   ├── BudgetSpent
│   ├── LedgerInvalid
│   ├── LedgerRolledBack
│   ├── PeopleKnown
│   ├── ClockBehind
│   ├── ConsentRefused
│   ├── ApprovalPending
│   ├── QuietHours
│   ├── PrivateWorkFailed
│   ├── BuffersNotAllowed
│   ├── LossNotApart
│   ├── RecordsMixed
│   ├── DoorRefused
│   ├── ModelNotApproved
│   ├── IsolationUnavailable
│   ├── PrecisionUnavailable
│   ├── GradientsUnavailable
│   └── AuditFailed
├── RunError                    5   what went wrong in a round
│   ├── MalformedMessage
│   ├── ModelMismatch
│   ├── UpdateInvalid
│   ├── QuorumNotMet
│   ├── CheckpointUnreadable
│   ├── RunNotFound
│   ├── OutsideTheDoor
│   ├── AppFailed
│   ├── ServerFailed
│   ├── ServerUnreachable
│   ├── NotAllowed
│   ├── TrainerFailed
│   ├── AgentRunning
│   ├── CoordinatorRunning
│   ├── RehearsalFailed
│   ├── WorkerFailed
│   ├── RayMissing
│   ├── RayUnreachable
│   ├── DiskFull
│   └── RunNotResumable
├── SecAggError                 7   what stopped a round of secure aggregation
│   ├── PolicyViolation
│   ├── ReplayError
│   ├── StateError
│   ├── RosterMismatch
│   ├── BadSignature
│   ├── DuplicateKey
│   ├── LowOrderPoint
│   ├── OwnMessageAltered
│   ├── TooFewSites
│   ├── SitesRefused            4
│   ├── ShareDecryptError
│   ├── ShareMismatch
│   ├── DimensionMismatch
│   ├── EncodingError
│   ├── InconsistentView
│   ├── ConsistencyFailure
│   ├── UpdateAlreadySpent
│   └── RoundLost
├── AuditError                  6   what does not verify
│   ├── EvidenceUnreadable
│   ├── EvidenceAltered
│   ├── EvidenceForeign
│   ├── EvidenceContradicts
│   └── AuditRolledBack
├── IdentityError               8   who someone is, and whether they belong
│   ├── KeyUnreadable
│   ├── TokenGone
│   ├── CertificateInvalid
│   ├── JoinInvalid
│   ├── RosterInvalid
│   ├── RosterRolledBack
│   ├── RosterExpired
│   ├── StudyInvalid
│   ├── ProposalInvalid
│   └── HeadsInvalid
├── BundleError                 9   an offline installation that cannot be made or trusted
│   ├── WheelMissing
│   ├── BundleForged
│   ├── BundleUnsafe
│   └── BundleAltered
├── PackageError                9   a model's wheel that cannot be reviewed or trusted
│   ├── PackageUnreadable
│   ├── PackageTooLarge
│   ├── PackageUnsafe
│   ├── PackageNotPure
│   ├── PackageEntryPoints
│   ├── PackageNeedsMore
│   ├── PackageNameTaken
│   ├── PackageForged
│   └── PackageAltered
├── SystemRefused               1   what the operating system does not do
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


class AppMissing(SettingsError):
    """There is no Flower app where one was said to be."""


class AppInvalid(SettingsError):
    """A Flower app that Flower would not take, or that cannot be imported."""


class TrackerMissing(SettingsError):
    """A tracker whose package is not installed."""


class ConnectorMissing(SettingsError):
    """A connector whose package, or whose database's driver, is not installed."""


class BaseMissing(SettingsError):
    """The trained model that another begins from is not on this machine."""


class BaseUnreadable(SettingsError):
    """The file of a trained model is no safetensors file of good numbers, or another one."""


class BaseMisfit(SettingsError):
    """The tensors of a trained model do not fit the one that is to begin from it."""


class FileUnusable(SettingsError):
    """A file or folder that a command was given is not there, or may not be read or written."""


class SystemRefused(LeptonError):
    """The operating system does not do what is needed: no room, no more files, a broken disk."""


class DataError(LeptonError):
    """The data cannot be used."""

    exit_code = 3


class DataMissing(DataError):
    """A data folder, file or download is not there."""


class ChecksumMismatch(DataError):
    """A data file is not the published one."""


class DataInvalid(DataError):
    """Data of the wrong form: not finite, wrong shape, labels out of range."""


class TableInvalid(DataInvalid):
    """A table that does not fit its schema.

    Attributes:
        faults: every fault found, one sentence each; no value, row or number of rows.
        counts: rows at fault, by column and rule; they stay at the site.
    """

    def __init__(
        self, faults: list[str] | str, counts: dict[tuple[str, str], int] | None = None
    ) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        self.counts = dict(counts or {})
        super().__init__(" ".join(self.faults))


class FileDamaged(DataInvalid):
    """A file that is not of its kind, or whose end is missing."""


class SizeMismatch(DataInvalid):
    """Images, sounds or arrays of another size, rate or kind than the data set declares."""


class OneClassOnly(DataInvalid):
    """Records that are all of one class, from which nothing can be told apart."""


class SourceUnreachable(DataError):
    """A database or table that a site's data should come from cannot be read."""


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


class LedgerInvalid(PrivacyError):
    """A privacy ledger that does not verify, or cannot be written."""


class LedgerRolledBack(PrivacyError):
    """A privacy ledger that lacks an entry which others have seen."""


class PeopleKnown(PrivacyError):
    """Data whose people were said to be new holds somebody who is on record already."""


class ClockBehind(PrivacyError):
    """The site's clock is behind its own ledger, so that no period can be told."""


class ConsentRefused(PrivacyError):
    """The site's policy does not allow what was asked."""


class ApprovalPending(PrivacyError):
    """The site's operator has not decided about the run yet."""


class QuietHours(PrivacyError):
    """The site trains nothing at this time of the day; later it does."""


class PrivateWorkFailed(PrivacyError):
    """Private work failed after it was charged; one name, whatever the records did."""


class BuffersNotAllowed(PrivacyError):
    """The model holds buffers, which would carry records past clipping and noise."""


class LossNotApart(PrivacyError):
    """The task's loss compares records with one another, so that clipping bounds nobody's part."""


class RecordsMixed(PrivacyError):
    """Records would be mixed with one another before private steps, which bound each one's part."""


class DoorRefused(PrivacyError):
    """Something without a valid provenance tried to leave the site."""


class ModelNotApproved(PrivacyError):
    """The site's operator has approved no such model, or another version of it."""


class IsolationUnavailable(PrivacyError):
    """This system cannot cut the trainer off as the site's operator asks."""


class PrecisionUnavailable(PrivacyError):
    """A device on which rounding would tell too much, and which cannot round more finely."""


class GradientsUnavailable(PrivacyError):
    """A model whose records' gradients no engine computes one by one."""


class AuditFailed(PrivacyError):
    """Training on made-up records does not keep the epsilon that it claims."""


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


class OutsideTheDoor(RunError):
    """A third-party app's run has nothing to verify, resume or prove."""


class AppFailed(RunError):
    """A third-party Flower app's ServerApp raised, or ended its process."""


class ServerFailed(RunError):
    """A part of the coordinator does not start, or does not stay up."""


class ServerUnreachable(RunError):
    """The coordinator cannot be reached, or is not who the roster says."""


class NotAllowed(RunError):
    """The roster does not give someone the role that a call needs."""


class TrainerFailed(RunError):
    """The process that trains at a site ended, was stopped, or answered what is no answer."""


class CoordinatorRunning(RunError):
    """Another process is the coordinator of this folder, whose parts and log have one owner."""


class AgentRunning(RunError):
    """Another agent works in the site's folder, whose logs have one writer."""


class RehearsalFailed(RunError):
    """A round could not be rehearsed at a site."""


class WorkerFailed(RunError):
    """A process that should train simulated sites cannot be started."""


class RayMissing(RunError):
    """A simulation on Ray was asked for, which is not installed."""


class RayUnreachable(RunError):
    """There is no Ray cluster at an address, or none that has room for a site."""


class DiskFull(RunError, OSError):
    """There is no room for what must be on disk before anything goes on; the last state is kept."""


class RunNotResumable(RunError):
    """The run is finished, or its configuration changed."""


class SecAggError(LeptonError):
    """A round of secure aggregation was stopped; whoever stopped it sends nothing more."""

    exit_code = 7


class PolicyViolation(SecAggError):
    """The round's specification breaks a bound of the protocol or of the site's policy."""


class ReplayError(SecAggError):
    """The round's number is not above the last one that the site took part in."""


class StateError(SecAggError):
    """The message does not fit the stage that the round is in; each stage answers once."""


class RosterMismatch(SecAggError):
    """A site of the round is not in the pinned roster under that key."""


class BadSignature(SecAggError):
    """A message is not signed by the site that it names."""


class DuplicateKey(SecAggError):
    """Two sites advertised the same key."""


class LowOrderPoint(SecAggError):
    """A site advertised a key that forces a known shared secret."""


class OwnMessageAltered(SecAggError):
    """The server shows a site another message than the one it sent."""


class TooFewSites(SecAggError):
    """Fewer sites than the threshold are left."""


class SitesRefused(SecAggError):
    """The sites' own policies or budgets do not allow what the run asks."""

    exit_code = 4


class ShareDecryptError(SecAggError):
    """A sealed share does not open."""


class ShareMismatch(SecAggError):
    """The shares of a site do not rebuild what it committed to."""


class DimensionMismatch(SecAggError):
    """A vector has not the length that the round agreed on."""


class EncodingError(SecAggError):
    """A value cannot be encoded: it is not finite, or a weight is out of bounds."""


class InconsistentView(SecAggError):
    """The server shows sites different sets of participants."""


class ConsistencyFailure(SecAggError):
    """A site's signature is not on the survivors that the server shows."""


class UpdateAlreadySpent(SecAggError):
    """An update on this model has left under another specification, or was unmasked."""


class RoundLost(SecAggError):
    """A round's sum can no longer be finished, nor repeated: its updates are spent."""


class AuditError(LeptonError):
    """An audit log does not verify."""

    exit_code = 6


class EvidenceUnreadable(AuditError):
    """An evidence pack has not the one form that packs have, or a record for it is missing."""


class EvidenceAltered(AuditError):
    """A member of an evidence pack is not as it was signed, is missing, or was added."""


class EvidenceForeign(AuditError):
    """An evidence pack is of another federation, or signed by none of its members."""


class EvidenceContradicts(AuditError):
    """Members of an evidence pack, or several packs of one run, contradict each other."""


class AuditRolledBack(AuditError):
    """An audit log that lacks records which others have witnessed."""


class IdentityError(LeptonError):
    """Someone is not who they should be, or does not belong here."""

    exit_code = 8


class KeyUnreadable(IdentityError):
    """A private key cannot be opened."""


class TokenGone(IdentityError):
    """The token that holds a private key was pulled out, or does not answer any more."""


class CertificateInvalid(IdentityError):
    """A certificate is damaged, expired, another's, or for another host."""


class JoinInvalid(IdentityError):
    """A request to join a federation is damaged, or not signed by the key in it."""


class RosterInvalid(IdentityError):
    """A roster is damaged, or too few partners have signed it."""


class RosterRolledBack(IdentityError):
    """A roster lacks a version that is known here, or tells another story."""


class RosterExpired(IdentityError):
    """A roster is past its last day."""


class StudyInvalid(IdentityError):
    """A study is damaged, expired, not signed, or about others than the roster's sites."""


class ProposalInvalid(IdentityError):
    """A proposed run that is damaged, or that nobody who may has signed."""


class HeadsInvalid(IdentityError):
    """Heads of a site's logs are damaged, or not signed by the site and its witness."""


class BundleError(LeptonError):
    """A bundle for an installation without a network is not good."""

    exit_code = 9


class WheelMissing(BundleError):
    """A package that belongs into a bundle cannot be fetched or built."""


class BundleForged(BundleError):
    """A bundle is not signed by the key that it should be signed by."""


class BundleUnsafe(BundleError):
    """A bundle holds what would be written outside of its folder, or is too large."""


class BundleAltered(BundleError):
    """A bundle holds other bytes than its maker signed, or fewer, or more."""


class PackageError(LeptonError):
    """A model's wheel is not good."""

    exit_code = 9


class PackageUnreadable(PackageError):
    """A file is no wheel, or a damaged one, or contradicts its own metadata."""


class PackageTooLarge(PackageError):
    """A model's wheel holds more than anyone reviews."""


class PackageUnsafe(PackageError):
    """A model's wheel holds what leads out of its package, or what a review would not show."""


class PackageNotPure(PackageError):
    """A model's wheel holds something else than Python source."""


class PackageEntryPoints(PackageError):
    """A model's wheel offers something else than models, or none."""


class PackageNeedsMore(PackageError):
    """A model's wheel needs a package that is not installed."""


class PackageNameTaken(PackageError):
    """A model's wheel has the name of something else that is installed."""


class PackageForged(PackageError):
    """A model's wheel is not signed by a lead of the federation, or is another one."""


class PackageAltered(PackageError):
    """An approved model's source, or the list of what is approved, was changed."""


class Interrupted(LeptonError):
    """The user asked to stop; the last round was finished and kept."""

    exit_code = 130
