from __future__ import annotations

import ast
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from hsbench.errors import UsageError
from hsbench.report import FORMATS, markdown, writer_for
from hsbench.report.writers import CsvWriter, JsonWriter
from hsbench.results import COLUMNS, Record
from hsbench.results.columns import columns_of


class Pipe(io.StringIO):
    """A stream that cannot seek and counts what is out after each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = ""

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        self.flushed = self.getvalue()


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_csv_round_trip(report):
    source, stream = report(), io.StringIO()
    with writer_for("csv", stream) as writer:
        writer.report(source)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert tuple(rows[0]) == COLUMNS
    assert [row["method"] for row in rows] == [result.record.method for result in source.results]
    for row, result in zip(rows, source.results, strict=True):
        for name, value in result.record.to_row().items():
            if value is None:
                assert row[name] == ""
            elif isinstance(value, bool):
                assert row[name] == ("true" if value else "false")
            elif isinstance(value, (int, float)):
                assert float(row[name]) == pytest.approx(value, rel=5e-6)
            else:
                assert row[name] == value
    assert "e+" not in stream.getvalue()


def test_csv_quotes_what_needs_it(row_failed, workload):
    stream = io.StringIO()
    with CsvWriter(stream) as writer:
        writer.row(row_failed(workload(), "dense", "oom", 'needs "34 GiB", has 15\nfree some'))
    (row,) = csv.DictReader(io.StringIO(stream.getvalue()))
    assert row["reason"] == 'needs "34 GiB", has 15 free some'
    assert stream.getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (1 / 3, "0.333333"),
        (7400.0, "7400.0"),
        (1234567.8, "1234568.0"),
        (2.1e-7, "2.1e-07"),
        (0.0, "0.0"),
        (0, "0.0"),
        (3, "3.0"),
        (1e16, "1e+16"),
    ],
)
def test_numbers_have_six_digits_and_no_noise(row_ok, workload, value, text):
    result = row_ok(workload(), "dense", 1.0, {"dense": 1}, power_w=value)
    streams = {name: io.StringIO() for name in ("csv", "json")}
    for name, stream in streams.items():
        with writer_for(name, stream) as writer:
            writer.row(result)
    (row,) = csv.DictReader(io.StringIO(streams["csv"].getvalue()))
    assert row["power_w"] == text
    assert json.loads(streams["json"].getvalue())["rows"][0]["power_w"] == float(text)


def test_every_row_of_a_column_has_its_fields_type(row_ok, workload):
    """As a reader that infers types from each file sees it: two files of one schema concatenate."""
    numbers = {column.name: column.type for column in Record.columns() if column.type in (int, float)}
    assert len(numbers) > 30
    for value in (0, 2, 2.0, 2.5, 1e-5):
        result = row_ok(workload(), "dense", 1.0, {"dense": 1})
        put = {name: value if kind is float or value == 2 else 0 for name, kind in numbers.items()}
        of_case = {column.name for column in columns_of(Record.case_type)}
        in_case = {name: number for name, number in put.items() if name in of_case}
        result.record.case = dataclasses.replace(result.record.case, **in_case)
        result.record.measures = Record.measures_type(**{name: put[name] for name in put.keys() - of_case})
        streams = {name: io.StringIO() for name in ("csv", "json")}
        for name, stream in streams.items():
            with writer_for(name, stream) as writer:
                writer.row(result)
        (cells,) = csv.DictReader(io.StringIO(streams["csv"].getvalue()))
        (row,) = json.loads(streams["json"].getvalue())["rows"]
        for name, kind in numbers.items():
            assert type(row[name]) is kind and row[name] == put[name], name
            assert type(ast.literal_eval(cells[name])) is kind, name


@pytest.mark.parametrize("name", ["csv", "json"])
def test_every_row_is_out_when_it_is_done(report, name):
    source, stream = report(), Pipe()
    writer = writer_for(name, stream)
    writer.open()
    for count, result in enumerate(source.results, start=1):
        writer.row(result)
        assert result.record.method in stream.flushed.splitlines()[-1]
        assert len(stream.flushed.splitlines()) == count + {"csv": 1, "json": 3}[name]


@pytest.mark.parametrize("name", ["csv", "json"])
def test_report_adds_only_the_rows_that_are_not_out(report, row_failed, name):
    source, stream = report(), io.StringIO()
    source.results.append(row_failed(source.workload, "late", "interrupted", None))
    with writer_for(name, stream) as writer:
        for result in source.results[:3]:
            writer.row(result)
        writer.report(source)
        writer.report(report(seq=32768))
    text = stream.getvalue()
    rows = json.loads(text)["rows"] if name == "json" else list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows[:7]] == [result.record.method for result in source.results]
    assert len(rows) == 13


def test_json_document(report):
    source, stream = report(), io.StringIO()
    with writer_for("json", stream) as writer:
        writer.report(source)
        writer.report(report(seq=32768))
    document = json.loads(stream.getvalue(), parse_constant=no_constants)
    assert document["schema"] == "hsbench/4"
    assert document["complete"] is True
    assert document["machine"] == source.machine
    assert document["ceilings"] == [{"name": "read", "value": 91.2, "unit": "GB/s"}]
    assert all(tuple(row) == COLUMNS for row in document["rows"])
    columns = {column.pop("name"): column for column in document["columns"]}
    assert tuple(columns) == COLUMNS
    assert columns["time_us_p25"] == {"type": "float", "unit": "us", "hint": "time"}
    assert document["rows"][0]["time_us"] is None
    for entry in document["memory"]:
        row = document["rows"][entry.pop("row")]
        assert sum(entry.values()) == row["kv_bytes"]
    assert {"2:4 values", "metadata", "map"} <= set().union(*document["memory"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stream", [io.StringIO, Pipe])
def test_json_is_valid_when_the_run_is_cut_short(report, error, stream):
    source, out = report(), stream()
    with pytest.raises(error), writer_for("json", out) as writer:
        writer.row(source.results[0])
        raise error
    document = json.loads(out.getvalue())
    assert len(document["rows"]) == 1 and document["memory"] == [] and document["ceilings"] == []


@pytest.mark.parametrize("stream", [io.StringIO, Pipe])
def test_json_without_rows_is_valid(stream):
    out = stream()
    with writer_for("json", out):
        pass
    assert json.loads(out.getvalue())["rows"] == []


def test_json_in_a_file_of_its_own_is_valid_after_every_row(report, tmp_path):
    source, path = report(), tmp_path / "out.json"
    with path.open("w") as stream:
        writer = JsonWriter(stream)
        writer.open()
        assert json.loads(path.read_text())["rows"] == []
        for count, result in enumerate(source.results, start=1):
            writer.row(result)
            document = json.loads(path.read_text())
            assert len(document["rows"]) == count and document["complete"] is False
        source.machine["note"] = "long " * 1000
        writer.report(source)
        source.machine.pop("note")
        writer.close()
    document = json.loads(path.read_text())
    assert document["complete"] is True and document["machine"] == source.machine


def test_json_survives_a_kill(tmp_path):
    path = tmp_path / "out.json"
    script = """
        import os, signal, sys
        from hsbench.problem.workload import make_workload
        from hsbench.report import writer_for
        from hsbench.results import Record, Result
        asked = dict(device="cpu", cache="cold", sustain_s=0, status="ok")
        with open(sys.argv[1], "w") as stream, writer_for("json", stream) as writer:
            for method in ("dense", "hierarchical"):
                writer.row(Result(Record.of(make_workload("decode"), method=method, **asked), {"dense": 64}))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    document = json.loads(path.read_text())
    assert [row["method"] for row in document["rows"]] == ["dense", "hierarchical"]
    assert document["memory"][1] == {"row": 1, "dense": 64}


