"""A site's own table in a real PostgreSQL, and read by a real trainer process."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from table_site import TOY, table, write_csv

from lepton_client.connectors.reading import read_records
from lepton_client.connectors.sources import CsvSource, SqlSource
from lepton_client.data import SiteData
from lepton_client.rules import TrainerRules
from lepton_client.trainer_process import TrainerProcess
from lepton_common.datasets.schemas import SCHEMAS
from lepton_common.errors import SourceUnreachable, TableInvalid

pytestmark = pytest.mark.system

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
_WORD = "geheim: 'with \"marks\""


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def clinic():
    """A database on loopback with a table of visits; gives its port and folder."""
    if not _BINARIES:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg")
    binaries = _BINARIES[-1].parent
    user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="lepton-pg-")), _free_port()
    (folder / "word.txt").write_text(_WORD + "\n")
    for path in (folder, folder / "word.txt"):
        if user:
            shutil.chown(path, **user)
    words = [binaries / "initdb", "-D", folder / "db", "-U", "reader", "--auth=scram-sha-256",
             f"--pwfile={folder}/word.txt", "-E", "UTF8", "--no-sync"]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True, cwd=folder, **user)
    server = subprocess.Popen(
        [binaries / "postgres", "-D", folder / "db", "-p", str(port), "-k", folder,
         "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **user,
    )  # fmt: skip
    try:
        _fill(port)
        yield port, folder
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def _fill(port):
    import psycopg

    until = time.monotonic() + 30
    while True:
        try:
            connection = psycopg.connect(
                host="127.0.0.1", port=port, user="reader", password=_WORD, dbname="postgres"
            )
            break
        except psycopg.OperationalError:
            assert time.monotonic() < until, "PostgreSQL does not start"
            time.sleep(0.1)
    with connection:
        connection.execute(
            'create schema ward; create table ward."Visits" (patient text, height numeric, '
            "visits integer, smoker boolean, weight double precision, risk text, at timestamptz)"
        )
        for row in table():
            connection.execute(
                'insert into ward."Visits" values (%s, %s, %s, %s, %s, %s, now())',
                [row[0], row[1], int(row[2]), row[3] == "yes", float(row[4]), row[5]],
            )
    connection.close()


def source(port, folder, **changes):
    usual = {
        "kind": "sql",
        "url": f"postgresql://reader@127.0.0.1:{port}/postgres",
        "table": "ward.Visits",
        "password_file": str(folder / "word.txt"),
    }
    return SqlSource(**{**usual, **changes})


def test_a_table_and_a_query_give_what_a_file_gives(clinic, tmp_path, monkeypatch):
    port, folder = clinic
    write_csv(tmp_path / "own.csv")
    wanted = read_records(CsvSource(kind="csv", path="own.csv"), TOY, tmp_path)
    query = 'select patient, height, visits, smoker, weight, risk from ward."Visits"'
    monkeypatch.setenv("CLINIC_WORD", _WORD)
    for own in (
        source(port, folder),
        source(port, folder, table=None, query=query),
        source(port, folder, password_file=None, password_env="CLINIC_WORD"),
        source(port, folder, url=f"postgresql://reader@:{port}/postgres?host={folder}"),
    ):
        found = read_records(own, TOY, tmp_path)
        assert found.features.equal(wanted.features)
        assert found.labels.equal(wanted.labels)
        assert (found.units == wanted.units).all()


def test_nothing_is_written_and_no_password_is_told(clinic, tmp_path, monkeypatch):
    port, folder = clinic
    monkeypatch.setenv("WRONG_WORD", "geheim-and-wrong")
    wrong = {"password_file": None, "password_env": "WRONG_WORD"}
    for changes, said in [
        (wrong, "lets nobody in"),
        ({"table": "ward.gone"}, "not to what it is asked"),
        ({"table": None, "query": 'delete from ward."Visits" returning *'}, "not to what"),
        ({"url": f"postgresql://reader@127.0.0.1:{_free_port()}/postgres"}, "does not answer"),
    ]:
        with pytest.raises(SourceUnreachable, match=said) as caught:
            read_records(source(port, folder, **changes), TOY, tmp_path)
        assert "geheim" not in str(caught.value)
    assert len(read_records(source(port, folder), TOY, tmp_path)) == len(table())


@pytest.mark.parametrize("isolation", ["process", "namespace"])
def test_the_trainers_process_reads_it_and_says_what_is_wrong(tmp_path, isolation):
    head = [column.name for column in SCHEMAS["breast_cancer"].columns]
    write_csv(tmp_path / "own.csv", [["0.001"] * 30 + ["benign"]] * 3, head)
    (tmp_path / "secret.txt").write_text("not the trainer's")
    rules = TrainerRules(isolation=isolation, launcher=[], threads=1, memory_gib=None, gpus=None)
    data = SiteData(
        id="own", dataset="breast_cancer", root=None, prepare="public_ranges", unit="row",
        rows=None, source=CsvSource(kind="csv", path="own.csv"),
    )  # fmt: skip
    trainer = TrainerProcess("a", data, tmp_path, bytes(32), rules)
    try:
        with pytest.raises(TableInvalid, match="another unit of measure") as caught:
            trainer.describe()
        assert caught.value.counts["mean radius", "unit"] == 3
        low = [str(column.low) for column in SCHEMAS["breast_cancer"].columns[:-1]]
        rows = [[*low, kind] for kind in ("benign", "malignant")]
        with (tmp_path / "own.csv").open("r+") as file:  # the same file: it is mounted
            file.truncate()
            file.write("".join(",".join(line) + "\n" for line in [head, *rows]))
        assert trainer.describe().records == 2
        assert len(trainer.people()) == 2
    finally:
        trainer.stop()
