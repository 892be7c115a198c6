"""A file that was written is read back, and one that was not is refused with its reason."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from hsbench.errors import UsageError
from hsbench.report import writer_for
from hsbench.results import Result, Row, key, read_rows, reading
from hsbench.results.columns import about, measure
from hsbench.results.identity import Case
from old_schema import OLD_HEAD, OLD_ROWS


def typed(cell: str) -> Any:
    """A cell as JSON has it."""
    try:
        return json.loads(cell or "null")
    except ValueError:
        return cell


def write(tmp_path, form: str, *rows: Row[Any, Any], **kind: Any):
    path = tmp_path / f"rows.{form}"
    with path.open("w") as stream, writer_for(form, stream, **kind) as writer:
        for row in rows:
            writer.row(Result(row))
    return path


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_was_written_is_read(tmp_path, workload, record, form):
    odd = workload(key_sparsity=1 / 3, sink=64, tensors="/data/a,b.safetensors#layers.3")
    rows = [record(), record(odd, method="dense:avx2"), record(status="oom", reason='"34 GiB", no', device="cuda")]
    read = read_rows(write(tmp_path, form, *rows))
    assert read == rows
    assert [key(row.case) for row in read] == [key(row.case) for row in rows], "also of a sparsity of 1/3"


@pytest.mark.parametrize("form", ["csv", "json"])
def test_rows_of_schema_3_are_read(tmp_path, form):
    text = OLD_HEAD + OLD_ROWS
    if form == "json":
        rows = [{name: typed(cell) for name, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]
        text = json.dumps({"schema": "hsbench/3", "rows": rows, "complete": True})
    (path := tmp_path / f"old.{form}").write_text(text)
    timed, other = read_rows(path)
    case, measures = timed.case, timed.measures
    assert (case.method, case.dense, case.seq, case.cache, case.sustain_s) == ("sdpa:flash", True, 1024, "cold", 0.0)
    assert (measures.time_us, measures.cold_by, measures.shared) == (3514.2, "flushed", True)
    assert (measures.ceiling, measures.percent_of_ceiling) == ("read", 11.9)
    assert case.pruner == "magnitude" and case.sink is case.local is case.threads is case.isa is None
    assert (other.status, other.reason) == ("oom", "needs 34 GiB, 15 are free")
    assert other.case.cache is other.case.sustain_s is other.measures.cold_by is None and not other.case.dense


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is neither whole CSV nor whole JSON"),
        ("a,b\n1,2\n", "row 1 is no result of hsbench"),
        ('{"rows": [', "is neither whole CSV nor whole JSON"),
        ('{"schema": "hsbench-manifest/1"}', "is neither whole CSV nor whole JSON"),
        ("schema,phase\nhsbench/2,decode\n", "row 1 is of schema 2, and 3 to 4 are read; measure again"),
        ("schema,phase\nhsbench/5,decode\n", "row 1 is of schema 5, and 3 to 4 are read; update hsbench"),
        ("schema,benchmark\nhsbench/4,tides\n", "row 1 is of a benchmark tides that is not known; update"),
        ("schema,benchmark\nhsbench/4,attention\n", r"row 1 is damaged \(lacks 'phase'\)"),
        (OLD_HEAD + OLD_ROWS[:160], "is neither whole CSV nor whole JSON"),
        (OLD_HEAD + OLD_ROWS[:-1], "is neither whole CSV nor whole JSON"),
        (
            OLD_HEAD + OLD_ROWS.replace(",0,gaussian", ",,gaussian"),
            r"row 1 is damaged .seed None: the column holds int",
        ),
        (OLD_HEAD + OLD_ROWS.replace(",1024,", ",1k,"), "row 1 is damaged .*'1k'"),
        (OLD_HEAD + OLD_ROWS.replace(",ok,", ",fine,"), "row 1 is damaged .*status 'fine'"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, text, words):
    (path := tmp_path / "rows").write_text(text)
    with pytest.raises(UsageError, match=f"^OLD {path}: .*{words}") as error:
        read_rows(path, "OLD")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read .No such file"):
        read_rows(tmp_path / "none.csv")


@dataclass(frozen=True, kw_only=True)
class TextCase(Case):
    model: str = field(metadata=about("the model", "name"))
    tokens: int = field(metadata=about("of the text", "shape"))

    @property
    def label(self) -> str:
        return self.model


@dataclass(kw_only=True)
class Perplexity:
    perplexity: float | None = measure("exp of the mean loss", "quality")
    tokens_per_s: float | None = measure("scored", "rate", "tokens/s")


class Scored(Row[TextCase, Perplexity]):
    benchmark, case_type, measures_type = "quality", TextCase, Perplexity


@pytest.mark.parametrize("form", ["csv", "json"])
def test_another_kind_of_rows_is_a_declaration(tmp_path, monkeypatch, form):
    monkeypatch.setitem(reading.BENCHMARKS, "quality", Scored)
    row = Scored(TextCase(model="SmolLM2", tokens=2048), Perplexity(perplexity=7.25, tokens_per_s=3), "ok")
    path = write(tmp_path, form, row, rows=Scored)
    names = "schema,benchmark,model,tokens,status,reason,perplexity,tokens_per_s"
    if form == "csv":
        assert path.read_text().splitlines()[0] == names
    else:
        columns = json.loads(path.read_text())["columns"]
        assert [column["name"] for column in columns] == names.split(",")
        assert columns[-1] == {"name": "tokens_per_s", "type": "float", "unit": "tokens/s", "hint": "rate"}
    assert read_rows(path) == [row]
