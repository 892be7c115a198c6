"""``hsbench.load``: rows for notebooks."""

from __future__ import annotations

import pytest

import hsbench
from hsbench.errors import UnavailableError, UsageError
from hsbench.report import writer_for
from hsbench.results import Report, Result


def write(path, rows, workload, **facts):
    with path.open("w") as stream, writer_for(path.suffix[1:], stream) as writer:
        writer.report(Report(workload(), [Result(row) for row in rows], **facts))
    return path


@pytest.mark.parametrize("name", ["r.csv", "r.json"])
def test_a_frame(tmp_path, record, workload, name):
    pandas = pytest.importorskip("pandas")
    rows = [record(throttled=None), record(workload(seq=1024)), record(status="oom", reason="34 GiB", device="cuda")]
    frame = hsbench.load(write(tmp_path / name, rows, workload, machine={"cpu": {"model": "Test CPU"}}))
    assert list(frame.columns) == [column.name for column in rows[0].columns()]
    assert list(frame["seq"]) == [131072, 1024, 131072] and list(frame["status"]) == ["ok", "ok", "oom"]
    assert list(frame["time_us"])[:2] == [3700.0, 3700.0] and pandas.isna(frame["time_us"][2])
    assert str(frame["time_us"].dtype) == "float64" and str(frame["samples"].dtype) == "Int64"
    assert frame["throttled"].isna().tolist() == [True, False, True] and frame["reason"][0] is None
    assert frame[frame["status"] == "ok"]["speedup"].mean() == 2.0
    assert frame.attrs["complete"]
    assert frame.attrs["machine"] == ({"cpu": {"model": "Test CPU"}} if name == "r.json" else {})


def test_what_cannot_be_a_frame(tmp_path, monkeypatch):
    (tmp_path / "empty.csv").write_text("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pandas is missing"):
        hsbench.load(tmp_path / "empty.csv")
    monkeypatch.undo()
    pytest.importorskip("pandas")
    with pytest.raises(UsageError, match="holds no rows"):
        hsbench.load(tmp_path / "empty.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        hsbench.load(str(tmp_path / "none.csv"))
