"""What all tests share: deterministic hypothesis, published data, and settings to vary."""

import copy
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from soft_token import token  # noqa: F401

with warnings.catch_warnings():
    # typer, which Flower imports, uses names that click deprecates; ours must stay clean.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="typer|click")
    import flwr.app  # noqa: F401

# A folder of the user's own must never decide a test.
os.environ.pop("LEPTON_CACHE", None)

settings.register_profile(
    "lepton",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lepton")

_ROOT = Path(__file__).resolve().parents[1]

_SETTINGS = {
    "task": "digits",
    "model": "logistic",
    "sites": 10,
    "rounds": 5,
    "seed": 1,
    "baselines": False,
    "runs": "runs",
    "data": {
        "root": None,
        "prepare": "public_ranges",
        "partition": "iid",
        "alpha": 0.5,
        "classes_per_site": 2,
        "shards_per_site": 2,
        "sizes": "linear",
        "records_per_site": None,
        "min_records": 1,
        "held_back": 0.0,
    },
    "train": {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "schedule": "constant",
        "warmup_rounds": 0,
        "augmentations": 1,
        "mixup": 0.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 64,
        "local_epochs": 1,
        "local_steps": None,
        "precision": "float32",
        "device": "cpu",
    },
    "strategy": {
        "name": "fedavg",
        "server_learning_rate": 1.0,
        "server_momentum": 0.0,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "tau": 0.001,
        "proximal_mu": 0.0,
        "beta": 0.2,
        "num_malicious_nodes": 1,
        "num_nodes_to_select": 3,
        "average_decay": 0.0,
    },
    "privacy": {
        "mode": "none",
        "epsilon": None,
        "delta": None,
        "clipping_norm": 1.0,
        "clip_quantile": None,
        "sample_rate": 1.0,
        "spare_rounds": 0,
    },
    "engine": {
        "name": "inprocess",
        "workers": 1,
        "threads_per_site": 1,
        "serialise": False,
        "address": None,
        "vectorize": "none",
        "together": 0,
    },
    "secagg": {
        "mode": "none",
        "width": 32,
        "clip": 8.0,
        "colluders": None,
        "attempts": 2,
        "stage_timeout_s": 60.0,
        "compression": "none",
        "coordinates": 0.1,
        "rotate": False,
        "rounding": "nearest",
        "groups": 1,
    },
    "federation": {
        "name": "simulation",
        "cohort": None,
        "quorum": 0.5,
        "round_timeout_s": 60.0,
        "approval_timeout_s": 60.0,
        "weights": "equal",
    },
    "tracker": {"name": "none", "folder": None, "uri": None, "experiment": "lepton"},
    "policy": {
        "allow_without_dp": True,
        "allow_without_secagg": True,
        "colluders": 0,
        "max_epsilon": 1000.0,
        "max_epsilon_per_run": None,
        "max_epsilon_per_period": None,
        "period_days": 365,
        "max_delta": 0.001,
        "min_noise_multiplier": 0.0,
        "min_own_noise_multiplier": 0.0,
        "min_clipping_norm": 0.001,
        "max_clipping_norm": 1000.0,
        "max_batch_size": 1024,
        "min_cohort": 1,
        "max_weight_share": 1.0,
        "devices": ["cpu", "cuda"],
        "tasks": None,
        "models": None,
        "statistics": None,
    },
    "statistics": {"asked": False, "bins": 10, "features": None, "evaluates": None},
    "trees": {
        "depth": 3,
        "bins": 32,
        "learning_rate": 0.3,
        "l2": 1.0,
        "min_gain": 0.0,
        "min_child_weight": 1.0,
    },
}
_PRIVATE = {
    "privacy.mode": "record",
    "privacy.epsilon": 3.0,
    "privacy.delta": 1e-5,
    "train.local_epochs": None,
    "train.local_steps": 1,
}


@pytest.fixture(scope="session")
def repository():
    """The root of the repository."""
    return _ROOT


@pytest.fixture(scope="session")
def vectors():
    """The folder of known answers."""
    return _ROOT / "tests" / "vectors"


@pytest.fixture(scope="session")
def shared_data():
    """The folder of published data sets that some machines have beside the repository."""
    folder = _ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which this machine does not have")
    return folder


@pytest.fixture
def setting_values():
    """Returns plain valid values of all settings, with some replaced by dotted name."""

    def build(changes=None, *, private=False):
        values = copy.deepcopy(_SETTINGS)
        for name, value in {**(_PRIVATE if private else {}), **(changes or {})}.items():
            *path, last = name.split(".")
            place = values
            for part in path:
                place = place[part]
            place[last] = value
        return values

    return build


@pytest.fixture
def make_settings(setting_values):
    """Returns checked settings, with some replaced by dotted name."""
    from lepton_common.settings_rules import parse_settings

    def build(changes=None, *, private=False):
        return parse_settings(setting_values(changes, private=private))

    return build


@pytest.fixture
def speaking():
    """Lets Flower messages be built."""
    from lepton_common.flower.task_identity import speak_for

    speak_for(1, 1)
