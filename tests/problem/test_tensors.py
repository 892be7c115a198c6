"""Synthetic tensors are seeded and shaped as said; captured ones are checked by their header."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hsbench.errors import UsageError
from hsbench.problem import captured, synthetic
from hsbench.problem.captured import open_captured
from hsbench.problem.synthetic import make_inputs, outlier_channels
from hsbench.problem.workload import Workload, make_workload


def small(**overrides: object) -> Workload:
    given = {"seq": 300, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "batch": 2} | overrides
    return make_workload("prefill", **given)


def capture(path: Path, layer: int = 0, dtype: torch.dtype = torch.float16, **shapes: tuple[int, ...]) -> Path:
    given = {"q": (1, 8, 5, 64), "k": (1, 2, 96, 64), "v": (1, 2, 96, 64)} | shapes
    generator = torch.Generator().manual_seed(0)
    named = {f"layers.{layer}.{n}": torch.randn(s, generator=generator).to(dtype) for n, s in given.items()}
    save_file(named, path)
    return path


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_shapes_and_dtypes(name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(small(dtype=name, q_len=7), "cpu")
    assert inputs.q.shape == (2, 4, 7, 64)
    assert inputs.k.shape == inputs.v.shape == (2, 2, 300, 64)
    for tensor in (inputs.q, inputs.k, inputs.v):
        assert tensor.dtype == dtype and tensor.is_contiguous() and bool(torch.isfinite(tensor).all())
    assert inputs.source == "gaussian"


def test_the_distribution_is_standard_normal() -> None:
    inputs = make_inputs(small(seq=4096), "cpu")
    for tensor in (inputs.q, inputs.k, inputs.v):
        assert abs(tensor.float().mean().item()) < 0.01
        assert abs(tensor.float().std().item() - 1) < 0.01


def test_a_seed_is_a_tensor() -> None:
    once, again, other = (make_inputs(small(seed=seed), "cpu") for seed in (3, 3, 4))
    for name in "qkv":
        assert torch.equal(getattr(once, name), getattr(again, name))
        assert not torch.equal(getattr(once, name), getattr(other, name))


def test_nothing_is_drawn_twice() -> None:
    inputs = make_inputs(small(q_heads=2), "cpu")
    heads = [head for t in (inputs.q, inputs.k, inputs.v) for head in t.flatten(0, 1).flatten(1).tolist()]
    assert len({tuple(head) for head in heads}) == len(heads) == 12


@pytest.mark.parametrize("kind", ["gaussian", "outliers"])
def test_the_number_of_threads_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "STRETCH", 100)  # several stretches, the last a part of one
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(synthetic, "_cores", lambda cores=cores: cores)
        results.append(make_inputs(small(tensors=kind), "cpu"))
    assert all(torch.equal(getattr(results[0], name), getattr(results[1], name)) for name in "qkv")


def test_a_short_sequence_is_the_head_of_a_long_one() -> None:
    seqs = (synthetic.STRETCH + 700, synthetic.STRETCH + 33, 65)
    workloads = [make_workload("decode", seq=seq, kv_heads=2, q_heads=2) for seq in seqs]
    long, middle, short = (make_inputs(workload, "cpu") for workload in workloads)
    assert torch.equal(long.k[:, :, : seqs[1]], middle.k)
    assert torch.equal(long.v[:, :, : seqs[2]], short.v)


def test_the_numbers_are_pinned() -> None:
    # A seed is part of a published row, so a change of generator must not pass unnoticed.
    k = make_inputs(make_workload("decode", seq=2, seed=0), "cpu").k
    reference = np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(0, spawn_key=(1, 0, 5, 0))))
    expected = torch.from_numpy(reference.standard_normal((2, 128), dtype=np.float32)).half()
    assert torch.equal(k[0, 5], expected)


def test_outliers_are_few_fixed_large_channels_of_k() -> None:
    workload = small(tensors="outliers", seq=2048)
    inputs = make_inputs(workload, "cpu")
    plain = make_inputs(small(seq=2048), "cpu")
    assert torch.equal(inputs.v, plain.v) and torch.equal(inputs.q, plain.q)
    for head in range(workload.kv_heads):
        channels = outlier_channels(workload.seed, head, workload.head_dim)
        assert 2 <= len(channels.index) <= 4
        assert len(set(channels.index.tolist())) == len(channels.index)
        for entry in range(workload.batch):
            k = inputs.k[entry, head].float()
            large = torch.zeros(64, dtype=torch.bool)
            large[torch.from_numpy(channels.index)] = True
            assert torch.equal(inputs.k[entry, head][:, ~large], plain.k[entry, head][:, ~large])
            assert bool((k[:, large].std(0) > 9).all()) and bool((k[:, large].std(0) < 21.5).all())
            assert bool((k[:, large].mean(0).abs() > 5).all())
    first, second = (outlier_channels(0, head, 64).index.tolist() for head in (0, 1))
    assert first != second


@pytest.mark.slow
def test_generating_starts_no_thread_pool_of_torch() -> None:
    # Copies above torch's grain size would start an OpenMP pool in each of the generating threads.
    code = """
