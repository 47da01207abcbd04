"""What Ray says that cannot start is a named error of ours, whatever kind it is of."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from lepton_common.errors import RayUnreachable
from lepton_common.flower.ray_backend import RayActors


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
