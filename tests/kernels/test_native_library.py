"""Loading the compiled part: one header for both sides, stale and missing libraries, instruction sets, errors."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hsbench.cache.prune import BlockKind
from hsbench.errors import UnavailableError
from hsbench.kernels import library
from hsbench.kernels.device import CPU
from hsbench.kernels.library import NativeError
from hsbench.problem.elements import BF16, FP16

MISSING = library.why_missing("cpu")
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
HEADER = Path(__file__).parents[2] / "csrc" / "params.h"
LIBRARY = "libhsbench_cpu.so"


def forget() -> None:
    for cached in (library.structs, library.constants, library.load, library._header):
        cached.cache_clear()


@pytest.fixture
def lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands in for the installed libraries: params.h as in the source, and no library."""
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(HEADER, folder / "params.h")
    monkeypatch.setattr(library, "LIB", folder)
    forget()
    yield folder
    forget()


@pytest.fixture
def declare(lib: Path) -> Callable[[str], dict[str, type[ctypes.Structure]]]:
    """Reads a header of that text."""

    def read(text: str) -> dict[str, type[ctypes.Structure]]:
        (lib / "params.h").write_text(text)
        forget()
        return library.structs()

    return read


# ---- The header --------------------------------------------------------------------------------------------
@needs_native
def test_sizes_are_those_of_the_compiler() -> None:
    names = re.findall(r"typedef struct (\w+)", HEADER.read_text())
    assert len(names) >= 7 and list(library.structs()) == names
    ask = ctypes.CDLL(str(library.LIB / LIBRARY)).hsb_struct_size
    ask.restype = ctypes.c_int64
    for name, struct in library.structs().items():
        assert ask(name.encode()) == ctypes.sizeof(struct) > 0, name
    assert ask(b"hsb_no_such_struct") == -1


def test_every_declaration_of_the_header_becomes_a_field(lib: Path) -> None:
    """A second, cruder reading: the last word before each semicolon."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    for name, struct in library.structs().items():
        body = text.split(f"typedef struct {name} {{")[1].split(f"}} {name};")[0]
        assert [field for field, *_ in struct._fields_] == re.findall(r"(\w+)\s*;", body)


def test_types_and_offsets(declare: Any) -> None:
    structs = declare(
        """
        /* typedef struct hsb_commented { int32_t gone; } hsb_commented; */
        typedef struct hsb_inner { int32_t small; const void *pointer; /* [n; m] */ } hsb_inner;
        typedef struct hsb_outer {
            int64_t wide;      /* one; two */
            float scale;
            hsb_inner inner;
            uint64_t *counts;
            int32_t last;
        } hsb_outer;
        """
    )
    assert list(structs) == ["hsb_inner", "hsb_outer"]
    outer = structs["hsb_outer"]
    # int64 0, float 8, (4 of padding) inner 16 (int32 16, pointer 24), pointer 32, int32 40, (4 of padding)
    offsets = {name: getattr(outer, name).offset for name, _ in outer._fields_}
    assert offsets == {"wide": 0, "scale": 8, "inner": 16, "counts": 32, "last": 40}
    assert ctypes.sizeof(outer) == 48 and structs["hsb_inner"].pointer.offset == 8
    filled = library.make("hsb_outer", wide=2**40, scale=0.5, last=-7, inner=structs["hsb_inner"](3))
    assert (filled.wide, filled.scale, filled.last, filled.inner.small) == (2**40, 0.5, -7, 3)


def test_a_declaration_that_cannot_be_read_is_named(declare: Any) -> None:
    with pytest.raises(NativeError, match=r"params\.h: cannot read 'int32_t a, b' in hsb_two"):
        declare("typedef struct hsb_two { int32_t a, b; } hsb_two;")


def test_every_enumerator_of_the_header_is_a_constant(lib: Path) -> None:
    """A second, cruder reading: every name that is followed by an equals sign."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    found = {name: int(value) for name, value in re.findall(r"\b(HSB_\w+) = (\d+)", text)}
    assert library.constants() == found and len(found) >= 14


