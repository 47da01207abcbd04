"""The same apps in Flower's own simulation runtime and in ours, side by side."""

import json
import shutil
import sys

import numpy as np
import pytest
from flower_runtime import run_as_flower


@pytest.fixture
def both(run_app, copied, tmp_path):
    """Returns a way to run an app in both, and to get what it left in its folder in each."""

    def run(name, nodes):
        theirs = tmp_path / "as-flower" / name
        shutil.copytree(copied(name), theirs)
        run_as_flower(theirs, nodes)
        for module in [m for m in sys.modules if m.partition(".")[0] in (name, f"{name}_app")]:
            del sys.modules[module]
        ended = run_app(name, f"nodes={nodes}", "engine.threads_per_site=1")
        assert ended.code == 0, ended.err
        return theirs, ended.app

    return run


def test_fedavg_saves_the_same_model(both):
    theirs, ours = (
        np.load(folder / "final_model.npz")["arr_0"] for folder in both("numpy_fedavg", 3)
    )
    # Flower samples nodes in a random order, so sums are rounded in another one.
    assert np.allclose(theirs, ours, rtol=1e-12)


def test_queries_mods_and_errors_are_the_same(both):
    theirs, ours = (
        json.loads((folder / "found.json").read_text()) for folder in both("mods_queries", 3)
    )
    histograms = [found.pop("histogram") for found in (theirs, ours)]
    means = [found.pop("mean_of") for found in (theirs, ours)]
    # Flower's node ids are drawn at random, and with them the order of the answers.
    counts = [sorted(map(str, found)) for found in histograms]
    assert counts[0] == counts[1]
    assert sorted(m["mean"] for m in means[0]) == sorted(m["mean"] for m in means[1])
    for found in (theirs, ours):
        found.pop("who")
        code, reason = found.pop("unknown")
        assert code == 2
        assert "No query function registered with name 'nonsense'" in reason
    assert theirs == ours


def test_state_is_kept_and_dropped_alike(both):
    both("stateful", 3)  # the server's own assertions hold in both


def test_an_app_in_flowers_older_form_comes_to_the_same(both):
    theirs, ours = (json.loads((f / "model.json").read_text()) for f in both("legacy", 3))
    assert theirs == pytest.approx(ours, rel=1e-12)
