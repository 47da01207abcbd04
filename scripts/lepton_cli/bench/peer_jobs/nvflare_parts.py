"""The two ends of a job on NVFlare: FedAvg that waits between rounds, and training."""

import zlib

import job
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg
from torch import nn
from turns import Turns


class TakingTurns(FedAvg):
    """NVFlare's FedAvg, which saves no model and waits in its place."""

    def __init__(self, num_clients: int, num_rounds: int) -> None:
        first = nn.Sequential(*job.layers()).state_dict()
        super().__init__(
            num_clients=num_clients,
            num_rounds=num_rounds,
            persistor_id="",
            model={name: value.numpy() for name, value in first.items()},
        )
        self._turns: Turns | None = None
        self._steps = 0

    def _aggregate_one_result(self, result: FLModel) -> bool:
        self._steps += int((result.meta or {}).get(MetaKey.NUM_STEPS_CURRENT_ROUND, 0))
        return super()._aggregate_one_result(result)

    def save_model(self, model: FLModel) -> None:
        """Waits: this is what comes last in a round."""
        self._turns = self._turns or Turns()
        taken, self._steps = self._steps, 0
        if not self._turns.next(steps=taken):
            self.num_rounds = 0
            self.abort_signal.trigger(True)
            raise SystemExit


class Training(Executor):
    """Trains one of the job's clients, another one in each round."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)  # one client a core
        self._model = nn.Sequential(*job.layers())
        self._round = 0

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Trains for one epoch and returns the weights."""
        weights = from_shareable(shareable).data
        self._model.load_state_dict({name: torch.as_tensor(weights[name]) for name in weights})
        round_ = int(shareable.get_header("current_round", self._round))
        self._round = round_ + 1
        seed = zlib.crc32(f"{fl_ctx.get_identity_name()}/{round_}".encode())
        steps = job.train(self._model, seed % job.CLIENTS, seed)
        trained = {name: value.numpy() for name, value in self._model.state_dict().items()}
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
        return DXO(DataKind.WEIGHTS, data=trained, meta=meta).to_shareable()
