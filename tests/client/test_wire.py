"""Every byte that leaves the sites in a whole run is one that the audit log accounts for."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from lepton_cli.compose import compose_settings
from lepton_cli.simulated_sites import SimulatedSites
from lepton_client.app import app as client_app
from lepton_common.arrays import digest_of
from lepton_common.audit import read_records
from lepton_common.chain import GENESIS
from lepton_common.datasets.catalog import load_dataset
from lepton_common.flower.wire import from_wire, to_wire
from lepton_common.messages import Receipt, SiteFacts
from lepton_common.strict import parse_json, to_json
from lepton_server.app import app as server_app
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.run_folder import RunFolder

RECORDS = {"site": SiteFacts, "receipt": Receipt}


def run_on_the_wire(tmp_path, *overrides):
    settings = compose_settings(
        ["task=breast_cancer", "sites=3", "rounds=2", "engine.workers=1", "secagg=none", *overrides]
    )
    folder = RunFolder(tmp_path / "run-1")
    folder.path.mkdir()
    dataset = load_dataset("breast_cancer", None, "public_ranges")
    nodes = SimulatedSites(settings, folder)
    nodes.found()
    grid = SerialisingGrid(client_app, nodes)
    config = {"settings": to_json(settings), "run_folder": str(folder.path)}
    server_app(grid, Context(1, 1, {}, RecordDict(), config))
    grid.close()
    return grid.left_sites, {node: Path(nodes[node]["site"]) for node in nodes}, dataset


def contents_of(message):
    """Returns every item of a reply as the bytes that the door logged."""
    items = {}
    for name, record in message.content.items():
        if name == "update":
            assert set(record) == {"vector"}
            items[name] = record["vector"].data
        elif name == "metrics":
            items |= {metric: np.float64(value).tobytes() for metric, value in record.items()}
        else:
            assert set(record) == {"json"}
            stamped = parse_json(RECORDS[name], record["json"])
            heads = {f.name for f in fields(stamped)} & {"audit_head", "ledger_head"}
            items[name] = to_json(replace(stamped, **dict.fromkeys(heads, GENESIS))).encode()
            # The text is canonical: nothing hides in its spelling.
            assert record["json"] == to_json(stamped)
    return items


@pytest.mark.parametrize("privacy", ["record", "none"])
def test_the_audit_logs_account_for_every_byte_of_a_run(tmp_path, privacy):
    left, sites, _ = run_on_the_wire(tmp_path, f"privacy={privacy}")
    assert len(left) == 3 * (1 + 2)
    logs = {
        node: {
            record.body["reply_to"]: record
            for record in read_records(path / "audit.jsonl")
            if record.kind == "release"
        }
        for node, path in sites.items()
    }
    for data in left:
        message = from_wire(data)
        # No byte beyond the parsed fields, and no field beyond Flower's own addressing.
        assert to_wire(message) == data
        metadata = {key.lstrip("_"): value for key, value in vars(message.metadata).items()}
        assert set(metadata) <= {
            "run_id", "message_id", "src_node_id", "dst_node_id", "src_task_id", "dst_task_id",
            "reply_to_message_id", "group_id", "created_at", "ttl", "message_type", "delivered_at",
        }  # fmt: skip
        assert (metadata["message_id"], metadata["group_id"]) == ("", "")
        record = logs[message.metadata.src_node_id].pop(message.metadata.reply_to_message_id)
        items = contents_of(message)
        assert [entry["name"] for entry in record.body["items"]] == list(items)
        for entry in record.body["items"]:
            assert entry["sha256"] == digest_of(items[entry["name"]])
            assert entry["bytes"] == len(items[entry["name"]])
            proof = entry["provenance"]
            if entry["name"] in ("update", "loss"):
                assert (proof == "unprotected") if privacy == "none" else ("dp" in proof)
        if privacy == "record":
            assert "loss" not in items
        stamped = message.content.get("receipt") or message.content["site"]
        assert json.loads(stamped["json"])["audit_head"] == record.hash
    assert not any(logs.values())


def test_no_record_and_no_label_count_is_on_the_wire(tmp_path):
    left, sites, dataset = run_on_the_wire(tmp_path, "privacy=record")
    stream = b"".join(left)
    for path in sites.values():
        rows = np.load(path / "rows.npy")
        for features in dataset.train.features[rows[:20]].numpy():
            assert features[:4].tobytes() not in stream
        assert rows[:3].tobytes() not in stream
    assert b"num-examples" not in stream
