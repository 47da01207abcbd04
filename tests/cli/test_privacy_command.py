"""Tests of `lepton privacy`: what it computes, prints, draws and refuses."""

import json

import pytest
from typer.testing import CliRunner

from lepton_cli.commands.privacy import app
from lepton_common.errors import LedgerInvalid, LedgerRolledBack, PlanError, SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.privacy.accounting import GaussianEvent, calibrate, epsilon
from lepton_common.privacy.ledger_file import LedgerFile

_PLAN = ("plan", "--rounds", "10", "--batch", "256", "--public-size", "4096")
_STEP = ("epsilon", "--steps", "1")
_FULL = ("plan", "--rounds", "30", "--batch", "4096", "--public-size", "4096")


@pytest.fixture(scope="module", autouse=True)
def rough_pictures():
    """Not here."""


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def _call(*words):
    ended = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.output


def _json(*words):
    return json.loads(_call(*words, "--json"))


def test_three_accountants_bound_the_usual_example():
    words = ("epsilon", "--sample-rate", "0.01", "--noise-multiplier", "1.0", "--steps", "1000")
    found = _json(*words, "--delta", "1e-5")
    assert found == {
        "pld": pytest.approx(1.82824, abs=2e-5),
        "rdp": pytest.approx(2.10137, abs=2e-5),
        "prv": pytest.approx(1.83837, abs=2e-5),
    }
    table = _call(*words)
    for name, shown in {"pld": "1.8283", "rdp": "2.1014", "prv": "1.8384"}.items():
        row = next(line for line in table.splitlines() if name in line)
        assert shown in row  # rounded up
    assert "1000 steps, at delta 1e-05" in table


def test_an_accountant_without_an_answer_is_null_and_a_dash(monkeypatch):
    monkeypatch.setattr(
        "lepton_common.privacy.accounting.bounds",
        lambda *_: {"pld": 1.0, "rdp": 2.0, "prv": None},
    )
    words = ("epsilon", "--sample-rate", "0.1", "--noise-multiplier", "1", "--steps", "1")
    assert _json(*words)["prv"] is None
    row = next(line for line in _call(*words).splitlines() if "prv" in line)
    assert row.split("│")[2].strip() == "-"


@pytest.mark.slow
def test_a_plan_for_shared_noise_says_what_it_rests_on():
    words = (*_PLAN, "--epsilon", "3", "--mode", "distributed", "--weights", "7850")
    plan = _json(*words)
    assert 2.94 < plan["epsilon"] <= 3.0
    shared = plan["shared"]
    assert (shared["sites"], shared["survivors"], shared["colluders"]) == (10, 7, 3)
    assert shared["own_noise_multiplier"] == pytest.approx(plan["noise_multiplier"] / 2)
    assert shared["epsilon_without_secure_aggregation"] > plan["epsilon"]
    alone = _json(*_PLAN, "--epsilon", "3")
    assert 1.0 < plan["noise_multiplier"] / alone["noise_multiplier"] < 1.15
    said = " ".join(_call(*words).split())
    assert "Of 10 sites 3 may drop out and 3 collude" in said
    assert "privacy=distributed" in said


def test_shared_noise_needs_one_step_a_round():
    with pytest.raises(PlanError, match="steps_per_round"):
        _call(*_PLAN, "--epsilon", "3", "--mode", "distributed", "--local-steps", "2")


def test_a_plan_meets_its_target_and_says_how_epsilon_grows():
    plan = _json(*_PLAN, "--epsilon", "3", "--delta", "1e-6")
    assert plan["sample_rate"] == 256 / 4096
    assert plan["expected_batch"] == 256
    assert plan["public_size"] == 4096
    noise = calibrate(3.0, 1e-6, lambda sigma: GaussianEvent(256 / 4096, sigma, 10))
    assert plan["noise_multiplier"] == noise
    assert 2.94 < plan["epsilon"] <= 3.0
    assert [row["round"] for row in plan["curve"]] == list(range(1, 11))
    for row in plan["curve"]:
        event = GaussianEvent(plan["sample_rate"], plan["noise_multiplier"], row["steps"])
        assert row["steps"] == row["round"]
        assert row["epsilon"] == epsilon((event,), 1e-6)
    assert plan["curve"][-1]["epsilon"] == plan["epsilon"]


