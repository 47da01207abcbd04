"""Wrong data is named at the site, in one sentence a fault; its name alone leaves, and not always."""

import json
from dataclasses import replace
from io import BytesIO

import pytest
from table_site import HEAD, TOY, point, table, write_csv
from toy_federation import Federation
from toy_site import PRIVACY, VECTOR, context, train_message

from lepton_client.app import app
from lepton_client.connectors.reading import read_records
from lepton_client.connectors.report import REPORT_FILE, Report
from lepton_client.connectors.sources import CsvSource, SqlSource
from lepton_client.site import Site, forget_sites
from lepton_client.trainer_wire import Answer, receive, send
from lepton_common import errors
from lepton_common.errors import EmptySite, SourceUnreachable, TableInvalid
from lepton_common.stages import SecAggStage

OWN = CsvSource(kind="csv", path="own.csv")
PLACE = {name: place for place, name in enumerate(HEAD)}


def spoilt(column, value, rows=(3,)):
    """Returns the table with another value in some rows of a column."""
    made = table()
    for row in rows:
        made[row][PLACE[column]] = value
    return made


def without(column):
    return [[v for place, v in enumerate(row) if place != PLACE[column]] for row in table()]


def found(tmp_path, rows, head=HEAD, source=OWN):
    write_csv(tmp_path / "own.csv", rows, head)
    with pytest.raises(TableInvalid) as caught:
        read_records(source, TOY, tmp_path)
    return caught.value


EVERY = range(24)


@pytest.mark.parametrize(
    ("rows", "column", "rule", "count", "said"),
    [
        (spoilt("height", "tall"), "height", "type", 1, "no number"),
        (spoilt("visits", "2.5"), "visits", "type", 1, "no whole number"),
        (spoilt("smoker", "seldom"), "smoker", "type", 1, "no yes or no"),
        (spoilt("height", "", (1, 2)), "height", "missing", 2, "fill them"),
        (spoilt("height", "NaN"), "height", "missing", 1, "fill them"),
        (spoilt("height", "inf"), "height", "finite", 1, "infinite"),
        (spoilt("height", "1.75", EVERY), "height", "unit", 24, "another unit of measure"),
        (spoilt("risk", "fatal"), "risk", "category", 1, "low, middle, high"),
        (spoilt("risk", ""), "risk", "missing", 1, "missing values"),
        (spoilt("risk", "low", EVERY), "risk", "one class", 24, "one class only"),
        (spoilt("patient", "", (5,)), "patient", "unit id", 1, "no patient"),
    ],
)  # fmt: skip
def test_each_fault_is_named_by_column_and_rule(tmp_path, rows, column, rule, count, said):
    error = found(tmp_path, rows)
    assert error.counts == {(column, rule): count}
    assert len(error.faults) == 1
    assert f"'{column}'" in error.faults[0]
    assert said in error.faults[0]


def test_all_faults_come_at_once_and_tell_no_value(tmp_path):
    rows = spoilt("height", "173.25cm")
    rows[7][PLACE["risk"]] = "terminal"
    rows[8][PLACE["patient"]] = "?"
    error = found(tmp_path, [row[:4] + row[5:] for row in rows], HEAD[:4] + HEAD[5:])
    assert {name for name, _ in error.counts} == {"height", "risk", "patient", "weight"}
    assert error.counts["weight", "column"] == 24
    for secret in ("173", "terminal", "24", "P3"):
        assert secret not in str(error)


def test_a_missing_column_and_a_declared_unit(tmp_path):
    head = [name for name in HEAD if name != "patient"]
    assert found(tmp_path, without("patient"), head).counts == {("patient", "column"): 24}
    inches = replace(OWN, units={"height": "in"})
    error = found(tmp_path, table(), source=inches)
    assert list(error.counts) == [("height", "declared unit")]
    assert "schema's cm" in str(error)


