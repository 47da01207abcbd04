"""What touches data and models at a site: it holds no key that signs, and needs no network.

In a simulation it works in the site's own process; where a site is deployed, in one of its own,
behind `lepton_client.trainer_process`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.data import SiteData, SiteRecords
from lepton_client.people import unit_hashes
from lepton_client.training.conformance import Conformance, conform
from lepton_client.training.evaluation import figure_sum
from lepton_client.training.plain import train_plain
from lepton_client.training.private import (
    clip_update,
    heights,
    noised,
    noisy_sum,
    train_private,
)
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_client.training.statistics import bounded_sum
from lepton_client.training.trees import bounded_sums, plain_sums
from lepton_common.arrays import Layout, Vector, read_parameters
from lepton_common.datasets.records import Records
from lepton_common.device import pick_device
from lepton_common.errors import DataInvalid, EmptySite, ModelMismatch, UpdateInvalid
from lepton_common.messages import TrainRequest
from lepton_common.models.bases import based
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import WHOLE_SITE, PrivacyPlan
from lepton_common.secagg.ring import Integers
from lepton_common.statistics import EvaluationQuery, StatisticsQuery, cells_of
from lepton_common.strict import Count, Digest, ModelName, Name, Natural, record
from lepton_common.summing import count_unit, update_bound
from lepton_common.tasks.catalog import find_task
from lepton_common.tasks.sums import FigureCells


@record
class Described:
    """What a trainer finds where it works; it stays at the site.

    Attributes:
        records: how many there are.
        units: how many privacy units they are of.
        unit: what the data protects as one.
        input_shape: shape of one record's features.
        classes: number of label values; 0 where labels are none.
        devices: names of the GPUs that it sees.
    """

    records: Natural
    units: Natural
    unit: Name
    input_shape: list[Count]
    classes: Natural
    devices: list[str]


@record
class Wanted:
    """A model to be built.

    Attributes:
        task: a name in the catalog.
        model: what a run calls it.
        seed: of its weights.
    """

    task: Name
    model: ModelName
    seed: Natural


@dataclass(frozen=True)
class Initial:
    """A model before any training, for a rehearsal at the site.

    Attributes:
        layout: digest of its layout.
        vector: float32, shape [d].
    """

    layout: Digest
    vector: Vector


@dataclass(frozen=True)
class Trained:
    """What came of training without differential privacy; all of it is the site's secret.

    Attributes:
        update: float32, shape [d]; of trees the sums of a level.
        loss: mean over the last pass.
        records: how many there were.
    """

    update: Vector
    loss: float
    records: int


class Trainer(Protocol):
    """Reads the site's data and trains on it; one call at a time."""

    def describe(self) -> Described:
        """Reads the records, and says what is there, for the site's operator.

        Raises:
            DataError: the data cannot be read.
        """

    def initial(self, wanted: Wanted) -> Initial:
        """Builds a model for the site's data, with the weights that a seed gives.

        Raises:
            DataError: the data cannot be read.
            SettingsError: the model does not fit it.
            ModelNotApproved, PackageAltered: the model is of a package that is not approved so.
        """

    def people(self) -> frozenset[bytes]:
        """Reads the records for the private work that follows; returns a keyed hash of each unit.

        Raises:
            DataError: the data cannot be read, or protects another unit than the site file says:
                under another name its people would not be known again.
        """

    def device(self, request: TrainRequest) -> str:
        """Returns the kind of device that a request's work would be done on: what ``auto`` is here.

        Raises:
            SettingsError: this machine has no such device.
        """

    def conformance(self, request: TrainRequest) -> Conformance:
        """Returns what computes the private gradients of a request's model, and in which precision.

        Raises:
            DataError, ModelMismatch: the model cannot be built for the data.
            PrecisionUnavailable: the device cannot compute it finely enough.
        """

    def train(self, request: TrainRequest, received: Vector) -> Trained:
        """Trains without differential privacy, from the model ``received``, float32, shape [d].

        Raises:
            DataError: the data cannot be read, or there is no record.
            ModelMismatch: the model is not of this site's catalog.
            UpdateInvalid: training diverged.
        """

    def train_privately(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Vector:
        """Trains under a plan, on the records that `people` has read; float32, shape [d].

        Raises:
            LeptonError: whatever stopped it; depends on the records.
        """

    def noised_sum(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Integers:
        """Returns what the site adds to a sum whose noise the sites share, its own share included.

        Of the records that `people` has read: int64, shape [d], or [d + 1] with a count behind.

        Raises:
            LeptonError: whatever stopped it; depends on the records.
        """


class LocalTrainer:
    """A trainer in this process."""

    def __init__(self, name: str, data: SiteData, folder: Path, secret: bytes) -> None:
        """Makes a trainer, which reads nothing yet.

        Args:
            name: of the site.
            data: which records are its own.
            folder: the site's.
            secret: key of the hashes by which its people are known.
        """
        self._name, self._data, self._secret = name, data, secret
        self._source = SiteRecords(data, folder)
        self._records: Records | None = None

    def describe(self) -> Described:
        """Says what is there; see `Trainer`."""
        dataset, records = self._source.dataset(), self._source.read()
        gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        return Described(
            records=len(records),
            units=records.unit_count,
            unit=dataset.unit,
            input_shape=list(dataset.input_shape),
            classes=dataset.classes,
            devices=[torch.cuda.get_device_name(index) for index in gpus],
        )

    def initial(self, wanted: Wanted) -> Initial:
        """Builds the model; see `Trainer`."""
        dataset = self._source.dataset()
        outputs = find_task(wanted.task).outputs(dataset.classes, dataset.input_shape)
        base, name = based(wanted.model), wanted.model
        # Where nothing is frozen the base is at the server alone, and any weights will do here.
        if base is not None and not base.frozen:
            name = base.model
        model = initial_model(name, dataset.input_shape, outputs, wanted.seed)
        return Initial(Layout.of(model).digest, read_parameters(model).numpy())

    def people(self) -> frozenset[bytes]:
        """Reads the records; see `Trainer`."""
        self._records = None
        records, unit = self._source.read(), self._source.dataset().unit
        if unit != self._data.unit:
            raise DataInvalid(f"The data's privacy unit is {unit}; say so in site.yaml.")
        self._records = records
        return unit_hashes(records, unit, self._secret)

    def device(self, request: TrainRequest) -> str:
        """Looks for the device; see `Trainer`."""
        return pick_device(request.recipe.device).type

    def conformance(self, request: TrainRequest) -> Conformance:
        """Compares the engine with Opacus; see `Trainer`."""
        dataset = self._source.dataset()
        model = self._model(request, None, channels_last=False)
        return conform(
            model,
            find_task(request.task),
            dataset.input_shape,
            dataset.classes,
            heights(request.recipe, model),
        )

    def train(self, request: TrainRequest, received: Vector) -> Trained:
        """Trains without differential privacy; see `Trainer`."""
        records = self._source.read()
        if request.statistics is not None:
            held = self._source.evaluated_on(records)
            total, cells = self._figure_sum(request, received, held)
            return Trained((total / cells.scale).astype(np.float32), 0.0, len(held))
        return self._train(request, received, self._source.trained_on(records))

    def train_privately(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Vector:
        """Trains under a plan; see `Trainer`."""
        records, task = self._taken(request), find_task(request.task)
        if request.statistics is not None:
            total = plan.clipping_norm * self._bounded_sum(request, received, records)
            return SecretRandom().add_gaussian(total, plan.own_noise).astype(np.float32)
        if request.grows_trees:
            total = self._level_sums(request, received, records, plan)
            noisy = SecretRandom().add_gaussian(total, plan.own_noise)
            return (noisy / plan.sample_rate).astype(np.float32)
        model = self._model(request, received, channels_last=False)
        engine = self.conformance(request)
        return train_private(model, task, records, received, request.recipe, plan, engine)

    def noised_sum(self, request: TrainRequest, received: Vector, plan: PrivacyPlan) -> Integers:
        """Sums under a plan; see `Trainer`."""
        records, task = self._taken(request), find_task(request.task)
        if request.statistics is not None:
            total = plan.clipping_norm * self._bounded_sum(request, received, records)
            return noised(total, plan, SecretRandom())
        if plan.unit == WHOLE_SITE:
            return self._train_whole(request, received, records, plan)
        if request.grows_trees:
            total = self._level_sums(request, received, records, plan)
            return noised(total, plan, SecretRandom())
        model = self._model(request, received, channels_last=False)
        engine = self.conformance(request)
        return noisy_sum(model, task, records, received, request.recipe, plan, engine)

    def _taken(self, request: TrainRequest) -> Records:
        """Returns those of the records whose people were told last that a request is about, once.

        Statistics are about everybody, an evaluation about those who are held back, and training
        about the others.
        """
        records, self._records = self._records, None
        if records is None:
            raise EmptySite("No record was read for this; the people come first.")
        if isinstance(request.statistics, StatisticsQuery):
            return records
        if isinstance(request.statistics, EvaluationQuery):
            return self._source.evaluated_on(records)
        return self._source.trained_on(records)

    def _bounded_sum(
        self, request: TrainRequest, received: Vector, records: Records
    ) -> NDArray[np.float64]:
        """Sums what people add to statistics, each a vector of a norm of 1 at most."""
        if isinstance(request.statistics, EvaluationQuery):
            return self._figure_sum(request, received, records)[0]
        assert request.statistics is not None, "the caller has looked"
        asked = cells_of(request.statistics, self._source.dataset())
        if (asked.digest, asked.size) != (request.layout, len(received)):
            raise ModelMismatch("The server lays out the sum in another way than this site.")
        return bounded_sum(records, asked)

    def _figure_sum(
        self, request: TrainRequest, received: Vector, records: Records
    ) -> tuple[NDArray[np.float64], FigureCells]:
        """Sums what people add to a model's figures, likewise; also returns the sum's layout."""
        model = self._built(request, channels_last=False)
        return figure_sum(request, received, model, records, self._source.dataset())

    def _level_sums(
        self, request: TrainRequest, received: Vector, records: Records, plan: PrivacyPlan
    ) -> NDArray[np.float64]:
        """Sums what people add to a level of trees, each at most a clipping norm long."""
        model = self._model(request, received, channels_last=False)
        return bounded_sums(model, find_task(request.task), records, received, plan, SecretRandom())

    def _train(self, request: TrainRequest, received: Vector, records: Records) -> Trained:
        if request.grows_trees:
            grown = self._model(request, received, channels_last=False)
            sums, loss = plain_sums(grown, find_task(request.task), records, received)
            return Trained(sums, loss, len(records))
        model = self._model(request, received, channels_last=True)
        if len(records) == 0:
            raise EmptySite("This site holds no record; check the data in its site file.")
        seed = site_seed(request.recipe.seed, self._name)
        task = find_task(request.task)
        update, loss = train_plain(model, task, records, received, request.recipe, seed)
        return Trained(update, loss, len(records))

    def _train_whole(
        self, request: TrainRequest, received: Vector, records: Records, plan: PrivacyPlan
    ) -> Integers:
        """Trains as without privacy, and clips and noises the whole update."""
        try:
            update = self._train(request, received, records).update
        except (UpdateInvalid, EmptySite):
            # That training diverged, or had no record, is the site's secret too.
            update = np.zeros_like(received)
        update = update / np.float32(request.recipe.update_scale)
        counted = request.privacy is not None and request.privacy.count_within
        if not counted:
            return noised(clip_update(update, plan.clipping_norm), plan, SecretRandom())
        bound = update_bound(plan.clipping_norm)
        clipped = clip_update(update, bound)
        within = 0.5 if np.linalg.norm(update.astype(np.float64)) <= bound else -0.5
        values = np.append(clipped, within * count_unit(plan.clipping_norm))
        return noised(values, plan, SecretRandom())

    def _model(
        self, request: TrainRequest, received: Vector | None, *, channels_last: bool
    ) -> ResidentModel:
        model = self._built(request, channels_last=channels_last)
        size = model.layout.size if received is None else len(received)
        if model.layout.digest != request.layout or model.layout.size != size:
            raise ModelMismatch("The server's model has another layout than this site's catalog.")
        return model

    def _built(self, request: TrainRequest, *, channels_last: bool) -> ResidentModel:
        dataset = self._source.dataset()
        return resident_model(
            request.model,
            dataset.input_shape,
            find_task(request.task).outputs(dataset.classes, dataset.input_shape),
            # Trees are looked up and not multiplied: no GPU is faster, and float64 is at hand.
            pick_device("cpu" if request.grows_trees else request.recipe.device),
            channels_last=channels_last,
        )


def site_seed(seed: int, site: str) -> int:
    """Returns a seed of its own for each site, so that one request can serve them all."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{site}".encode()).digest()[:7])
