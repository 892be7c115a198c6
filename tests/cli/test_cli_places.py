"""What --output and --manifest name: stdout by any of its names, descriptors, devices and pipes; and the format."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsbench.cli.places import check_writable, descriptor_of
from hsbench.errors import UsageError

Run = Callable[..., object]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files land whose names are no paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe, and the reading end of it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


def methods(text: str) -> list[str]:
    return [row["method"] for row in csv.DictReader(io.StringIO(text))]


@pytest.mark.parametrize(
    "name",
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "//dev/../dev/stdout", "/proc/PID/fd/1", "link"],
)
def test_names_of_stdout(hsbench: Run, bench: object, folder: Path, name: str) -> None:
    name = name.replace("PID", str(os.getpid()))
    (folder / "link").symlink_to("/dev/stdout")
    ran = hsbench("decode", "--format", "csv", "--output", name)
    assert (ran.code, methods(ran.out)) == (0, ["dense", "hierarchical"])
    assert os.listdir(folder) == ["link"]
    ran = hsbench("compare", "--seq", "1k", "--output", name, "--manifest", "m.json")
    assert (ran.code, methods(ran.out)) == (0, ["dense", "hierarchical"])
    assert sorted(os.listdir(folder)) == ["link", "m.json"] and json.loads((folder / "m.json").read_text())["run"]
    ran = hsbench("decode", "--output", name)
    assert "hierarchical" in ran.out and ran.err == "", "a table on stdout needs no summary"


def test_a_file_of_that_name_can_still_be_had(hsbench: Run, bench: object, folder: Path) -> None:
    assert hsbench("decode", "--output", "./-", "--format", "csv").code == 0
    assert sorted(os.listdir(folder)) == ["-", "-.manifest.json"]


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_a_manifest_never_goes_to_stdout(hsbench: Run, bench: object, folder: Path, name: str) -> None:
    ran = hsbench("decode", "--output", "r.csv", "--manifest", name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"hsbench: error: --manifest {name}: stdout is for results; name a file\n"
    assert not bench.calls and os.listdir(folder) == []


def test_a_descriptor_is_written_as_it_is(hsbench: Run, bench: object, folder: Path) -> None:
    """What it leads to may be a file, which is neither emptied nor given a manifest, nor rewound in JSON."""
    for format in ("csv", "json"):
        log = folder / "log.csv"
        log.write_text("earlier\n")
        with log.open("a") as file:
            ran = hsbench("decode", "--format", format, "--output", f"/dev/fd/{file.fileno()}")
            print("later", file=file)
        assert (ran.code, ran.out) == (0, "")
        earlier, *results, later = log.read_text().splitlines()
        assert (earlier, later) == ("earlier", "later")
        if format == "csv":
            assert methods("\n".join(results)) == ["dense", "hierarchical"]
        else:
            assert len(json.loads("\n".join(results))["rows"]) == 2
        assert os.listdir(folder) == ["log.csv"]


def test_descriptors_that_cannot_be_written(hsbench: Run, bench: object, folder: Path) -> None:
    read, write = os.pipe()
    for descriptor in (read, os.open(os.devnull, os.O_RDONLY)):
        with pytest.raises(UsageError, match="open for reading only"):
            check_writable(Path(f"/dev/fd/{descriptor}"))
        os.close(descriptor)
    os.close(write)
    ran = hsbench("decode", "--output", f"/dev/fd/{write}")
    assert ran.code == 2 and f"--output /dev/fd/{write}: cannot be written (Bad file descriptor)" in ran.err
    assert not bench.calls


def test_only_descriptors_are_taken_for_such(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    for name in ("1", "fd/1", "/dev/null", "/dev/fd", "/dev/fd/1x", "/proc/1/fd/1", "loop", "stdout"):
        assert descriptor_of(Path(name)) is None, name
    assert (descriptor_of(Path("/dev/stderr")), descriptor_of(Path("/dev/fd/63"))) == (2, 63)


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/null", "null", "pipe"])
def test_no_manifest_beside_what_is_no_file(
    hsbench: Run, bench: object, folder: Path, pipe: tuple[Path, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "null").symlink_to(os.devnull)
    written: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how, **given: written.append(path) or real(path, *how, **given))
    assert hsbench("decode", "--format", "csv", "--output", name).code == 0
    assert not [path for path in written if "manifest" in path.name]
    assert sorted(os.listdir(folder)) == ["null", "pipe"]
    if name == "pipe":
        assert methods(os.read(pipe[1], 65536).decode()) == ["dense", "hierarchical"]


@pytest.mark.parametrize("format", ["csv", "json", "table"])
def test_a_named_pipe_without_its_reader_is_an_error(
    hsbench: Run, bench: object, folder: Path, pipe: tuple[Path, int], format: str
) -> None:
    """Only a broken stdout may end quietly: whoever names a pipe has results that are lost."""

    def before(call: int) -> None:
        if call == 2:
            os.dup2(os.open(os.devnull, os.O_RDONLY), pipe[1])

    bench.before = before
    ran = hsbench("compare", "--seq", "1k,2k", "--format", format, "--output", "pipe")
    assert (ran.code, ran.out) == (1, "")
    said = "cannot be written (Broken pipe); results from there on are lost"
    assert ran.err.endswith(f"hsbench: error: --output pipe: {said}\n")


@pytest.mark.parametrize("name", ["r.tsv", "r.xlsx", "r.csv.gz", "results-0.5"])
@pytest.mark.parametrize("command", ["decode", "compare"])
def test_an_ending_of_no_format(hsbench: Run, bench: object, folder: Path, command: str, name: str) -> None:
    ran = hsbench(command, "--seq", "1k", "--output", name)
    assert (ran.code, ran.out) == (2, "")
    ending = Path(name).suffix
    remedy = f"{ending} is the ending of no format; end it in .txt, .csv, .json, .parquet or .md, or give --format"
    assert ran.err == f"hsbench: error: --output {name}: {remedy}\n"
    assert not bench.calls and os.listdir(folder) == []


def test_a_format_that_is_asked_for_goes_into_any_name(hsbench: Run, bench: object, folder: Path) -> None:
    assert hsbench("decode", "--output", "r.tsv", "--format", "csv").code == 0
    assert methods((folder / "r.tsv").read_text()) == ["dense", "hierarchical"]


@pytest.mark.parametrize("name", ["results", ".results", "r.out", "r.log"])
def test_a_name_that_says_nothing_has_the_command_s_own_format(
    hsbench: Run, bench: object, folder: Path, name: str
) -> None:
    assert hsbench("decode", "--output", name).code == 0
    assert (folder / name).read_text().startswith("decode Llama-3.1-8B")
    assert hsbench("compare", "--seq", "1k", "--output", name).code == 0
    assert methods((folder / name).read_text()) == ["dense", "hierarchical"]