def test_local_steps_multiply_the_rounds():
    plan = _json(*_FULL, "--noise-multiplier", "20", "--local-steps", "4")
    assert [row["steps"] for row in plan["curve"]] == list(range(12, 121, 12))
    assert plan["epsilon"] == epsilon((GaussianEvent(1.0, 20.0, 120),), 1e-5)


def test_the_inverse_of_a_plan_is_the_plan():
    plan = _json(*_FULL, "--epsilon", "2")
    inverse = _json(*_FULL, "--noise-multiplier", repr(plan["noise_multiplier"]))
    assert inverse == plan


def test_few_rounds_have_as_many_rows():
    plan = _json("plan", "--noise-multiplier", "5", "--rounds", "3", "--batch", "9", *_PLAN[5:])
    assert [row["round"] for row in plan["curve"]] == [1, 2, 3]


@pytest.mark.parametrize(("size", "class_"), [(4096, 4096), (5000, 4096), (2900, 4096), (90, 64)])
def test_only_the_class_of_a_size_enters(size, class_):
    words = ("plan", "--rounds", "2", "--batch", "64", "--noise-multiplier", "5")
    plan = _json(*words, "--public-size", str(size))
    assert plan["public_size"] == class_
    assert plan == _json(*words, "--public-size", str(class_))


def test_a_batch_beyond_the_site_takes_all_of_it():
    plan = _json(
        "plan", "--rounds", "2", "--batch", "999", "--public-size", "64", "--noise-multiplier", "5"
    )
    assert plan["sample_rate"] == 1.0
    assert plan["expected_batch"] == 64


def test_a_plan_is_a_table_and_the_settings_of_a_run():
    shown = _call(*_FULL, "--epsilon", "2")
    plan = _json(*_FULL, "--epsilon", "2")
    assert f"noise multiplier {plan['noise_multiplier']:.4f}" in shown
    assert "public size class 4096" in shown
    assert len([line for line in shown.splitlines() if line.startswith("│")]) == 10
    assert "privacy=record rounds=30 privacy.epsilon=" in shown
    assert "privacy.sample_rate=1 privacy.spare_rounds=0 train.local_steps=1" in shown


@pytest.mark.parametrize("asked", [("--epsilon", "2"), ("--noise-multiplier", "9")])
def test_a_plan_is_drawn_as_a_png(asked, tmp_path):
    path = tmp_path / "curve.png"
    _call(*_FULL, *asked, "--plot", str(path), "--json")
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 910  # 7 inches at 130 dots


def test_help_teaches():
    for command, words in {
        "epsilon": ("upper bounds", "--sample-rate 0.01", "Poisson"),
        "plan": ("public", "--epsilon 3", "instead of --epsilon", "spare_rounds"),
    }.items():
        shown = _call(command, "--help")
        assert all(word in shown for word in words)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ((*_PLAN,), "Give either"),
        ((*_PLAN, "--epsilon", "3", "--noise-multiplier", "1"), "Give either"),
        ((*_PLAN, "--epsilon", "0"), "--epsilon 0 must"),
        ((*_PLAN, "--epsilon", "nan"), "--epsilon nan must"),
        ((*_PLAN, "--epsilon", "3", "--delta", "1"), "--delta 1 must"),
        ((*_PLAN, "--epsilon", "3", "--local-steps", "0"), "--local-steps 0 must"),
        ((*_PLAN, "--epsilon", "3", "--batch", "0"), "--batch 0 must"),
        ((*_PLAN, "--epsilon", "3", "--public-size", "0"), "--public-size 0 must"),
        ((*_PLAN, "--epsilon", "3", "--local-steps", "1000000", "--rounds", "11"), "--steps 1.1e"),
        ((*_PLAN, "--noise-multiplier", "0.01"), "--noise-multiplier 0.01 must"),
        ((*_STEP, "--sample-rate", "1.5", "--noise-multiplier", "1"), "1.5 must"),
        ((*_STEP, "--sample-rate", "1", "--noise-multiplier", "inf"), "inf must"),
    ],
)  # fmt: skip
def test_values_without_meaning_are_refused_as_settings(words, fault):
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, SettingsError)
    assert any(fault in sentence for sentence in ended.exception.faults)


