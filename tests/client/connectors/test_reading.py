"""One table gives the same records from every kind of source."""

import sqlite3

import numpy as np
import polars as pl
import pytest
import torch
from table_site import HEAD, TOY, table, write_csv

from lepton_client.connectors.reading import facts, read_records
from lepton_client.connectors.sources import SqlSource, read_source
from lepton_client.data import SiteData
from lepton_common.datasets.schema import Column, Schema, Windows
from lepton_common.datasets.schemas import SCHEMAS
from lepton_common.errors import SettingsError, SourceUnreachable
from lepton_common.strict import parse


def source(**values):
    found, faults = parse(SiteData, {
        "id": "own", "dataset": "toy", "root": None, "prepare": "public_ranges",
        "unit": "patient", "rows": None, "source": values,
    })  # fmt: skip
    assert not faults
    assert not found.faults(cut_off=True)
    return found.source


def typed():
    frame = pl.DataFrame(table(), schema=HEAD, orient="row")
    return frame.with_columns(
        pl.col("height", "weight").cast(pl.Float64),
        pl.col("visits").cast(pl.Int32),
        pl.col("smoker") == "yes",
        pl.col("risk").cast(pl.Categorical),
    )


def database(path):
    with sqlite3.connect(path) as connection:
        connection.execute(
            "create table visits (patient text, height real, visits integer, smoker boolean, "
            "weight real, risk text)"
        )
        for row in typed().rows():
            connection.execute("insert into visits values (?, ?, ?, ?, ?, ?)", row)
    connection.close()


def of(tmp_path, kind):
    if kind == "csv":
        write_csv(tmp_path / "own.csv")
        return source(kind="csv", path="own.csv")
    if kind == "bare csv":
        lines = ["; ".join(line) + "\n" for line in table()]
        (tmp_path / "own.txt").write_text("".join(lines))
        return source(kind="csv", path=str(tmp_path / "own.txt"), separator=";", names=HEAD)
    if kind == "parquet":
        typed().rename({"height": "Groesse"}).write_parquet(tmp_path / "own.parquet")
        return source(kind="parquet", path="own.parquet", columns={"height": "Groesse"},
                      units={"height": "cm"})  # fmt: skip
    database(tmp_path / "own.db")
    if kind == "table":
        return source(kind="sql", url="sqlite:///own.db", table="visits")
    return source(
        kind="sql", url=f"sqlite:///{tmp_path}/own.db",
        query="select visits.*, 1 as unused from visits where height > 0",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "bare csv", "parquet", "table", "query"])
def test_all_kinds_give_the_same_records(tmp_path, kind):
    found = read_records(of(tmp_path, kind), TOY, tmp_path)
    height = torch.tensor([float(row[1]) for row in table()])
    torch.testing.assert_close(found.features[:, 0], 2 * (height - 100) / 120 - 1)
    assert found.features.shape == (24, 4)
    assert set(found.features[:, 2].tolist()) == {-1.0, 1.0}
    assert found.labels.tolist() == [0, 1, 2] * 8
    assert found.unit_count == 12
    assert (found.units[0::2] == found.units[1::2]).all()


def test_patients_keep_their_numbers_when_rows_come_and_go(tmp_path):
    write_csv(tmp_path / "own.csv")
    first = read_records(source(kind="csv", path="own.csv"), TOY, tmp_path).units
    write_csv(tmp_path / "own.csv", table()[6:])
    later = read_records(source(kind="csv", path="own.csv"), TOY, tmp_path).units
    np.testing.assert_array_equal(first[6:], later)


def test_a_long_table_becomes_windows_in_order_of_time(tmp_path):
    schema = Schema(
        name="engines",
        columns=(Column("heat", "number", 0, 100), Column("left", "number", 0, 100)),
        label="left",
        label_kind="number",
        unit_id="engine",
        unit="engine",
        windows=Windows(series="engine", time="cycle", steps=3, stride=2, ahead=1),
    )
    rows = [[f"{e}", f"{t}", f"{10 * e + t}", f"{50 + t}"] for t in range(12) for e in (2, 1)]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    rows.append(["3", "0", "1", "1"])  # too short for a record
    write_csv(tmp_path / "own.csv", rows, ["engine", "cycle", "heat", "left"])
    own = read_source_of(tmp_path, "kind: csv\npath: own.csv\n")
    found = read_records(own, schema, tmp_path)
    assert found.features.shape == (10, 3, 2)  # starts 0, 2, 4, 6, 8 of two engines
    heat = (found.features[:, :, 0] + 1) * 50
    torch.testing.assert_close(heat[0], torch.tensor([10.0, 11.0, 12.0]))
    torch.testing.assert_close(heat[6], torch.tensor([22.0, 23.0, 24.0]))
    left = (found.labels + 1) * 50
    torch.testing.assert_close(left[:2], torch.tensor([53.0, 55.0]))
    assert found.unit_count == 2
    assert found.units[0] != found.units[5]


def read_source_of(folder, text):
    (folder / "source.yaml").write_text(text)
    return read_source(folder / "source.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "postgresql://me:geheim@host/db"}, "holds a password"),
        ({"url": "postgresql://me@host/db?password=geheim"}, "holds a password"),
        ({"url": "postgresql://me@host/db"}, "over a network"),
        ({"url": "geheim"}, "no URL"),
        ({"query": "select 1"}, "not both"),
        ({"password_env": "A", "password_file": "b"}, "not both"),
        ({"columns": {"hieght": "h"}}, "did you mean 'height'"),
        ({"units": {"patient": "cm"}}, "Unknown column"),
    ],
)
def test_what_a_site_file_may_not_say(changes, said):
    own = {"kind": "sql", "url": "sqlite:///own.db", "table": "visits", **changes}
    data, faults = parse(SiteData, {
        "id": "own", "dataset": "toy", "root": None, "prepare": "public_ranges",
        "unit": "patient", "rows": None, "source": own,
    })  # fmt: skip
    assert not faults
    text = " ".join(data.faults(cut_off=True))
    assert said in text
    assert "geheim" not in text


def test_a_misspelt_kind_does_not_tell_the_password(tmp_path):
    with pytest.raises(SettingsError) as caught:
        read_source_of(tmp_path, "kind: sq\nurl: postgresql://me:geheim@host/db\ntable: a\n")
    assert "geheim" not in str(caught.value)


def test_a_unix_socket_needs_no_network():
    own = SqlSource(kind="sql", url="postgresql://me@/db?host=/run/postgresql", table="a")
    assert not own.needs_network


@pytest.mark.parametrize("name", ["breast_cancer", "heart_disease"])
def test_a_schema_has_the_form_of_its_data_set(name):
    found = facts(SCHEMAS[name])
    assert found.input_shape == {"breast_cancer": (30,), "heart_disease": (13,)}[name]
    assert (found.classes, found.name) == (2, name)


def test_the_password_comes_from_where_the_site_file_says(tmp_path, monkeypatch):
    own = {"kind": "sql", "url": "postgresql://me@127.0.0.1:1/db", "table": "a", "timeout_s": 1}
    named = SqlSource(**own, password_env="CLINIC_WORD")
    with pytest.raises(SourceUnreachable, match="CLINIC_WORD.*is not set"):
        read_records(named, TOY, tmp_path)
    monkeypatch.setenv("CLINIC_WORD", "geheim")
    with pytest.raises(SourceUnreachable, match="does not answer") as caught:
        read_records(named, TOY, tmp_path)
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(SourceUnreachable, match=r"Cannot read .*word\.txt"):
        read_records(SqlSource(**own, password_file="word.txt"), TOY, tmp_path)