def test_the_numbers_in_python_are_those_of_the_header(lib: Path) -> None:
    there = library.constants()
    assert (there["HSB_FP16"], there["HSB_BF16"]) == (FP16.code, BF16.code)
    assert (there["HSB_KEY"], there["HSB_VALUE"]) == (library.KEY, library.VALUE)
    for prefix, mirror in (("HSB_ISA_", library.ISAS), ("HSB_PATH_", library.PATHS)):
        assert {prefix + name.upper(): number for name, number in mirror.items()} == {
            name: number for name, number in there.items() if name.startswith(prefix)
        }
    ways = {f"HSB_PROBE_{name.upper()}": number for name, number in library.PROBE_WAYS.items()}
    assert all(there[name] == number for name, number in ways.items())
    assert set(ways) == {name for name in there if name.startswith("HSB_PROBE_")} - {"HSB_PROBE_AUTO"}
    kinds = re.search(r"enum hsb_block_kind \{(.*?)\}", HEADER.read_text())
    assert kinds and [f"HSB_{kind.name} = {kind}" for kind in BlockKind] == kinds[1].strip().split(", ")
    assert there["HSB_BLOCK_KINDS"] == len(BlockKind)


@pytest.mark.parametrize("enumerator", ["HSB_B", "HSB_B = HSB_A", "HSB_B = 1 << 3"])
def test_an_enumerator_without_a_plain_number_is_named(lib: Path, enumerator: str) -> None:
    (lib / "params.h").write_text(f"enum hsb_odd {{ HSB_A = 0, {enumerator} }};")
    forget()
    with pytest.raises(NativeError, match=rf"params\.h: cannot read '{re.escape(enumerator)}' in hsb_odd"):
        library.constants()


def test_an_unknown_field_is_refused(lib: Path) -> None:
    with pytest.raises(NativeError, match="hsb_pages has no field pages"):
        library.make("hsb_pages", pages=1)


def test_tensors_become_their_addresses(lib: Path) -> None:
    tensor = torch.zeros(4, dtype=torch.int32)
    assert library.make("hsb_pages", map=tensor).map == tensor.data_ptr()
    assert library.make("hsb_pages").map is None


# ---- Stale and missing -------------------------------------------------------------------------------------
def with_library(lib: Path, source: Path) -> None:
    shutil.copy(source / LIBRARY, lib)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed libraries' folder, taken before ``lib`` hides it."""
    return library.LIB


@needs_native
def test_a_copy_loads(built: Path, lib: Path) -> None:
    with_library(lib, built)
    shutil.copy(built / "params.h", lib)
    assert library.why_missing("cpu") is None
    assert library.load("cpu") is library.load("cpu")


@needs_native
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda text: text + "\n", id="a newline"),
        pytest.param(lambda text: text.replace("int32_t reserved;", ""), id="a field less"),
        pytest.param(lambda text: text.replace("int64_t dense_page_bytes;", "float dense_page_bytes;"), id="a type"),
        pytest.param(lambda text: text.replace("HSB_ISA_AVX2 = 2", "HSB_ISA_AVX2 = 4"), id="a constant"),
    ],
)
def test_a_stale_library_is_refused(built: Path, lib: Path, edit: Callable[[str], str]) -> None:
    with_library(lib, built)
    text = (built / "params.h").read_text()
    assert edit(text) != text
    (lib / "params.h").write_text(edit(text))
    with pytest.raises(UnavailableError, match="another version of hsbench: install .*pip install --force-reinstall"):
        library.load("cpu")