def test_what_is_allowed_passes(tmp_path):
    rows = spoilt("risk", "low", EVERY)
    rows[0][PLACE["visits"]] = rows[1][PLACE["weight"]] = ""
    rows[2][PLACE["height"]] = "230"  # an outlier is clipped
    write_csv(tmp_path / "own.csv", rows)
    records = read_records(replace(OWN, allow_one_class=True), TOY, tmp_path)
    assert records.features[0, 1] == -1
    assert records.features[1, 3] == 0
    assert records.features[2, 0] == 1


def test_an_empty_site_and_sources_that_are_not_there(tmp_path):
    write_csv(tmp_path / "own.csv", [])
    with pytest.raises(EmptySite, match="no row"):
        read_records(OWN, TOY, tmp_path)
    with pytest.raises(SourceUnreachable, match=r"data\.source\.path"):
        read_records(CsvSource(kind="csv", path="gone.csv"), TOY, tmp_path)
    with pytest.raises(SourceUnreachable, match="no database"):
        read_records(SqlSource(kind="sql", url="sqlite:///gone.db", table="a"), TOY, tmp_path)
    (tmp_path / "own.csv").write_bytes(b"a,b\n\"1,2\n3,4,5\n")
    with pytest.raises(errors.DataInvalid):
        read_records(OWN, TOY, tmp_path)


def broken(folder, rows=None):
    """Lets a site's own table lack a label in one row."""
    write_csv(folder / "own.csv", spoilt("risk", "fatal") if rows is None else rows)
    point(folder)


@pytest.mark.parametrize(
    ("privacy", "name"), [(None, "TableInvalid"), (PRIVACY, "PrivateWorkFailed")]
)
def test_only_a_name_leaves_and_with_privacy_always_the_same(make_site, privacy, name):
    folder = make_site().folder
    forget_sites()
    broken(folder)
    reply = app(train_message(privacy=privacy), context(folder))
    assert reply.error.reason == name
    report = json.loads((folder / REPORT_FILE).read_text())
    assert report["error"] == "TableInvalid"
    assert report["broken"] == [{"column": "risk", "rule": "category", "rows": 1}]
    assert "map them" in report["said"][0]
    assert (folder / REPORT_FILE).stat().st_mode & 0o77 == 0


def test_a_good_table_trains_and_its_patients_are_counted(make_site):
    folder = make_site().folder
    forget_sites()
    broken(folder, table())
    reply = app(train_message(privacy=PRIVACY), context(folder))
    assert not reply.has_error(), reply.error.reason
    site = Site(folder)
    assert site.ledger.known(site.trainer.people()) == 12
    assert not (folder / REPORT_FILE).exists()


def test_a_round_without_secure_aggregation_goes_on_without_the_site(make_site):
    toys = Federation(make_site, count=3)
    broken(toys.folders[1])
    replies = [app(train_message(), context(folder)) for folder in toys.folders]
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "TableInvalid"


def test_a_masked_round_goes_on_without_the_site(make_site):
    toys = Federation(make_site, count=4)
    broken(toys.folders[3])
    asked = toys.request(privacy=PRIVACY)
    server = toys.server(asked)
    boxes = server.up_to(SecAggStage.MASK, [1, 2, 3, 4])
    assert server.ask(SecAggStage.MASK, 4, boxes[4]).error.reason == "PrivateWorkFailed"
    headers = server.mask([1, 2, 3], boxes)
    total, _ = server.unmask([1, 2, 3], server.sign([1, 2, 3], headers))
    assert total.shape == VECTOR.shape


def test_the_trainers_process_tells_its_agent_what_is_wrong(tmp_path):
    error = found(tmp_path, spoilt("risk", "\x1b[2Jfatal"))
    stream = BytesIO()
    send(stream, Answer(error="TableInvalid", report=Report.of(error)))
    stream.seek(0)
    answer, _ = receive(stream, Answer, 0)
    again = answer.report.error_of(TableInvalid)
    assert (again.faults, again.counts) == (error.faults, error.counts)
    loud = replace(answer.report, said=["\x1b[2Jgone"])
    assert str(loud.error_of(SourceUnreachable)) == "[2Jgone"
    assert Report.of(errors.ConsentRefused("no")) is None