import os, threading, time, torch
from hsbench.problem import synthetic

torch.set_num_threads(4)
synthetic._cores = lambda: 2
count = lambda: len(os.listdir("/proc/self/task"))
most, done = 0, threading.Event()

def watch():
    global most
    while not done.is_set():
        most = max(most, count())
        time.sleep(0.001)

out = torch.empty(1, 4, 32768, 128, dtype=torch.float16)
before = count()
watcher = threading.Thread(target=watch)
watcher.start()
synthetic._fill(out, 0, 1, None)
done.set()
watcher.join()
assert before + 1 < most <= before + 1 + 2, f"{most} threads at a time, {before} before"
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_captured_workloads_are_not_generated() -> None:
    with pytest.raises(ValueError, match="captured"):
        make_inputs(small(tensors="f.safetensors#layers.0"), "cpu")


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_captured_geometry_and_tensors(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    path = capture(tmp_path / "kv.safetensors", layer=3, dtype=dtype)
    captured = open_captured(path)
    assert (captured.layer, captured.batch, captured.q_heads, captured.kv_heads) == (3, 1, 8, 2)
    assert (captured.head_dim, captured.dtype, captured.q_len, captured.seq) == (64, name, 5, 96)
    assert captured.source == "kv.safetensors#layers.3"
    inputs = captured.load("cpu")
    assert inputs.q.shape == (1, 8, 5, 64) and inputs.k.shape == (1, 2, 96, 64)
    assert inputs.k.dtype == dtype and inputs.source == captured.source


def test_the_last_queries_are_taken(tmp_path: Path) -> None:
    captured = open_captured(capture(tmp_path / "kv.safetensors"))
    whole, last = captured.load("cpu"), captured.last(1).load("cpu")
    assert torch.equal(last.q, whole.q[:, :, -1:]) and last.q.is_contiguous()
    assert torch.equal(last.k, whole.k)
    with pytest.raises(UsageError, match="holds 5 queries"):
        captured.last(6)


def test_the_header_is_enough(tmp_path: Path) -> None:
    code = f"""
import sys
from hsbench.problem.captured import open_captured
assert open_captured({str(capture(tmp_path / "kv.safetensors"))!r}).seq == 96
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def refused(path: Path, layer: int | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        open_captured(path, layer)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.safetensors")


def test_a_folder_names_a_file_in_it(tmp_path: Path) -> None:
    assert "a folder, not a file; it holds no .safetensors file" in refused(tmp_path)
    for name in ("model-2.safetensors", "model-1.safetensors", "config.json"):
        (tmp_path / name).touch()
    assert f"such as {tmp_path / 'model-1.safetensors'}" in refused(tmp_path)


def test_a_device_and_a_name_that_cannot_be(tmp_path: Path) -> None:
    assert "not a regular file" in refused(Path("/dev/null"))
    assert "cannot be read" in refused(tmp_path / ("long" * 100))


def torch_zip(path: Path) -> None:
    torch.save({"q": torch.zeros(4)}, path)


def torch_pickle(path: Path) -> None:
    torch.save({"q": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, q=np.zeros(4), k=np.zeros(4))


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(4))


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("kv.safetensors", "")


def index(path: Path, *names: str) -> None:
    path.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part-1.safetensors")}, indent=2))


SAVED = "safetensors.torch.save_file, as layers.N.q"


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        pytest.param(torch_zip, "made by torch.save", f"torch.load and save q, k and v with {SAVED}", id="pt"),
        pytest.param(torch_pickle, "made by torch.save", f"torch.load and save q, k and v with {SAVED}", id="old pt"),
        pytest.param(npz, "NumPy arrays (.npz)", f"numpy.load and save q, k and v with {SAVED}", id="npz"),
        pytest.param(npy, "a NumPy array (.npy)", f"numpy.load and save q, k and v with {SAVED}", id="npy"),
        pytest.param(archive, "a zip archive", "extract it", id="zip"),
        pytest.param(lambda p: p.write_bytes(b"PK\x03\x04" * 9), "a damaged zip archive", SAVED, id="damaged zip"),
        pytest.param(lambda p: p.write_bytes(b"GGUF" + bytes(60)), "a GGUF file", "run the model and save", id="gguf"),
        pytest.param(lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(60)), "an HDF5 file", SAVED, id="hdf5"),
        pytest.param(lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(60)), "gzip", "decompress it", id="gzip"),
        pytest.param(
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            "a Git LFS pointer", "git lfs pull", id="lfs",
        ),
        pytest.param(
            lambda p: index(p, "model.layers.0.mlp.up_proj.weight"),
            "the index of a model's weights", f"run the model and save q, k and v with {SAVED}", id="index",
        ),
        pytest.param(
            lambda p: index(p, "layers.0.q", "layers.0.k"),
            "an index of safetensors files", "give the file that holds the layer: part-1.safetensors", id="own index",
        ),
        pytest.param(lambda p: p.write_text('{"a": 1}'), "a JSON file", SAVED, id="json"),
        pytest.param(
            lambda p: save_file({"model.layers.0.self_attn.k_proj.weight": torch.zeros(4, 4)}, p),
            "holds a model's weights, not captured tensors", "run the model and save", id="weights",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["kv.pt", "kv.safetensors"])  # what a file is, not what it is called
def test_another_kind_of_file_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], object], what: str, remedy: str
) -> None:
    path = tmp_path / name
    make(path)
    message = refused(path)
    assert message.startswith(f"kv {path}: {what}") or f"({what})" in message
    assert remedy in message


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/k\xff.safetensors"))
    path.write_bytes(capture(tmp_path / "kv.safetensors").read_bytes())
    with pytest.raises(UsageError) as caught:
        open_captured(path)
    message = str(caught.value)
    assert message.startswith(f"kv {tmp_path}/k\\xff.safetensors: the path is not UTF-8") and "rename" in message
    message.encode()  # can be shown


TRANSPOSE = "save them with .transpose(1, 2).contiguous()"


def test_heads_and_tokens_in_each_others_place_are_suspected(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    shape = (1, 1024, 32, 64)  # 1024 tokens of 32 heads
    warning = open_captured(capture(path, q=shape, k=shape, v=shape)).warning
    assert warning == f"{path}: 1024 kv heads but only 32 tokens; {captured._TRANSPOSED}" and TRANSPOSE in warning
    for right in ((1, 32, 1024, 64), (1, 32, 32, 64)):
        assert open_captured(capture(path, q=right, k=right, v=right)).warning is None


@pytest.mark.parametrize("q", [(1, 1024, 32, 64), (1, 1, 32, 64), (1, 1, 8, 64)])
def test_what_does_not_fit_because_of_it_is_explained_by_it(tmp_path: Path, q: tuple[int, ...]) -> None:
    kv = (1, 1024, 8, 64)
    message = refused(capture(tmp_path / "kv.safetensors", q=q, k=kv, v=kv))
    assert TRANSPOSE in message and "[batch, seq, heads, head_dim]" in message


def test_not_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    for content in (b"", b"hello", b"\xff" * 64):
        path.write_bytes(content)
        assert "not a whole safetensors file" in refused(path)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = capture(tmp_path / "kv.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a whole safetensors file" in refused(path)


def test_a_header_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    tensor = {"dtype": "F16", "shape": [1, 1, 4, 64], "data_offsets": [0, 10**9]}
    header = json.dumps({"layers.0.k": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "not a whole safetensors file" in refused(path)


@pytest.mark.parametrize("name", "qkv")
def test_a_missing_tensor(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kv.safetensors"
    save_file({f"layers.2.{n}": torch.zeros(1, 1, 4, 64).half() for n in "qkv" if n != name}, path)
    assert f"lacks layers.2.{name}" in refused(path, 2)


def test_no_layer_at_all(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    save_file({"model.k": torch.zeros(1, 1, 4, 64).half()}, path)
    assert "layers.N.q" in refused(path)


def test_a_layer_out_of_range_lists_those_there(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    layers = (0, 1, 2, 7)
    save_file({f"layers.{i}.{n}": torch.zeros(1, 1, 4, 64).half() for i in layers for n in "qkv"}, path)
    message = refused(path, 9)
    assert "layer 9" in message and "0-2, 7" in message
    assert open_captured(path, 7).layer == 7
    assert open_captured(path).layer == 0


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"v": (1, 2, 95, 64)}, "but v is"),
        ({"k": (2, 96, 64), "v": (2, 96, 64)}, "k has the shape"),
        ({"q": (2, 8, 5, 64)}, "differ"),
        ({"q": (1, 8, 5, 128)}, "differ"),
        ({"q": (1, 8, 97, 64)}, "more than the 96 tokens"),
        ({"q": (1, 7, 5, 64)}, "multiple of kv_heads"),
        ({"q": (1, 64, 5, 64)}, "group of 32"),
        ({"q": (1, 8, 0, 64)}, "q has the shape"),
        ({"q": (1, 8, 5, 96), "k": (1, 2, 96, 96), "v": (1, 2, 96, 96)}, "64 or 128"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    message = refused(capture(tmp_path / "kv.safetensors", **shapes))
    assert message.startswith("kv ") and words in message


def test_fp32_is_refused_with_how_to_convert(tmp_path: Path) -> None:
    message = refused(capture(tmp_path / "kv.safetensors", dtype=torch.float32))
    assert "F32" in message and ".to(torch.float16)" in message and "save_file" in message


def test_mixed_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    dtypes = {"q": torch.float16, "k": torch.float16, "v": torch.bfloat16}
    save_file({f"layers.0.{n}": torch.zeros(1, 1, 4, 64).to(d) for n, d in dtypes.items()}, path)
    assert "v bf16" in refused(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_found_when_loaded(tmp_path: Path, value: float) -> None:
    path = tmp_path / "kv.safetensors"
    named = {f"layers.0.{n}": torch.zeros(2, 2, 96, 64).half() for n in "qkv"}
    named["layers.0.k"][1, 0, 90, 3] = value
    named["layers.0.k"][1, 1, 0, 0] = value
    save_file(named, path)
    with pytest.raises(UsageError, match=r"layers\.0\.k is not finite at index \[1, 0, 90, 3\]"):
        open_captured(path).load("cpu")


def test_a_file_that_changed_after_the_check(tmp_path: Path) -> None:
    path = capture(tmp_path / "kv.safetensors")
    captured = open_captured(path)
    path.write_bytes(b"gone")
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        captured.load("cpu")