@needs_native
def test_a_struct_of_another_size_is_refused(built: Path, lib: Path) -> None:
    """Even under the right stamp: a compiler might lay a struct out in another way."""
    with_library(lib, built)
    shutil.copy(built / "params.h", lib)
    wrong = type("hsb_pages", (ctypes.Structure,), {"_fields_": [("dense", ctypes.c_void_p)]})
    others = library.structs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "structs", lambda: others | {"hsb_pages": wrong})
        with pytest.raises(UnavailableError, match="another version"):
            library.Library("cpu")
    library.Library("cpu")


@pytest.mark.parametrize(("kind", "needs"), [("cpu", "a C++17 compiler"), ("cuda", "nvcc")])
def test_a_missing_library_has_a_remedy(lib: Path, kind: str, needs: str) -> None:
    reason = library.why_missing(kind)
    assert reason is not None and "\n" not in reason
    assert reason.startswith(f"the {kind.upper()} library was not built: install {needs}")
    assert "pip install" in reason
    with pytest.raises(UnavailableError, match="was not built") as caught:
        library.load(kind)
    assert caught.value.exit_code == 4


def test_a_damaged_library_has_a_remedy(lib: Path) -> None:
    (lib / LIBRARY).write_bytes(b"not an ELF file")
    with pytest.raises(UnavailableError, match=r"does not load \(.*\): install .*pip install"):
        library.load("cpu")


def test_doctor_tells_the_reason_from_the_remedy(lib: Path) -> None:
    """Also where the loader's own words hold a colon."""
    from hsbench.machine import hardware

    for content in (None, b"not an ELF file"):
        if content is not None:
            (lib / LIBRARY).write_bytes(content)
            forget()
        item = next(item for item in hardware.missing() if item["what"] == "CPU kernels")
        assert item["remedy"].startswith("install a C++17 compiler")
        assert ("does not load" if content else "was not built") in item["why"]
        assert "only torch's methods run" in item["why"]


@needs_native
def test_a_missing_header_has_a_remedy(built: Path, lib: Path) -> None:
    with_library(lib, built)
    (lib / "params.h").unlink()
    with pytest.raises(UnavailableError, match=r"params\.h is missing: .*pip install"):
        library.load("cpu")


