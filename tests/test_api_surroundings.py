"""The public API under what a program may have set around it: defaults of torch, inference mode, and after fork()."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hsbench
from hsbench.cache import cpu_layout, cuda_layout
from hsbench.cache.bitmap import compress_bitmap, compress_bitmap_torch
from hsbench.cache.packing import compress_tensor_torch
from hsbench.cache.prune import plan_blocks, prune_hierarchical
from hsbench.errors import NonFiniteError
from hsbench.kernels import forks, library
from hsbench.problem.inputs import Inputs
from hsbench.problem.synthetic import make_inputs
from hsbench.problem.workload import make_workload
from hsbench.run import check

MISSING = library.why_missing("cpu")
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
PACKAGE = Path(hsbench.__file__).parent


# ---- torch's defaults --------------------------------------------------------------------------------------
@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "set_default_device": default_device,
    "torch.device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}


@pytest.fixture(params=SURROUNDINGS)
def surroundings(request: pytest.FixtureRequest) -> Any:
    return SURROUNDINGS[request.param]


def tensors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 90, 64), (2, 2, 200, 64), (2, 2, 200, 64))
    return tuple(torch.randn(*shape, generator=random).to(dtype) for shape in shapes)


def assert_same(got: Any, right: Any) -> None:
    assert type(got) is type(right)
    if isinstance(right, tuple | list):
        assert len(got) == len(right)
        for one, other in zip(got, right, strict=True):
            assert_same(one, other)
    elif isinstance(right, Tensor):
        assert (got.dtype, got.device, got.shape) == (right.dtype, right.device, right.shape)
        assert torch.equal(got, right)
    else:
        assert got == right


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_api(surroundings: Any, dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype)

    def everything() -> list[Any]:
        kv = hsbench.compress(k, v, 0.3, sink=64)
        head = kv.k.head(1, 1)
        return [
            kv.memory(), kv.achieved_sparsity, kv.unpack(), head.unpack(), kv.k.map, *kv.k.pools.values(),
            hsbench.decode(q[:, :, -1:], kv), hsbench.prefill(q, kv), compress_bitmap(k, "k", 0.5).unpack(),
        ]  # fmt: skip

    right = everything()
    with surroundings():
        got = everything()
    assert_same(got, right)


@needs_native
def test_a_cache_made_under_one_is_used_under_another(surroundings: Any) -> None:
    q, k, v = tensors(torch.float16)
    with surroundings():
        kv = hsbench.compress(k, v)
    expected = hsbench.decode(q[:, :, -1:], hsbench.compress(k, v))
    assert_same(hsbench.decode(q[:, :, -1:], kv), expected)
    assert_same(kv.unpack_head(0, 1)[0], kv.unpack()[0][0, 1])
    with surroundings():
        assert_same(hsbench.decode(q[:, :, -1:], kv), expected)


@needs_native
def test_an_element_that_is_not_finite_is_named(surroundings: Any) -> None:
    _, k, v = tensors(torch.float16)
    v[1, 0, 199, 3] = float("nan")
    with surroundings(), pytest.raises(NonFiniteError) as caught:
        hsbench.compress(k, v)
    assert caught.value.index == (1, 0, 199, 3)


def test_the_definitions(surroundings: Any) -> None:
    """What is written in torch to define the native code, and the check that holds methods against it."""
    q, k, v = tensors(torch.float16)
    plan = plan_blocks(200, 0.5)
    blocks = k[0, :, :64]
    workload = make_workload("prefill", seq=200, q_heads=2, kv_heads=1, head_dim=64, tensors="outliers")

    def everything() -> list[Any]:
        pages = [compress_tensor_torch(x, operand, plan) for x, operand in ((k, "k"), (v, "v"))]
        expected = check.expect(Inputs(q, k, v, "gaussian"), lambda b, h: None, seed=0)
        inputs = make_inputs(workload, "cpu")
        laid_out = [
            layout.unpack_sparse(layout.pack_sparse(blocks, operand), operand, torch.float16, 64)
            for layout in (cpu_layout, cuda_layout)
            for operand in ("k", "v")
        ]
        return [
            *((page.map, *page.pools.values(), page.unpack()) for page in pages),
            compress_bitmap_torch(k, "k", 0.7).unpack(),
            prune_hierarchical(k, "k", torch.ones(2, 2, 4, dtype=torch.bool, device="cpu")),
            (expected.rows, expected.out, expected.lse),
            check.sample_rows(5000, 1),
            (inputs.q, inputs.k, inputs.v),
            laid_out,
        ]

    right = everything()
    with surroundings():
        got = everything()
    assert_same(got, right)


def test_every_new_tensor_names_its_device() -> None:
    """All of hsbench, also what no test here reaches: a factory without ``device=`` follows the default device."""
    from torch.utils._device import _device_constructors

    factories = {function.__name__ for function in _device_constructors()} - {"asarray"}
    seen = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch" and node.func.attr in factories:
                seen += 1
                named = any(keyword.arg == "device" for keyword in node.keywords)
                assert named, f"{path.relative_to(PACKAGE)}:{node.lineno}: torch.{node.func.attr} without device="
    assert seen > 25


# ---- fork() ------------------------------------------------------------------------------------------------
PARENT = """
kv = hsbench.compress(k, v)
expected = [*hsbench.decode(q, kv), *hsbench.prefill(q, kv), *kv.unpack()]
strided = k.transpose(1, 2).contiguous().transpose(1, 2)
wide = q.expand(4, 8, 1024, 128).mT.contiguous().mT  # more elements than torch copies by one thread
"""

CHILD = """
import numpy, signal
signal.alarm(60)
same = lambda x, y: numpy.array_equal(x.view(torch.int16).numpy(), y.view(torch.int16).numpy())  # no threads of torch
threads = torch.get_num_threads()
fresh = hsbench.compress(strided, v)
got = [*hsbench.decode(q, kv), *hsbench.prefill(q, fresh), *fresh.unpack()]
assert all(same(one, other) for one, other in zip(got, expected, strict=True))
hsbench.prefill(wide, kv)
assert torch.get_num_threads() == threads == 2, torch.get_num_threads()
"""


def in_a_child(parent: str, child: str, imports: str = "import hsbench") -> None:
    """Runs both in a process of its own; the child's failure, or its hanging, is the test's."""
    body = "\n".join("        " + line for line in child.strip().splitlines())
    code = f"""
