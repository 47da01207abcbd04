"""What a rehearsed round came to, for a program and for a person."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_cli.desk.log import Line
from lepton_cli.summary import upper
from lepton_common.arrays import Vector
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.secagg.ring import Integers


@dataclass(frozen=True)
class Rehearsed:
    """What one round came to.

    Attributes:
        run: name of the run.
        left: what would have left, message by message, as the log of the copy has it.
        plan: under which the site would train; None without differential privacy.
        charged: how many rounds the copy of the ledger was charged.
        values: what the trainer returned: the update, or the sum in steps of the plan's grid.
        clip: beyond which secure aggregation would cut a value; None where it cuts none.
        seconds: the whole round.
        training: the trainer's part of it.
        others: how many sites were made up.
        summed: whether the made-up coordinator came to a sum.
    """

    run: str
    left: list[Line]
    plan: PrivacyPlan | None
    charged: int
    values: Vector | Integers
    clip: float | None
    seconds: float
    training: float
    others: int
    summed: bool

    @property
    def finite(self) -> bool:
        """Whether all values are numbers."""
        return bool(np.isfinite(self.values).all())

    @property
    def norm(self) -> float:
        """The L2 norm of what the trainer returned, in the units of the model; never leaves."""
        grid = self.plan.grid if self.plan is not None and self.plan.shared is not None else 1.0
        return float(np.linalg.norm(self.values.astype(np.float64))) * grid

    @property
    def cut(self) -> float | None:
        """The share of the values that secure aggregation would cut; None where it cuts none."""
        return None if self.clip is None else float((np.abs(self.values) > self.clip).mean())

    @property
    def epsilon(self) -> float | None:
        """What the round would be charged by itself, at the plan's delta; None without DP."""
        return None if self.plan is None else self.plan.epsilon(self.charged)

    def record(self) -> dict[str, Any]:
        """Returns the same for a program."""
        return {
            "run": self.run,
            "would_leave": [
                {"what": line.what, "bytes": line.bytes, "protection": line.protection}
                for line in self.left
            ],
            "rounds_charged": self.charged,
            "epsilon": self.epsilon,
            "delta": None if self.plan is None else self.plan.delta,
            "seconds": round(self.seconds, 3),
            "training_seconds": round(self.training, 3),
            "made_up_sites": self.others,
            "summed": self.summed,
            "not_leaving": {"finite": self.finite, "norm": self.norm, "cut": self.cut},
        }

    def sentences(self) -> list[str]:
        """Returns what an operator should know of it."""
        size = sum(line.bytes for line in self.left)
        said = [
            f"{size:,} bytes in {len(self.left)} messages would have left. Nothing was sent, "
            "charged or logged.",
            f"It took {self.seconds:.1f} s, {self.training:.1f} s of them the trainer's.",
        ]
        if self.plan is None:
            said.append("NOTHING would be charged: the run has no differential privacy.")
        else:
            said.append(
                f"{self.charged} round would be charged: epsilon {upper(self.epsilon or 0, 4)} at "
                f"delta {self.plan.delta:g} by itself. Each {self.plan.unit}'s part is clipped to "
                f"{self.plan.clipping_norm:g}, and this site adds noise, of "
                f"standard deviation {self.plan.own_noise:.4g}, to their sum."
            )
        said.append(
            f"Not leaving, for your eyes: the update {'is' if self.finite else 'IS NOT'} finite, "
            f"its norm is {self.norm:.4g}"
            + (f", and {self.cut:.2%} of its values would be cut." if self.cut is not None else ".")
        )
        said.append(
            f"Made up: the coordinator, and {self.others} other sites, who add zeros and whose "
            "keys exist here only. The sum " + ("came out." if self.summed else "did NOT come out.")
            if self.others
            else "Made up: the coordinator, who asks this site alone."
        )
        return said
