"""What a secure run puts on the wire: masked vectors that look random, and no plain figure."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from scipy import stats

import lepton_client.trainer
from lepton_cli.compose import compose_settings
from lepton_cli.simulated_sites import SimulatedSites
from lepton_client.app import app as client_app
from lepton_client.site import forget_sites
from lepton_common.arrays import digest_of
from lepton_common.audit import read_records
from lepton_common.flower.wire import from_wire, to_wire
from lepton_common.secagg.ring import Ring
from lepton_common.strict import to_json
from lepton_server.app import app as server_app
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.run_folder import RunFolder

SITES, ROUNDS = 5, 2
RECORDS = [{"site"}, {"secagg"}, {"secagg", "masked", "receipt"}]


class Recorded:
    """A finished run, its replies as bytes, and what its sites trained."""

    def __init__(self, tmp_path, *overrides):
        self.trained = []
        self.settings = compose_settings(
            ["task=digits", "model=logistic", f"sites={SITES}", f"rounds={ROUNDS}",
             "engine.workers=1", "secagg=sa1", *overrides]
        )  # fmt: skip
        self.folder = RunFolder(tmp_path / "run-1")
        self.folder.path.mkdir()
        sites = SimulatedSites(self.settings, self.folder)
        sites.found()
        self.rows = {sites.name(index): rows for index, rows in enumerate(sites.parts)}
        self.nodes = {node: Path(config["site"]) for node, config in sites.items()}
        self.grid = SerialisingGrid(client_app, sites)

    def run(self):
        config = {"settings": to_json(self.settings), "run_folder": str(self.folder.path)}
        try:
            server_app(self.grid, Context(1, 1, {}, RecordDict(), config))
        finally:
            self.grid.close()
        self.left = self.grid.left_sites
        self.stream = b"".join(self.left)
        self.replies = [from_wire(data) for data in self.left]
        return self


@pytest.fixture(autouse=True)
def fresh():
    yield
    forget_sites()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    run = Recorded(tmp_path, "privacy=none")
    train = lepton_client.trainer.train_plain

    def remembering(*arguments):
        update, loss = train(*arguments)
        run.trained.append((update, loss))
        return update, loss

    monkeypatch.setattr("lepton_client.trainer.train_plain", remembering)
    return run.run()


def masked_vectors(run):
    return [
        reply.content["masked"]["vector"].data
        for reply in run.replies
        if reply.has_content() and "masked" in reply.content
    ]


def test_each_reply_is_a_stage_of_the_protocol_and_nothing_else(recorded):
    assert len(recorded.left) == SITES * (1 + 5 * ROUNDS)
    for data, reply in zip(recorded.left, recorded.replies, strict=True):
        assert to_wire(reply) == data
        assert set(reply.content) in RECORDS
        assert reply.content.metric_records == {}
        if "receipt" in reply.content:
            receipt = json.loads(reply.content["receipt"]["json"])
            heads = {"audit_head", "ledger_head"}
            assert set(receipt) == {"run", "round", "plan", "steps", "epsilon"} | heads
            assert (receipt["steps"], receipt["epsilon"], receipt["plan"]) == (0, 0.0, None)


def test_no_weight_and_no_loss_is_readable_in_any_form(recorded):
    ring = Ring(32, SITES, 651, recorded.settings.secagg.clip, 0)
    assert len(recorded.trained) == SITES * ROUNDS
    for update, loss in recorded.trained:
        encoded = ring.encode(np.append(update, np.float32(loss)))
        single = np.unique(update[np.abs(update) > 1e-6])[:200]
        needles = [value.tobytes() for value in single]
        needles += [np.float64(value).tobytes() for value in single[:50]]
        needles += [update[start : start + 4].tobytes() for start in range(0, 640, 4)]
        needles += [
            encoded[start : start + 4].tobytes()
            for start in range(0, 640, 4)
            if encoded[start : start + 4].all()
        ]
        for figure in (loss, np.float32(loss)):
            needles += [np.float32(figure).tobytes(), np.float64(figure).tobytes()]
            needles += [np.float64(figure).tobytes()[::-1], repr(float(figure)).encode()]
        found = [needle for needle in needles if any(needle) and needle in recorded.stream]
        # Four random bytes hit a stream of some 100 kB by chance, eight do not.
        assert [needle for needle in found if len(needle) > 4] == []
        assert len(found) <= 2


def test_no_sample_count_is_on_the_wire(recorded):
    assert b"num-examples" not in recorded.stream
    counts = {len(rows) for rows in recorded.rows.values()}
    for reply in recorded.replies:
        for record in reply.content.config_records.values():
            for name, value in record.items():
                if name == "head":
                    assert re.fullmatch("[0-9a-f]{64}", value)
                elif isinstance(value, str):
                    figures = json.loads(value)
                    numbers = {v for v in figures.values() if isinstance(v, int)}
                    assert not numbers & counts
                else:
                    assert isinstance(value, bytes)


def test_the_audit_logs_account_for_every_masked_byte(recorded):
    for node, path in recorded.nodes.items():
        log = {
            record.body["reply_to"]: {item["name"]: item for item in record.body["items"]}
            for record in read_records(path / "audit.jsonl")
            if record.kind == "release"
        }
        for reply in recorded.replies:
            if reply.metadata.src_node_id != node:
                continue
            items = log.pop(reply.metadata.reply_to_message_id)
            if "secagg" in reply.content:
                body = reply.content["secagg"]["body"]
                assert items["secagg"]["sha256"] == digest_of(body)
            if "masked" in reply.content:
                vector = reply.content["masked"]["vector"].data
                assert items["masked"]["sha256"] == digest_of(vector)
                assert set(items["masked"]["provenance"]) == {"secagg"}
        assert log == {}


def test_nothing_stays_in_flowers_context(recorded):
    assert recorded.grid._states == {}


@pytest.mark.parametrize("width", [16, 24, 32])
def test_masked_vectors_of_nothing_but_zeros_look_random(tmp_path, monkeypatch, width):
    def zeros(model, task, records, received, recipe, seed):
        return np.zeros(len(received), np.float32), 0.0

    monkeypatch.setattr("lepton_client.trainer.train_plain", zeros)
    run = Recorded(tmp_path, "privacy=none", f"secagg.width={width}", "rounds=1").run()
    vectors = masked_vectors(run)
    assert len(vectors) == SITES
    data = np.frombuffer(b"".join(vectors), np.uint8)
    assert stats.chisquare(np.bincount(data, minlength=256)).pvalue > 1e-6
    for one, other in itertools.pairwise(vectors):
        differences = np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)
        assert stats.chisquare(np.bincount(differences, minlength=256)).pvalue > 1e-6


def test_an_exception_leaves_its_name_only(tmp_path, monkeypatch):
    train, times = lepton_client.trainer.train_plain, iter(range(10**6))

    def sometimes(*arguments):
        if next(times) == 2:
            raise KeyError("patient Quixote, 42 years")
        return train(*arguments)

    monkeypatch.setattr("lepton_client.trainer.train_plain", sometimes)
    run = Recorded(tmp_path, "privacy=none", "rounds=1", "secagg.colluders=0").run()
    errors = [reply for reply in run.replies if reply.has_error()]
    assert [reply.error.reason for reply in errors] == ["KeyError"]
    assert b"Quixote" not in run.stream
    assert b"Traceback" not in run.stream
    kept = [path for path in run.nodes.values() if (path / "errors.log").exists()]
    assert len(kept) == 1
    assert "Quixote" in (kept[0] / "errors.log").read_text()


def test_with_privacy_the_wire_has_the_same_form(tmp_path):
    run = Recorded(tmp_path, "privacy=record").run()
    assert all(set(reply.content) in RECORDS for reply in run.replies)
    assert len({len(vector) for vector in masked_vectors(run)}) == 1