import os, sys, torch
{imports}
torch.set_num_threads(2)
random = torch.Generator().manual_seed(0)
q = torch.randn(4, 8, 1, 128, generator=random).half()
k, v = (torch.randn(4, 4, 4096, 128, generator=random).half() for _ in "kv")
torch.zeros(1 << 22).add_(1)  # now the parent's OpenMP threads are there
{parent}
process = os.fork()
if process == 0:
    code = 1
    try:
{body}
        code = 0
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)
status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
print(f"the child ended with {{status}}", file=sys.stderr, flush=True)
os._exit(status != 0)  # Python's own end unwinds threads that are within torch, which torch takes for a fatal error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/task").exists(), reason="no fork()")


@needs_native
@needs_fork
def test_everything_works_in_a_forked_child() -> None:
    in_a_child(PARENT, CHILD)


@needs_native
@needs_fork
def test_a_child_of_a_child() -> None:
    grandchild = "\n".join("    " + line for line in CHILD.strip().splitlines())
    child = f"{CHILD}\nprocess = os.fork()\nif process == 0:\n{grandchild}\n    os._exit(0)\n"
    in_a_child(PARENT, f"{child}assert os.waitpid(process, 0)[1] == 0")


@needs_native
@needs_fork
def test_a_child_that_imports_hsbench_first() -> None:
    """No one has told hsbench of the fork: what is contiguous asks nothing of torch's threads."""
    compress = 'hsbench.compress(k, v, pruner="magnitude")'  # the others are torch's work
    in_a_child("", f"import signal; signal.alarm(60)\nimport hsbench\nhsbench.decode(q, {compress})", "")


@needs_native
@needs_fork
def test_a_fork_amid_another_threads_kernel() -> None:
    """The child inherits locks that no thread of it will release."""
    parent = f"""{PARENT}
import threading
running = threading.Event()
def busy():
    while True:
        running.set()
        hsbench.prefill(wide, kv)
threading.Thread(target=busy, daemon=True).start()
running.wait()
"""
    in_a_child(parent, "import signal; signal.alarm(60)\nhsbench.decode(q, hsbench.compress(k, v))")


@needs_native
@needs_fork
def test_a_pool_of_forked_workers() -> None:
    code = """
import multiprocessing, sys, torch, hsbench
torch.set_num_threads(2)
random = torch.Generator().manual_seed(0)
q = torch.randn(4, 8, 1, 128, generator=random).half()
k, v = (torch.randn(4, 4, 4096, 128, generator=random).half() for _ in "kv")
torch.zeros(1 << 22).add_(1)
kv = hsbench.compress(k, v)
expected = hsbench.decode(q, kv)[0].numpy().tobytes()

def work(fresh):
    return hsbench.decode(q, hsbench.compress(k, v) if fresh else kv)[0].numpy().tobytes() == expected

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(work, [False, True] * 2).get(timeout=60) == [True] * 4
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def test_only_a_forked_child_is_held_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for child, inside in ((False, 3), (True, 1)):
            monkeypatch.setattr(forks, "_child", child)
            with pytest.raises(KeyError), forks.torch_operations():
                assert torch.get_num_threads() == inside
                raise KeyError
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
