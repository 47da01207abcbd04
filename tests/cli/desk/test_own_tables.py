"""What a site's operator reads when the site's own table is wrong."""

import contextlib
import json

import pytest
import yaml
from desk_folder import Folder, folder  # noqa: F401
from table_site import TOY, point, table, write_csv

from lepton_cli.desk import examined
from lepton_client.connectors.report import REPORT_FILE
from lepton_client.trainer import LocalTrainer
from lepton_common.datasets.schemas import SCHEMAS

PROCESS = {"isolation": "process", "launcher": [], "threads": 1, "memory_gib": None, "gpus": None}


@pytest.fixture
def own(folder, monkeypatch):  # noqa: F811
    """A site whose table has a label that the schema does not list."""
    monkeypatch.setitem(SCHEMAS, "toy", TOY)
    rows = table()
    rows[4][5] = "fatal"
    write_csv(folder.path / "own.csv", rows)
    point(folder.path)
    return folder


def check_report(folder):  # noqa: F811
    report = json.loads((folder.path / REPORT_FILE).read_text())
    assert report["broken"] == [{"column": "risk", "rule": "category", "rows": 1}]


def test_a_rehearsal_says_what_to_mend_and_keeps_a_report(lepton, own):
    own.propose()
    ended = lepton("site", "rehearse", "site-1", "run-1")
    assert ended.code == 3
    assert "TableInvalid" in ended.err
    assert "'risk' holds categories that the schema does not list" in " ".join(ended.err.split())
    assert "fatal" not in ended.err
    check_report(own)
    write_csv(own.path / "own.csv")
    assert lepton("site", "rehearse", "site-1", "run-1").code == 0


def test_the_doctor_says_what_to_mend_and_keeps_a_report(lepton, own, monkeypatch):
    @contextlib.contextmanager
    def here(desk):
        yield LocalTrainer(desk.file.name, desk.file.data, desk.folder, bytes(32))

    monkeypatch.setattr(examined, "trainer_of", here)
    own.change(trainer=PROCESS)
    ended = lepton("site", "doctor", "site-1", "--json", "--offline")
    found = {finding["check"]: finding for finding in json.loads(ended.out)}
    assert found["trainer"]["level"] == "ok"
    assert found["data"]["level"] == "fault"
    assert "map them" in found["data"]["said"]
    check_report(own)


def test_a_site_file_that_contradicts_itself_is_refused_without_its_secrets(lepton, own):
    point(own.path, {"kind": "sql", "url": "postgresql://me:geheim@host/db", "table": "visits"})
    ended = lepton("site", "doctor", "site-1", "--json", "--offline")
    said = json.loads(ended.out)[0]["said"]
    assert "password_file or password_env" in said
    assert "geheim" not in ended.out + ended.err


def test_a_site_is_made_with_a_table_of_its_own(lepton, tmp_path):
    head = [column.name for column in SCHEMAS["breast_cancer"].columns]
    low = [str(column.low) for column in SCHEMAS["breast_cancer"].columns[:-1]]
    write_csv(tmp_path / "own.csv", [[*low, kind] for kind in ("benign", "malignant")], head)
    source = {"kind": "csv", "path": str(tmp_path / "own.csv")}
    (tmp_path / "source.yaml").write_text(yaml.safe_dump(source))
    words = ["site", "init", "a", "--name", "a", "--dataset", "breast_cancer"]
    ended = lepton(*words, "--source", "source.yaml")
    assert ended.code == 0, ended.err
    made = yaml.safe_load((tmp_path / "a" / "site.yaml").read_text())
    assert made["data"]["source"]["path"] == source["path"]
    assert (made["public_size"], made["data"]["unit"]) == (2, "row")
    shown = lepton("site", "data", "a")
    assert "2 units (row)" in shown.out, shown.err
