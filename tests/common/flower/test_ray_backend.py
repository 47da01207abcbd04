"""Contract test: what is used of Flower's Ray backend is there; tests/system has Ray itself."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lepton_common.errors import RayMissing, RayUnreachable
from lepton_common.flower.ray_backend import RayActors

# In a process of its own: importing Ray warns.
_LOOK = """
import inspect, re
from flwr.server.superlink.fleet.vce.backend.raybackend import BasicActorPool, RayBackend

assert list(inspect.signature(RayBackend.__init__).parameters) == ["self", "backend_config"]
asked = list(inspect.signature(RayBackend.process_message).parameters)
assert asked == ["self", "message", "context"], asked
looked = inspect.getsource(RayBackend.process_message)
assert set(re.findall(r"context[.]([a-z_]+)", looked)) == {"node_config"}
assert looked.count("add_actor_back_to_pool") == 1
for name in ("add_actor_back_to_pool", "terminate_all_actors"):
    assert callable(getattr(BasicActorPool, name)), name
pool = inspect.getsource(BasicActorPool)
for name in ("self._future_to_actor", "self.create_actor_fn", "self.pool:"):
    assert name in pool, name
print("good")
"""


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RayMissing, match=r"pip install 'lepton-fl\[ray\]'"):
        RayActors(lambda: None, address=None, workers=1, cpus=1)


@pytest.mark.slow  # Ray takes ten seconds to import
def test_flowers_backend_is_as_it_is_used():
    ended = subprocess.run(
        [sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stdout.strip() == "good", ended.stderr


@pytest.mark.parametrize("kind", [Exception, RuntimeError, OSError])
def test_ray_that_does_not_start_is_named(monkeypatch, kind):
    def late(config):
        raise kind("The current node timed out during startup.")

    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")  # which it sets, so that it is undone here
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name == "ray" or found(name, *rest)
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    backend = "flwr.server.superlink.fleet.vce.backend.raybackend"
    monkeypatch.setitem(sys.modules, backend, SimpleNamespace(RayBackend=late))
    with pytest.raises(RayUnreachable, match="cannot be started on this machine: The current node"):
        RayActors(lambda: None, address=None, workers=1, cpus=1)
