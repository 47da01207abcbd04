"""Any Flower app under SA1: the strategy wrapper, the mod, and what neither lets through."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from lepton_cli.compose import compose_settings
from lepton_cli.simulated_sites import SimulatedSites
from lepton_cli.simulation import create
from lepton_client.mod import secure_aggregation
from lepton_client.site import forget_sites
from lepton_common.audit import read_records
from lepton_common.errors import SettingsError
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.rounds.collect import collect
from lepton_server.rounds.journal import SumJournal
from lepton_server.strategies.secure import SecureAggregation

SITES = [f"site-{index}" for index in range(1, 6)]
START = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float64)}
COUNTS = np.arange(1, 6)


class RecordingGrid(SerialisingGrid):
    """Keeps the content of every reply."""

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.seen = [*getattr(self, "seen", []), *replies]
        return replies


@pytest.fixture
def federation(tmp_path):
    """Returns a grid of five sites that move every weight by 0.1, 0.2, ... 0.5."""
    settings = compose_settings(["task=breast_cancer", "sites=5", f"runs={tmp_path}"])
    folder = create(settings)
    sites = SimulatedSites(settings, folder)
    app = ClientApp(mods=[secure_aggregation])

    @app.train()
    def train(message, context):
        assert set(message.content) == {"arrays", "config"}
        k = int(context.node_config["k"])
        if k == context.node_config["fails"]:
            raise RuntimeError("patient Smith has a rare disease")
        moved = {
            name: Array((array.numpy() + 0.1 * k).astype(array.dtype))
            for name, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 100 * k, "loss": float(k), "secret": 7.25})
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"secret": 7.25})}), reply_to=message)

    grids = []

    def make(fails=0):
        nodes = {node: {**sites[node], "k": node - 1, "fails": fails} for node in sites}
        grids.append(RecordingGrid(app, nodes, workers=2))
        return grids[-1], folder

    logging.getLogger("flwr").setLevel(logging.ERROR)
    yield make
    for grid in grids:
        grid.close()
    forget_sites()


def run(grid, folder, inner=None, rounds=1, **options):
    strategy = SecureAggregation(
        inner or flower.FedAvg(),
        journal=folder.path / "sums",
        metrics=("loss",),
        weight_cap=500,
        **options,
    )
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    return strategy.start(grid, arrays, num_rounds=rounds)


def weighted(values, counts=COUNTS):
    return float((values * counts).sum() / counts.sum())


def test_the_inner_strategy_gets_the_weighted_mean(federation):
    result = run(*federation(), rounds=2)
    step = weighted(0.1 * COUNTS)
    assert result.arrays["a"].numpy() == pytest.approx(2 * step, abs=1e-4)
    assert result.arrays["b"].numpy() == pytest.approx(1 + 2 * step, abs=1e-4)
    assert result.arrays["b"].dtype == "float64"
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(weighted(COUNTS), abs=1e-3)


def test_an_adaptive_strategy_works_as_it_is(federation):
    inner = flower.FedAdam(eta=0.1, eta_l=0.1, beta_1=0.0, beta_2=0.0, tau=1e-9)
    result = run(*federation(), inner=inner)
    # Without memory Adam moves by eta in the direction of the mean's sign.
    assert result.arrays["a"].numpy() == pytest.approx(0.1, abs=1e-3)


def test_a_site_that_fails_drops_out_without_its_words(federation):
    grid, folder = federation(fails=3)
    result = run(grid, folder)
    left = COUNTS[COUNTS != 3]
    assert result.arrays["a"].numpy() == pytest.approx(weighted(0.1 * left, left), abs=1e-4)
    reasons = [reply.error.reason for reply in grid.seen if reply.has_error()]
    assert reasons == ["RuntimeError"]
    assert "Smith" in (folder.site("site-3") / "errors.log").read_text()


def test_nothing_readable_is_on_the_wire_and_nothing_secret_in_a_context(federation):
    grid, folder = federation()
    run(grid, folder)
    assert grid._states == {}
    for reply in grid.seen:
        assert not reply.content.metric_records
        assert set(reply.content) <= {"site", "secagg", "masked"}
    for site in SITES:
        kinds = {
            item["name"]: item["provenance"]
            for record in read_records(folder.site(site) / "audit.jsonl")
            if record.kind == "release"
            for item in record.body["items"]
        }
        assert set(kinds["masked"]) == {"secagg"}
        assert kinds["secagg"] == "protocol"


def test_what_the_server_could_read_is_refused(federation):
    grid, _ = federation()
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    for kind, error in (("train", "MalformedMessage"), ("evaluate", "ConsentRefused")):
        contents = {2: RecordDict({"arrays": arrays})}
        assert dict(collect(grid, contents, kind, 20.0)) == {2: error}


def test_terms_that_change_in_mid_round_are_refused(federation, monkeypatch):
    from lepton_server.strategies import secure

    grid, folder = federation()
    honest, asked = secure.terms_record, []

    def other_terms(terms):
        asked.append(terms)
        if len(asked) > 5:  # after the advertisements
            terms = replace(terms, metrics=["secret"], weighted_by="secret", weight_cap=1)
        return honest(terms)

    monkeypatch.setattr(secure, "terms_record", other_terms)
    result = run(grid, folder)
    assert result.arrays is None or not result.train_metrics_clientapp
    assert {r.error.reason for r in grid.seen if r.has_error()} == {"PolicyViolation"}


def altered(grid, change):
    """Lets each message with arrays to node 4 arrive changed, as only a lying server would."""
    push = grid.push_messages

    def pushing(messages):
        return push(
            [
                change(m) if m.metadata.dst_node_id == 4 and "arrays" in m.content else m
                for m in messages
            ]
        )

    grid.push_messages = pushing
    return grid


def other_config(message):
    content = RecordDict(dict(message.content))
    content["config"] = ConfigRecord({**content["config"], "lr": 0.5})
    return Message(content, dst_node_id=4, message_type="train", ttl=60.0)


def more_records(message):
    content = RecordDict(dict(message.content))
    content["more"] = ConfigRecord({"lr": 0.5})
    return Message(content, dst_node_id=4, message_type="train", ttl=60.0)


def other_group(message):
    return Message(
        message.content, dst_node_id=4, message_type="train", ttl=60.0, group_id="victim"
    )


@pytest.mark.parametrize("change", [other_config, more_records, other_group])
def test_whatever_an_app_reads_is_bound_to_the_round(federation, change):
    """Else a server could let all but one site train nothing, and read the one in the sum."""
    grid, folder = federation()
    run(altered(grid, change), folder)
    assert {r.error.reason for r in grid.seen if r.has_error()} == {"PolicyViolation"}
    assert {r.metadata.src_node_id for r in grid.seen if r.has_error()} == {4}


def test_sites_refuse_another_run_configuration_than_their_own(federation):
    grid, folder = federation()
    result = run(grid, folder, run_config={"lr": 0.5})
    assert not result.train_metrics_clientapp
    assert {r.error.reason for r in grid.seen if r.has_error()} == {"PolicyViolation"}


@pytest.mark.parametrize("facts", ["{}", "not json", None])
def test_a_false_introduction_costs_the_liar_its_place_only(federation, facts):
    grid, folder = federation()
    pull = grid.pull_messages

    def pulling(ids):
        replies = []
        for reply in pull(ids):
            if reply.metadata.src_node_id == 3 and "site" in reply.content:
                if facts is None:  # it claims to be another
                    reply.content["site"] = names["site"]
                else:
                    reply.content["site"] = ConfigRecord({"json": facts})
            elif reply.has_content() and "site" in reply.content:
                names["site"] = reply.content["site"]
            replies.append(reply)
        return replies

    names = {"site": ConfigRecord({"json": "{}"})}
    grid.pull_messages = pulling
    result = run(grid, folder)
    assert result.train_metrics_clientapp


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 17}, "width"),
        ({"clip": -1.0}, "clip"),
        ({"groups": -1}, "groups"),
        ({"weight_cap": 0}, "weight_cap"),
        ({"metrics": ("a b",)}, "metrics"),
    ],
)
def test_options_that_no_round_could_keep_are_refused_at_once(tmp_path, options, said):
    with pytest.raises(SettingsError, match=said):
        SecureAggregation(flower.FedAvg(), journal=tmp_path, **options)


def test_a_colluder_bound_below_the_policy_is_refused(federation):
    grid, folder = federation()
    for site in SITES:
        path = folder.site(site) / "site.yaml"
        path.write_text(path.read_text().replace("colluders: 0", "colluders: 2"))
    result = run(grid, folder, colluders=1)
    assert not result.train_metrics_clientapp
    assert {r.error.reason for r in grid.seen if r.has_error()} == {"PolicyViolation"}


def test_strategies_that_need_single_updates_are_refused_with_the_reason(tmp_path):
    for inner in (flower.Krum(), flower.FedMedian(), flower.QFedAvg(client_learning_rate=0.1)):
        with pytest.raises(SettingsError, match="single updates"):
            SecureAggregation(inner, journal=tmp_path)
    for inner in (flower.FedAvg(), flower.QFedAvg(client_learning_rate=0.1)):
        with pytest.raises(SettingsError, match="single updates"):
            SecureAggregation(inner, journal=tmp_path, groups=3)


def test_a_robust_strategy_sees_the_weighted_means_of_groups(federation, monkeypatch):
    seen, groupings = [], []
    keep = SumJournal.keep_grouping

    def remembering(self, grouping):
        groupings.append([[int(name[-1]) for name, _ in group] for group in grouping.groups])
        keep(self, grouping)

    class Watching(flower.FedMedian):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.append([float(r.content["arrays"]["a"].numpy()[0, 0]) for r in replies])
            return super().aggregate_train(server_round, replies)

    monkeypatch.setattr(SumJournal, "keep_grouping", remembering)
    monkeypatch.setattr("lepton_server.strategies.secure._ROBUST", (Watching,))
    grid, folder = federation()
    result = run(grid, folder, inner=Watching(), rounds=3, groups=2, colluders=0)
    assert [reply.error.reason for reply in grid.seen if reply.has_error()] == []
    moved = [0.0, *(float(np.mean(means)) for means in seen)]
    for round_, (groups, means) in enumerate(zip(groupings, seen, strict=True)):
        expected = [
            moved[round_] + weighted(0.1 * np.array(group), np.array(group)) for group in groups
        ]
        assert means == pytest.approx(expected, abs=1e-4)
    assert result.arrays["a"].numpy() == pytest.approx(moved[-1], abs=1e-4)
    assert len(seen) == 3
