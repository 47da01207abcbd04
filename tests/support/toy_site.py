"""A site on disk with a few synthetic records, and the messages that ask it to work."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict

from lepton_client.data import SiteData
from lepton_client.site import Site, SiteFile, forget_sites
from lepton_common.arrays import Layout, digest_of, pack, read_parameters
from lepton_common.datasets.catalog import DATASETS, load_dataset
from lepton_common.datasets.records import Dataset, Records
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.task_identity import speak_for
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import PrivacyRequest, Recipe, TrainRequest, train_content
from lepton_common.models.catalog import initial_model
from lepton_common.policy import SitePolicy
from lepton_common.tasks.catalog import TASKS, Task

PERMISSIVE = SitePolicy(
    allow_without_dp=True,
    allow_without_secagg=True,
    colluders=0,
    max_epsilon=1000.0,
    max_epsilon_per_run=None,
    max_epsilon_per_period=None,
    period_days=365,
    max_delta=1e-3,
    min_noise_multiplier=0.0,
    min_own_noise_multiplier=0.0,
    min_clipping_norm=1e-3,
    max_clipping_norm=1000.0,
    max_batch_size=1024,
    min_cohort=1,
    max_weight_share=1.0,
    devices=["cpu", "cuda"],
    tasks=None,
    models=None,
)
RECIPE = Recipe(
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.0,
    weight_decay=0.0,
    batch_size=8,
    local_epochs=1,
    local_steps=None,
    augmentations=1,
    precision="float32",
    device="cpu",
    proximal_mu=0.0,
    update_scale=1.0,
    seed=1,
)
PRIVACY = PrivacyRequest(
    mode="record",
    count_within=False,
    delta=1e-5,
    sample_rate=0.5,
    noise_multiplier=1.0,
    clipping_norm=1.0,
    steps_per_round=2,
    max_steps=6,
)
MODEL = initial_model("mlp", (4,), 3, seed=0)
PARTNER = SigningKey.generate()  # who signs the rosters of test federations
VECTOR = read_parameters(MODEL).numpy()


def synthetic(count: int = 40, seed: int = 0) -> Records:
    """Returns records of 4 features and 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator)
    return Records(features, torch.randint(0, 3, (count,), generator=generator))


def add_toys(held: dict[str, Records]) -> None:
    """Adds the data set and the task ``toy`` to the catalogs."""
    DATASETS["toy"] = lambda root, prepare: Dataset(
        "toy", held["train"], synthetic(10, seed=1), (4,), 3
    )
    TASKS["toy"] = Task("toy", "toy", "cross_entropy", "nothing")


def write_site(folder: Path, policy: SitePolicy, rows: int, data_id: str = "toy-data") -> None:
    """Makes a site's folder."""
    folder.mkdir()
    data = SiteData(
        id=data_id,
        dataset="toy",
        root=None,
        prepare="public_ranges",
        unit="row",
        rows="rows.npy",
    )
    file = SiteFile(
        name=folder.name,
        public_size=16,
        data=data,
        policy=policy,
    )
    (folder / "site.yaml").write_text(yaml.safe_dump(asdict(file)))
    np.save(folder / "rows.npy", np.arange(rows))
    SigningKey.generate().save(folder / "signing.pem")


@pytest.fixture(autouse=True)
def toy_catalog() -> Iterator[dict[str, Records]]:
    """Adds the data set and the task ``toy``; a test may replace its training records."""
    held = {"train": synthetic()}
    add_toys(held)
    yield held
    del DATASETS["toy"], TASKS["toy"]
    load_dataset.cache_clear()
    forget_sites()


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    """Returns a maker of sites; each call opens the folder anew, as after a restart."""

    def make(policy: SitePolicy = PERMISSIVE, name: str = "site-1", rows: int = 40) -> Site:
        folder = tmp_path / name
        if not folder.exists():
            write_site(folder, policy, rows)
        return Site(folder)

    return make


def request(**changes: object) -> TrainRequest:
    """Returns a valid request for the toy task, with some fields changed."""
    valid = TrainRequest(
        run="run-1",
        round=1,
        task="toy",
        model="mlp",
        prepare="public_ranges",
        cohort=3,
        layout=Layout.of(MODEL).digest,
        model_digest=digest_of(pack(VECTOR).data),
        recipe=RECIPE,
        privacy=None,
        masked=None,
        ledger_heads={},
    )
    return replace(valid, **changes)


def ask(content: RecordDict, message_type: str = "train") -> Message:
    """Returns a message to node 2, with an id as a SuperLink would give it."""
    speak_for(1, 1)
    message = Message(content, dst_node_id=2, message_type=message_type)
    assign_message_id(message, "message-1")
    return message


def train_message(**changes: object) -> Message:
    """Returns the message of `request`."""
    return ask(train_content(request(**changes), VECTOR))


def context(folder: Path) -> Context:
    """Returns the Flower context of a node that serves the site in ``folder``."""
    return Context(1, 2, {"site": str(folder)}, RecordDict(), {})
