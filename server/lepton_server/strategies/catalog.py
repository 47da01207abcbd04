"""The catalog of strategies: Flower's classes, fed with one reply that holds the mean.

Flower's strategies see *updates*, in a frame in which the current model is zero, so that what
they return is the step to add. The linear ones see a single synthetic reply with the exact mean
of all updates and never a single site's; the robust ones need each update, which only exists
where no secure aggregation hides it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from lepton_common.arrays import Layout, Vector
from lepton_common.errors import QuorumNotMet
from lepton_common.messages import SiteFacts
from lepton_common.models.tree_form import form_of
from lepton_common.names import look_up
from lepton_common.settings import ROBUST, Settings, StrategySettings, least_updates
from lepton_server.rounds.gathered import Mean
from lepton_server.strategies.trees import TreeGrowth

_KEY, AVERAGE = "vector", "average"
# Of one update they return it as it is, by way of a dozen copies of it.
_MEANS = (flower.FedAvg, flower.FedProx)
_Arrays = dict[str, NDArray[np.generic]]

STRATEGIES: dict[str, Callable[[StrategySettings], flower.FedAvg]] = {
    "fedavg": lambda s: flower.FedAvg(),
    "fedprox": lambda s: flower.FedProx(proximal_mu=s.proximal_mu),
    "fedavgm": lambda s: flower.FedAvgM(
        server_learning_rate=s.server_learning_rate, server_momentum=s.server_momentum
    ),
    "fedadam": lambda s: flower.FedAdam(
        eta=s.server_learning_rate, beta_1=s.beta_1, beta_2=s.beta_2, tau=s.tau
    ),
    "fedyogi": lambda s: flower.FedYogi(
        eta=s.server_learning_rate, beta_1=s.beta_1, beta_2=s.beta_2, tau=s.tau
    ),
    "fedadagrad": lambda s: flower.FedAdagrad(eta=s.server_learning_rate, tau=s.tau),
    "fedmedian": lambda s: flower.FedMedian(),
    "fedtrimmedavg": lambda s: flower.FedTrimmedAvg(beta=s.beta),
    "krum": lambda s: flower.Krum(num_malicious_nodes=s.num_malicious_nodes),
    "multikrum": lambda s: flower.MultiKrum(
        num_malicious_nodes=s.num_malicious_nodes, num_nodes_to_select=s.num_nodes_to_select
    ),
    "bulyan": lambda s: flower.Bulyan(num_malicious_nodes=s.num_malicious_nodes),
}


class Strategy:
    """One of Flower's strategies, stepping a flat model.

    Attributes:
        needs_each: whether it needs single updates, not only their mean.
    """

    def __init__(
        self, inner: flower.FedAvg, size: int, *, needs_each: bool, least: int, decay: float = 0.0
    ) -> None:
        self._inner, self._zero = inner, np.zeros(size, np.float32)
        self.needs_each, self._least = needs_each, least
        self._decay = decay
        self._average: NDArray[Any] = np.zeros(0)

    def step(self, round_: int, model: Vector, mean: Mean) -> Vector:
        """Returns the next model, float32, shape [d].

        Raises:
            QuorumNotMet: the strategy needs more updates than came.
        """
        updates = mean.each() if self.needs_each else [mean.value()]
        if len(updates) < self._least:
            raise QuorumNotMet(
                f"Round {round_}: {type(self._inner).__name__} needs {self._least} updates and "
                f"{len(updates)} came; lower strategy.num_malicious_nodes or ask more sites."
            )
        if type(self._inner) in _MEANS:
            following = updates[0]
            following += model  # in place: of a large model there is no room for one more
            return self._kept(round_, model, following)
        if isinstance(self._inner, flower.FedAvgM):
            self._inner.current_arrays = _record(self._zero)
        elif isinstance(self._inner, flower.FedAdagrad | flower.FedAdam | flower.FedYogi):
            self._inner.current_arrays = {_KEY: self._zero}
        arrays, _ = self._inner.aggregate_train(round_, [_reply(update) for update in updates])
        assert arrays is not None, "Flower's strategies aggregate what they are given"
        following = model + arrays[_KEY].numpy().astype(np.float32)
        return self._kept(round_, model, following)

    def _kept(self, round_: int, model: Vector, following: Vector) -> Vector:
        """Takes the next model into the average, where there is one, and returns it."""
        if self._decay:
            # Early on the average forgets faster, as the first models are far off.
            decay = min(self._decay, round_ / (round_ + 9))
            before = self._average if self._average.size else model.astype(np.float64)
            self._average = decay * before + (1 - decay) * following
        return following

    def check_room(self, cohort: Iterable[SiteFacts]) -> None:
        """Finds room in every sum: of updates, whose mean is all that counts, each is short."""

    def snapshot(self) -> _Arrays:
        """Returns a copy of the strategy's own state: moments, momentum and average, by name."""
        state: _Arrays = {AVERAGE: self._average.copy()} if self._average.size else {}
        for name in ("m_t", "v_t"):
            if moments := getattr(self._inner, name, None):
                state[name] = moments[_KEY].copy()
        if momentum := getattr(self._inner, "momentum_vector", None):
            state["momentum_vector"] = momentum[0].copy()
        return state

    def restore(self, state: _Arrays) -> None:
        """Takes over the state that `snapshot` returned."""
        inner: Any = self._inner
        for name in ("m_t", "v_t"):
            if name in state:
                setattr(inner, name, {_KEY: state[name]})
        if "momentum_vector" in state:
            inner.momentum_vector = [state["momentum_vector"]]
        self._average = state.get(AVERAGE, self._average)


def make_strategy(settings: Settings, layout: Layout) -> Strategy | TreeGrowth:
    """Returns the strategy that the settings name, or what grows the trees that they name.

    Raises:
        UnknownName: no such strategy.
        SettingsError, PlanError: see `TreeGrowth`.
    """
    if form_of(settings.model) is not None:
        return TreeGrowth(settings, layout)
    chosen = settings.strategy
    inner = look_up(STRATEGIES, chosen.name, "strategy")(chosen)
    return Strategy(
        inner,
        layout.size,
        needs_each=chosen.name in ROBUST,
        least=least_updates(chosen),
        decay=chosen.average_decay,
    )


def _record(vector: Vector) -> ArrayRecord:
    return ArrayRecord({_KEY: Array(vector)})


def _reply(update: Vector) -> Message:
    # Equal weights: a site's weight is in the mean already, and the robust ones know none.
    content = RecordDict({"arrays": _record(update), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=0, message_type=MessageType.TRAIN)