def test_json_does_not_rewind_what_others_write_to(report, tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("a") as stream, JsonWriter(stream) as writer:
        writer.report(report())
    text = path.read_text()
    assert text.startswith("before\n") and len(json.loads(text.removeprefix("before\n"))["rows"]) == 6


def test_json_to_a_device_is_written_straight_through(report):
    with open(os.devnull, "w") as stream, JsonWriter(stream) as writer:
        writer.report(report())


@pytest.mark.parametrize("name", FORMATS)
def test_closing_twice_writes_once(report, name):
    stream = io.StringIO()
    with writer_for(name, stream) as writer:
        writer.report(report())
        writer.close()
        text = stream.getvalue()
        writer.close()
    assert text and stream.getvalue() == text and not stream.closed


@pytest.mark.parametrize("name", FORMATS)
def test_any_encoding_can_hold_every_format(report, row_failed, name):
    source = report(tensors="/data/Überprüfung-模型.safetensors#layers.3")
    source.results.append(row_failed(source.workload, "other", "oom", "größer als 15 GiB — zu groß"))
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with writer_for(name, stream) as writer:
        writer.report(source)
    stream.flush()
    assert b"layers.3" in raw.getvalue() and b"hierarchical" in raw.getvalue()


def test_markdown_writer_writes_what_markdown_returns(report):
    reports, stream = [report(), report(seq=32768)], io.StringIO()
    with writer_for("markdown", stream) as writer:
        for one in reports:
            writer.report(one)
    assert stream.getvalue() == markdown(reports)


def test_table_writer_tells_the_machine_once(report):
    stream = io.StringIO()
    with writer_for("table", stream) as writer:
        writer.report(report())
        assert "hierarchical" in stream.getvalue()
        writer.report(report(seq=32768))
    assert stream.getvalue().count("AMD EPYC") == 1


def test_an_unknown_format_names_the_choices():
    with pytest.raises(UsageError, match="--format xml: must be one of table, csv, json, markdown"):
        writer_for("xml", io.StringIO())
