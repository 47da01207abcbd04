"""Contract test: Flower's empty run record."""

from flwr.supercore.run import Run

from lepton_common.flower.run import empty_run


def test_flower_still_makes_empty_runs():
    assert hasattr(Run, "create_empty"), "Flower renamed Run.create_empty: see flower/run.py"
    run = empty_run(17)
    assert isinstance(run, Run)
    assert run.run_id == 17
    assert run.override_config == {}
