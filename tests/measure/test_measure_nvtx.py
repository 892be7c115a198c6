"""NVTX by its C interface: with its library and no tool, with a tool (a small one, compiled here), and without it.

The tool does what Nsight Systems 2022.4 and 2023.4 do: it takes ranges, and refuses the extension of NVTX that has
``nvtxDomainIsEnabled``, so that the answer to that is no.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hsbench.measure import nvtx

# The functions have fixed places in the tables that NVTX asks a tool to fill (nvtxCallbackIdCore2).
TOOL = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef struct {
    uint16_t version, size; uint32_t category; int32_t color_type; uint32_t color; int32_t payload_type, reserved;
    union { int64_t whole; double real; } payload; int32_t message_type; const char* message;
} Event;
typedef void (*Function)(void);
typedef struct { size_t size; int (*table)(uint32_t, Function***, unsigned int*); } Callbacks;
static void say(const char* what, const Event* e) {
    printf("%s %s %d/%d", what, e->message, e->message_type, e->size);
    if (e->payload_type == 2) printf(" %lld", (long long)e->payload.whole);
    if (e->payload_type == 3) printf(" %g", e->payload.real);
    puts("");
}
static void mark(void* domain, const Event* e) { say("mark", e); }
static int push(void* domain, const Event* e) { say("push", e); return 0; }
static int pop(void* domain) { puts("pop"); return 0; }
static void* create(const char* name) { printf("domain %s\n", name); return (void*)name; }
static void* keep(void* domain, const char* text) { printf("string %s\n", text); return strdup(text); }
int InitializeInjectionNvtx2(const void* (*get)(uint32_t)) {
    Function** core; unsigned int size;
    ((const Callbacks*)get(1))->table(5, &core, &size);  // NVTX_ETID_CALLBACKS, NVTX_CB_MODULE_CORE2
    *core[1] = (Function)mark; *core[4] = (Function)push; *core[5] = (Function)pop;
    *core[10] = (Function)keep; *core[12] = (Function)create;
    return 1;
}
int InitializeInjectionNvtxExtension(void* module) { return 0; }
"""
RUN = """
from hsbench.measure import annotate, mark
with annotate("sample", 3), annotate("half", 2.5):
    mark("here")
with annotate("sample"):
    pass
"""


def run(injection: Path | None) -> list[str]:
    env = {name: value for name, value in os.environ.items() if "NVTX" not in name and "NVTOOLSEXT" not in name}
    if injection is not None:
        env["NVTX_INJECTION64_PATH"] = str(injection)
    ran = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=env, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_tool_that_calls_no_domain_enabled_hears_every_range(tmp_path: Path) -> None:
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        pytest.skip("no C compiler, to make a tool with")
    (tmp_path / "tool.c").write_text(TOOL)
    library = tmp_path / "libtool.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "tool.c")], check=True)
    assert run(library) == [
        "domain hsbench",
        "string sample",
        "push sample 3/48 3",
        "string half",
        "push half 3/48 2.5",
        "string here",
        "mark here 3/48",
        "pop",
        "pop",
        "push sample 3/48",
        "pop",
    ]


def test_without_a_tool_there_is_no_domain() -> None:
    assert nvtx.why_missing() is None, "installed with hsbench"
    assert run(None) == []


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx, "_LIBRARY", "libnot-here.so")
    monkeypatch.setattr(nvtx, "_load", nvtx._load.__wrapped__)


def test_without_the_library_nothing_happens_and_the_remedy_is_known(no_library: None) -> None:
    assert nvtx.why_missing() == "nvidia-nvtx is not installed: pip install nvidia-nvtx"
    assert nvtx.open_domain("hsbench") is None


def test_a_library_that_cannot_be_used(no_library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libnvtx3interop.so.1"
    broken.write_text("of another machine")
    monkeypatch.setattr(nvtx, "_installed", lambda: broken)
    said = nvtx.why_missing()
    assert said is not None and said.startswith(f"{broken} cannot be used (")
    assert said.endswith("): pip install --force-reinstall nvidia-nvtx") and nvtx.open_domain("hsbench") is None
