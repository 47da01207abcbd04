"""What is audited: a privacy plan, and the epsilon that is claimed for steps of it."""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from safetensors import SafetensorError, safe_open

from lepton_cli.run import Run
from lepton_common.asking import privacy_request
from lepton_common.errors import AuditError, SettingsError
from lepton_common.privacy.plan import PrivacyPlan, SharedNoise, calibrated_noise
from lepton_common.secagg.spec import least_survivors
from lepton_common.strict import Noise, Norm, OpenFraction, Rate, record

MOST_STEPS = 2000  # that an audit repeats; of a longer plan the first ones
_PUBLIC_SIZE = 4096  # of the made-up site; it divides sums, which tells nothing about privacy

_Whole = Annotated[int, Field(ge=1, le=10**6)]


@record
class Wanted:
    """A plan as it is asked for on the command line.

    Attributes:
        epsilon: to be kept over all rounds; None where the noise is given.
        noise_multiplier: in the place of epsilon.
        delta: of the guarantee.
        rounds: rounds of the run.
        local_steps: steps in a round.
        sample_rate: Poisson rate of a record in a step.
        clipping_norm: L2 bound on a record's gradient.
        canaries: made-up records of the audit.
    """

    epsilon: Annotated[float, Field(ge=1e-3, le=1e3)] | None
    noise_multiplier: Noise | None
    delta: OpenFraction
    rounds: _Whole
    local_steps: _Whole
    sample_rate: Rate
    clipping_norm: Norm
    canaries: Annotated[int, Field(ge=1000, le=20_000)]


@dataclass(frozen=True)
class Claim:
    """A promise to be held against what training releases.

    Attributes:
        source: where the plan came from.
        plan: what is trained under.
        steps: how many steps of it are audited.
        of_steps: how many it has.
        device: where sites train: a name that `pick_device` knows.
    """

    source: str
    plan: PrivacyPlan
    steps: int
    of_steps: int
    device: str

    @property
    def epsilon(self) -> float:
        """What accounting says that the audited steps spend, at the plan's delta."""
        return self.plan.epsilon(self.steps // self.plan.steps_per_round)


def claim_of_options(wanted: Wanted) -> Claim:
    """Returns the claim of a plan that would be run.

    Raises:
        SettingsError: neither or both of epsilon and noise are given.
        PlanError: no noise reaches epsilon.
    """
    if (wanted.epsilon is None) == (wanted.noise_multiplier is None):
        raise SettingsError("Give either --epsilon or --noise-multiplier.")
    steps = wanted.rounds * wanted.local_steps
    noise = wanted.noise_multiplier
    if noise is None:
        assert wanted.epsilon is not None
        noise = calibrated_noise(
            target_epsilon=wanted.epsilon,
            delta=wanted.delta,
            sample_rate=wanted.sample_rate,
            max_steps=steps,
        )
    plan = PrivacyPlan(
        unit="row",
        delta=wanted.delta,
        sample_rate=wanted.sample_rate,
        noise_multiplier=noise,
        clipping_norm=wanted.clipping_norm,
        steps_per_round=wanted.local_steps,
        max_steps=steps,
        denominator=wanted.sample_rate * _PUBLIC_SIZE,
    )
    return _claim("the options given", plan, "auto")


def claim_of_run(run: Run) -> Claim:
    """Returns the claim of a run's plan, from its configuration and its model's size alone.

    The sites' ledgers must have charged for that very plan.

    Raises:
        AuditError: they have not, or the run's logs do not verify.
        SettingsError: it has no plan for records, or no model yet.
        PlanError: no noise reaches its epsilon.
    """
    settings = run.settings
    if settings.privacy.mode not in ("record", "distributed"):
        raise SettingsError(
            f"The run {run.name} has privacy={settings.privacy.mode}; only privacy=record and "
            "privacy=distributed protect single records, which an audit can tell apart."
        )
    size = _model_size(run) if settings.shares_noise else 1
    asked = privacy_request(settings, size)
    assert asked is not None
    shared = None
    if settings.shares_noise:
        n, f = settings.cohort, settings.colluders
        shared = SharedNoise(n, least_survivors(n, f, settings.federation.quorum), f, size)
    plan = asked.plan("row", _PUBLIC_SIZE, shared)
    if run.evidence.totals.events - {plan.event()}:
        raise AuditError(
            f"The sites of {run.name} charged for another mechanism than its configuration asks "
            "for; 'lepton privacy verify' shows a site's ledger."
        )
    return _claim(f"the run {run.name}", plan, settings.train.device)


def _claim(source: str, plan: PrivacyPlan, device: str) -> Claim:
    whole = plan.max_steps - plan.max_steps % plan.steps_per_round
    longest = max(MOST_STEPS - MOST_STEPS % plan.steps_per_round, plan.steps_per_round)
    return Claim(source, plan, min(whole, longest), plan.max_steps, device)


def _model_size(run: Run) -> int:
    path = run.folder.final_model
    if not path.exists():
        raise SettingsError(f"The run {run.name} has no model yet; audit it when it has ended.")
    try:
        with safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise AuditError(f"{path} is no model: {error}.") from error
    return sum(math.prod(shape) for shape in shapes)