def test_all_faults_are_told_at_once():
    ended = CliRunner().invoke(
        app, ("epsilon", "--sample-rate", "0", "--noise-multiplier", "0", "--steps", "0")
    )
    assert len(ended.exception.faults) == 3


def test_another_mode_is_a_usage_error():
    ended = CliRunner().invoke(app, (*_PLAN, "--epsilon", "3", "--mode", "site"))
    assert ended.exit_code == 2


@pytest.fixture
def ledger(tmp_path):
    """A site's folder with a ledger of two charges, one of them released."""
    key = SigningKey.generate()
    key.save(tmp_path / "signing.pem")
    ledger = LedgerFile(tmp_path / "ledger.db", key)
    version = ledger.add_version("patients", "patient", frozenset({b"a" * 16}))
    for round_ in (1, 2):
        event = {"sample_rate": 1.0, "noise_multiplier": 10.0, "steps": 50}
        charge = ledger.append(
            "charge",
            {"round": round_, "version": version, "delta": 1e-5, "event": event, "unit": "row"},
        )
    ledger.append("release", {"charge": charge.hash})
    return tmp_path


def test_an_emptied_ledger_is_refused_and_left_as_it_is(ledger):
    path = ledger / "ledger.db"
    path.write_bytes(b"")
    told = CliRunner().invoke(app, ["verify", str(ledger)])
    assert isinstance(told.exception, LedgerInvalid)
    assert "holds no entry" in str(told.exception)
    assert path.read_bytes() == b""


@pytest.mark.slow
def test_a_plan_that_no_run_could_have_is_refused(tmp_path):
    words = ["--rounds", "10", "--batch", "25", "--public-size", "100", "--epsilon", "3"]
    for more, said in (
        (["--mode", "distributed", "--sites", "10", "--colluders", "9"], "needs 11 sites"),
        (["--plot", str(tmp_path / "nowhere" / "x.png")], "must be a .png file"),
        (["--plot", str(tmp_path / "x.pdf")], "must be a .png file"),
    ):
        told = CliRunner().invoke(app, ["plan", *words, *more])
        assert isinstance(told.exception, SettingsError)
        assert said in str(told.exception)
    told = CliRunner().invoke(app, ["plan", *words, "--mode", "distributed", "--sites", "5"])
    assert "sites=5 secagg.colluders=1" in " ".join(told.stdout.split())


def test_verify_prints_what_each_data_set_spent(ledger):
    told = CliRunner().invoke(app, ["verify", str(ledger), "--json"])
    assert told.exit_code == 0
    document = json.loads(told.stdout)
    assert (document["entries"], document["charges"], document["released"]) == (5, 2, 1)
    (data,) = document["data"]
    assert data["data"] == "patients"
    assert data["epsilon"] == pytest.approx(4.377178, abs=1e-4)  # Balle and Wang: 100 steps
    told = CliRunner().invoke(app, ["verify", str(ledger), "--head", document["head"]])
    assert told.exit_code == 0
    assert "Verified" in told.stdout


@pytest.mark.parametrize("how", ["tampered", "rolled back", "missing", "another key"])
def test_verify_finds_what_is_wrong(ledger, how):
    path, options = ledger / "ledger.db", []
    if how == "tampered":
        path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":7'))
    elif how == "rolled back":
        options = ["--head", "a" * 64]
    elif how == "missing":
        path.unlink()
    else:
        options = ["--key", SigningKey.generate().public_hex]
    told = CliRunner().invoke(app, ["verify", str(ledger), *options])
    expected = LedgerRolledBack if how == "rolled back" else LedgerInvalid
    assert isinstance(told.exception, expected)
    assert told.exception.exit_code == 4