# ---- Instruction sets and threads --------------------------------------------------------------------------
@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this a machine whose best instruction set is the one named."""

    class Processor:
        def __init__(self, isa: str) -> None:
            self.isa = isa

        def number(self, function: str) -> int:
            assert function == "hsb_cpu_best_isa"
            return library.ISAS[self.isa]

    return lambda isa: monkeypatch.setattr(library, "load", lambda kind: Processor(isa))


@pytest.mark.parametrize("machine", ["portable", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("forced", [None, *library.ISAS])
def test_hsbench_isa(best: Any, machine: str, forced: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    best(machine)
    monkeypatch.delenv("HSBENCH_ISA", raising=False)
    if forced is not None:
        monkeypatch.setenv("HSBENCH_ISA", forced)
    order = ["auto", "portable", "avx2", "avx512", "avx512_bf16"]
    if forced in (None, "auto"):
        assert library.requested_isa() == library.ISAS["auto"] and library.best_isa() == machine
    elif order.index(forced) <= order.index(machine):
        assert library.requested_isa() == library.ISAS[forced] and library.best_isa() == forced
    else:
        can = ", ".join(order[: order.index(machine) + 1])
        with pytest.raises(UnavailableError, match=f"HSBENCH_ISA={forced} cannot run .*: use one of {can}$"):
            library.requested_isa()


def test_an_unknown_hsbench_isa(best: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    best("avx2")
    monkeypatch.setenv("HSBENCH_ISA", "neon")
    with pytest.raises(UnavailableError, match="HSBENCH_ISA=neon .* use one of auto, portable, avx2$"):
        library.best_isa()


@needs_native
def test_the_library_refuses_an_instruction_set_that_it_does_not_know() -> None:
    source, checksum = torch.zeros(4096, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    params = library.make("hsb_probe_params", bytes=4096, threads=1, isa=17, src=source, checksum=checksum)
    with pytest.raises(NativeError, match=r"isa"):
        library.load("cpu").call("hsb_cpu_probe", params)


def test_threads_are_torchs() -> None:
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert library.threads() == count
    finally:
        torch.set_num_threads(before)


@needs_native
def test_operations_that_a_library_lacks() -> None:
    assert library.why_cannot("decode", CPU) is None
    reason = library.why_cannot("transmogrify", CPU)
    assert reason is not None and "no transmogrify kernel for cpu" in reason and "--device" in reason
    with pytest.raises(UnavailableError, match="no transmogrify kernel for cpu"):
        library.Operation("transmogrify", torch.device("cpu"), library.make("hsb_decode_params"))


# ---- Errors ------------------------------------------------------------------------------------------------
OPERATIONS = {
    "hsb_cpu_decode": "hsb_decode_params",
    "hsb_cpu_decode_bitmap": "hsb_decode_params",
    "hsb_cpu_prefill": "hsb_prefill_params",
    "hsb_cpu_compress": "hsb_compress_params",
    "hsb_cpu_compress_bitmap": "hsb_compress_bitmap_params",
    "hsb_cpu_mean": "hsb_mean_params",
    "hsb_cpu_token_norms": "hsb_token_norms_params",
    "hsb_cpu_probe": "hsb_probe_params",
}
NUMBERS = {
    "hsb_cpu_decode_workspace": "hsb_decode_params",
    "hsb_cpu_decode_bitmap_workspace": "hsb_decode_params",
    "hsb_cpu_prefill_workspace": "hsb_prefill_params",
    "hsb_cpu_compress_workspace": "hsb_compress_params",
}
WHERE = r"[\w/.-]+\.(cpp|h):\d+: \S.*: \S.*"  # file:line: condition: message


@needs_native
@pytest.mark.parametrize(("function", "struct"), OPERATIONS.items())
def test_errors_carry_file_line_and_condition(function: str, struct: str) -> None:
    with pytest.raises(NativeError) as caught:
        library.load("cpu").call(function, library.make(struct))
    assert re.fullmatch(rf"{function}: {WHERE}", str(caught.value))


@needs_native
@pytest.mark.parametrize(("function", "struct"), NUMBERS.items())
def test_errors_of_questions_do_so_too(function: str, struct: str) -> None:
    with pytest.raises(NativeError) as caught:
        library.load("cpu").number(function, library.make(struct))
    assert re.fullmatch(rf"{function}: {WHERE}", str(caught.value))


@needs_native
@pytest.mark.parametrize("field", ["q", "out", "lse", "workspace"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_null_pointer_is_refused(phase: str, field: str) -> None:
    from hsbench.attention import calls
    from hsbench.cache.fitted import compress_kv

    k = torch.randn(1, 1, 70, 64, generator=torch.Generator().manual_seed(0)).half()
    kv = compress_kv(k, k, key_sparsity=0.5, value_sparsity=0.5)
    call = (calls.decode_call if phase == "decode" else calls.prefill_call)(k[:, :, :1], kv)
    call.run()
    setattr(call._native.params, field, None)
    with pytest.raises(NativeError, match=rf"{phase}\.cpp:\d+: .*{field}"):
        call.run()


@needs_native
def test_the_pools_are_checked() -> None:
    from hsbench.attention import calls
    from hsbench.cache.fitted import compress_kv

    k = torch.ones(1, 1, 128, 64, dtype=torch.float16)
    kv = compress_kv(k, k, key_sparsity=0.5, value_sparsity=0.5)
    call = calls.decode_call(k[:, :, :1], kv)
    for operand, field, value in (("k", "map", None), ("v", "map", None), ("v", "sparse_page_bytes", 9216)):
        pages = getattr(call._native.params, operand)
        before = getattr(pages, field)
        setattr(pages, field, value)
        with pytest.raises(NativeError, match=rf"{field}"):
            call.run()
        setattr(pages, field, before)
    call.run()
