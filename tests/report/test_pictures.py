"""Pictures: what they draw, by the data of their marks."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hsbench.errors import UsageError
from hsbench.report.pictures import Picture, draw, drawing, theme
from hsbench.report.pictures.kinds import KINDS
from hsbench.report.pictures.quality import frontier
from hsbench.results import (
    GenerateCase,
    Generated,
    GenerateMeasures,
    Quality,
    QualityCase,
    QualityMeasures,
    Result,
    Stored,
)

MACHINE = {"cpu": {"model": "Test CPU", "threads": 4, "isa": "avx2"}, "gpu": None, "versions": {"torch": "2.13.0"}}
MANIFEST = {"started": "2026-11-27T12:00:00+00:00"}


def stored(results: list[Any], name: str = "sweep.csv") -> Stored:
    found = [one if isinstance(one, Result) else Result(one) for one in results]
    return Stored(Path(name), "csv", found, MANIFEST, MACHINE)


@pytest.fixture
def sweep(workload: Any, row_ok: Any, row_failed: Any) -> list[Any]:
    """Two lengths by two sparsities; the dense method beside each."""
    rows = []
    for seq, dense in ((8192, 400.0), (32768, 1600.0)):
        for share in (0.25, 0.5):
            cell = workload(seq=seq, key_sparsity=share, value_sparsity=share)
            # a dense row does not differ by sparsity: 400, 404
            rows.append(row_ok(cell, "dense", dense * (1 + (share - 0.25) / 25), {"dense": 100}))
            rows.append(row_ok(cell, "hierarchical", dense * (1 - 0.8 * share), {"2:4": int(100 * (1 - 0.8 * share))}))
            rows.append(row_failed(cell, "unstructured", "oom", "needs 34 GiB"))
    return rows


def layers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every layer or unit, with the data that it draws."""
    for key in ("vconcat", "hconcat", "layer"):
        for part in spec.get(key, []):
            yield from layers(part)
    if "mark" in spec:
        yield spec


def marks(picture: Picture, kind: str, field: str) -> list[dict[str, Any]]:
    """The points that marks of a kind draw at a field."""
    return [
        point
        for layer in layers(picture.spec())
        if (layer["mark"] == kind or (isinstance(layer["mark"], dict) and layer["mark"].get("type") == kind))
        and any(isinstance(one, dict) and one.get("field") == field for one in layer["encoding"].values())
        for point in layer["data"]["values"]
    ]


def at(points: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(point[name] for name in names) for point in points]


def test_scaling(sweep: list[Any]) -> None:
    picture = draw([stored(sweep)])
    assert picture.kind == "scaling"
    times = at(marks(picture, "line", "time"), "series", "seq", "time")
    assert times == [
        ("dense", 8192, 404.0),  # of two that are the same, one is shown
        ("hierarchical, sparsity 0.25", 8192, 320.0),
        ("hierarchical, sparsity 0.5", 8192, 240.0),
        ("dense", 32768, 1616.0),
        ("hierarchical, sparsity 0.25", 32768, 1280.0),
        ("hierarchical, sparsity 0.5", 32768, 960.0),
    ]
    assert marks(picture, "line", "time") == marks(picture, "point", "time")
    bands = marks(picture, "area", "time_lo")
    assert at(bands, "time_lo", "time_hi")[1] == (320 * 0.98, 320 * 1.03) and len(bands) == 6
    faster = at(marks(picture, "line", "speedup"), "series", "seq", "speedup", "speedup_lo", "speedup_hi")
    assert len(faster) == 4 and faster[0] == (
        "hierarchical, sparsity 0.25",
        8192,
        7400 / 320,
        7400 / 320 * 0.97,
        7400 / 320 * 1.03,
    )


def test_what_could_not_run_is_shown_in_both_panels(sweep: list[Any]) -> None:
    picture = draw([stored(sweep)])
    failed = [layer for layer in layers(picture.spec()) if layer["mark"] == theme.FAILED]
    assert len(failed) == 2
    for layer in failed:
        points = layer["data"]["values"]
        assert at(points, "seq", "status", "reason", "nth")[:2] == [
            (8192, "oom", "needs 34 GiB", 0),
            (8192, "oom", "needs 34 GiB", 1),
        ]
        assert {"status", "reason"} <= {tip["field"] for tip in layer["encoding"]["tooltip"]}
    assert "× without numbers: 4 oom" in picture.spec()["title"]["subtitle"]


def test_throttled_and_shared_rows_have_a_ring(sweep: list[Any]) -> None:
    sweep[1].record.measures.throttled = True
    sweep[4].record.measures.shared = True
    picture = draw([stored(sweep)])
    rings = [
        point for layer in layers(picture.spec()) if layer["mark"] == theme.RING for point in layer["data"]["values"]
    ]
    assert {(point["series"], point["state"]) for point in rings} >= {
        ("hierarchical, sparsity 0.25", "clocks held down"),
        ("hierarchical, sparsity 0.5", "device shared"),
    }
    assert any(line.startswith("○ around a point") for line in picture.spec()["title"]["subtitle"])


def test_sparsity(sweep: list[Any]) -> None:
    picture = draw([stored(sweep)], "sparsity")
    titles = [panel["title"]["text"] for panel in picture.spec()["vconcat"]]
    assert titles == ["8k tokens", "32k tokens"]
    assert at(marks(picture, "line", "kv_ratio"), "series", "sparsity")[:2] == [
        ("hierarchical", 0.25),
        ("hierarchical", 0.5),
    ]
    assert len(marks(picture, "line", "speedup")) == 4 and picture.series == (
        ("hierarchical", False),
        ("unstructured", False),
    )
    assert draw([stored(sweep[:6])]).kind == "sparsity", "by itself, where lengths do not differ"


def test_roofline(sweep: list[Any]) -> None:
    picture = draw([stored(sweep[:3])])
    assert picture.kind == "roofline"
    (dense, fast) = marks(picture, "point", "rate")[:2]
    assert dense["rate"] == 100 / 400 / 1e3 and dense["percent"] == 79.6 and fast["series"] == "hierarchical"
    (panel,) = picture.spec()["vconcat"]
    probes = [
        one
        for one in panel["layer"]
        if one["data"]["values"][0].get("probe") == "read" and one["mark"].get("strokeWidth")
    ]
    drawn = [one["encoding"]["x"]["datum"] for one in probes if "datum" in one["encoding"].get("x", {})]
    assert drawn == pytest.approx([dense["rate"] / 0.796])
    (status,) = [one for one in panel["layer"] if one["encoding"].get("text", {}).get("field") == "status"]
    assert at(status["data"]["values"], "series", "status") == [("unstructured", "oom")]


def test_each_cell_has_its_own_probe(sweep: list[Any]) -> None:
    for one in sweep[3:6]:
        one.record.measures.percent_of_ceiling = 40.0
    picture = draw([stored(sweep[:6])], "roofline")
    panels = picture.spec()["vconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["sparsity 0.25", "sparsity 0.5"]
    ceilings = [one["data"]["values"][0].get("ceiling") for panel in panels for one in panel["layer"][-3:-1]]
    assert picture.series == (("hierarchical", False), ("unstructured", False), ("dense", True))
    assert len({one for one in ceilings if one}) == 2


def test_several_files_are_several_series(sweep: list[Any]) -> None:
    picture = draw([stored(sweep, "before.csv"), stored(sweep, "after.csv")])
    assert {label for label, dense in picture.series if dense} == {"dense (before.csv)", "dense (after.csv)"}
    assert [line for line in picture.spec()["title"]["subtitle"] if "Test CPU" in line] == [
        "Test CPU, 4 threads, avx2 · torch 2.13.0 · 2026-11-27 · before.csv",
        "Test CPU, 4 threads, avx2 · torch 2.13.0 · 2026-11-27 · after.csv",
    ]


def test_methods_that_are_asked_for(sweep: list[Any]) -> None:
    picture = draw([stored(sweep)], methods=["dense"])
    assert picture.series == (("dense", True),)
    assert draw([stored(sweep)], methods=["dense:16bit"]).series == picture.series
    with pytest.raises(UsageError, match="has no rows of decode, prefill or compare of evict"):
        draw([stored(sweep)], methods=["evict"])


# ---- What it costs a model -----------------------------------------------------------------------------------
def quality(method: str = "hierarchical", share: float = 0.5, status: str = "ok", **given: Any) -> Quality:
    names = ("model_hash", "text_hash", "device", "weights")
    case: dict[str, Any] = dict.fromkeys(names, "x") | {
        "model": "tiny",
        "text": "a.txt",
        "dtype": "fp16",
        "when": "decode",
    }
    case |= dict.fromkeys(("chunk", "basis", "plan", "layer", "head", "depths", "threads", "isa"))
    case |= {"context": 1024, "score": 256, "windows": 2, "sink": 64, "local": 256, "seed": 0, "evict": 0.0}
    case |= {
        "method": method,
        "elements": "16bit",
        "pruner": "magnitude",
        "key_sparsity": share,
        "value_sparsity": share,
    }
    columns = {one.name for one in dataclasses.fields(QualityCase)}
    case |= {name: value for name, value in given.items() if name in columns}
    measures = {name: value for name, value in given.items() if name not in columns}
    return Quality(QualityCase(**case), QualityMeasures(**measures), status, None if status == "ok" else "why")


SETTINGS = [
    quality(share=0.0, kl=1e-9, kv_ratio=1.0, perplexity_change=0.01),
    quality(share=0.5, kl=0.2, kl_lo=0.1, kl_hi=0.3, kv_ratio=1.75, perplexity_change=20.0),
    quality(share=0.5, pruner="mirror", kl=0.02, kl_lo=0.01, kl_hi=0.03, kv_ratio=1.75, perplexity_change=2.0),
    quality("dense", 0.0, pruner=None, elements="fp8", kl=0.001, kl_lo=0.0005, kl_hi=0.002, kv_ratio=2.0),
]


def test_quality_by_memory_alone() -> None:
    picture = draw([stored(SETTINGS)])
    assert picture.kind == "quality" and len(picture.spec()["vconcat"][0]["hconcat"]) == 1
    points = marks(picture, "point", "cost")
    assert at(points, "series", "kv_ratio", "cost", "speedup") == [
        ("hierarchical:magnitude", 1.0, 1e-6, None),  # no axis shows less
        ("hierarchical:magnitude", 1.75, 0.2, None),
        ("hierarchical:mirror", 1.75, 0.02, None),
        ("dense:fp8", 2.0, 0.001, None),
    ]
    assert at(marks(picture, "line", "cost"), "kv_ratio", "cost") == [(1.0, 1e-6), (2.0, 0.001)], "the frontier"
    assert at(marks(picture, "rule", "cost_lo"), "cost_lo", "cost_hi") == [(0.1, 0.3), (0.01, 0.03), (0.0005, 0.002)]


def test_quality_by_decode_speedup(workload: Any, row_ok: Any) -> None:
    times = [
        row_ok(workload(seq=seq, pruner=pruner), method, time, {"all": 100}, speedup=faster)
        for seq, method, pruner, time, faster in (
            (8192, "hierarchical", "magnitude", 300.0, 1.2),
            (32768, "hierarchical", "magnitude", 900.0, 1.6),
            (32768, "hierarchical", "mirror", 900.0, 1.5),
            (32768, "dense:fp8", "magnitude", 800.0, 1.9),
            (32768, "dense", "magnitude", 1400.0, 1.0),
        )
    ]
    times.append(row_ok(workload(seq=32768, key_sparsity=0.25), "unstructured", 1500.0, {"all": 100}, speedup=0.8))
    settings = [*SETTINGS, quality("unstructured", pruner=None, kl=0.01, kv_ratio=1.5)]  # at another sparsity
    picture = draw([stored(settings, "quality.json"), stored(times, "decode.json")])
    (row,) = picture.spec()["vconcat"]
    assert [panel["layer"][2]["encoding"]["x"]["field"] for panel in row["hconcat"]] == ["kv_ratio", "speedup"]
    drawn = row["hconcat"][1]["layer"][2]["data"]["values"]
    assert at(drawn, "setting", "speedup", "seq") == [
        ("hierarchical:magnitude", 1.6, 32768),  # the longest
        ("hierarchical:mirror", 1.5, 32768),
        ("dense:fp8", 1.9, 32768),
    ]
    assert at(row["hconcat"][1]["layer"][0]["data"]["values"], "setting") == [("dense:fp8",)]
    assert any("decode at 32k tokens" in line for line in picture.spec()["title"]["subtitle"])


def test_the_perplexity_instead() -> None:
    picture = draw([stored(SETTINGS)], metric="perplexity")
    assert at(marks(picture, "point", "cost"), "cost") == [(0.01,), (20.0,), (2.0,)]


def test_the_frontier() -> None:
    points = [
        {"cost": cost, "gain": gain} for cost, gain in ((1, 1), (2, 1), (2, 3), (3, 2), (5, 3), (4, 4), (0, None))
    ]
    assert at(frontier(points, "gain"), "gain", "cost") == [(1, 1), (3, 2), (4, 4)]


def test_a_panel_for_each_text() -> None:
    others = [quality(text="b.txt", kl=0.1, kv_ratio=1.75)]
    picture = draw([stored([*SETTINGS, *others])])
    assert [panel["title"]["text"] for panel in picture.spec()["vconcat"]] == ["a.txt", "b.txt"]


def test_layers() -> None:
    rows = [quality(layer=layer, kl=0.01 * (layer + 1), kl_lo=0.0, kl_hi=0.1) for layer in range(2)]
    rows += [
        quality(layer=layer, head=head, output_error=0.1 + layer + head) for layer in range(2) for head in range(3)
    ]
    picture = draw([stored([quality(kl=0.2, kv_ratio=1.75), *rows])])
    assert picture.kind == "layers"
    assert at(marks(picture, "rect", "error"), "layer", "head", "error") == [
        (layer, head, 0.1 + layer + head) for layer in range(2) for head in range(3)
    ]
    assert at(marks(picture, "point", "kl"), "layer", "kl") == [(0, 0.01), (1, 0.02)]
    with pytest.raises(UsageError, match="no rows of single heads; quality --per-layer writes them"):
        draw([stored(SETTINGS)], "layers")


def generated(method: str, context: int, ms: float, speedup: float, **shares: float) -> Generated:
    case = GenerateCase(
        model="m", model_hash="0", text="drawn", text_hash="0", device="cuda", weights="bf16", dtype="bf16",
        context=context, batch=8, new_tokens=9, method=method, pruner=None, basis=None, plan=None, key_sparsity=0.0,
        value_sparsity=0.0, sink=64, local=256, temperature=0.0, seed=0, eager=False, threads=None, isa=None,
    )  # fmt: skip
    measures = {f"{part}_share": share for part, share in shares.items()}
    return Generated(case, GenerateMeasures(token_ms=ms, speedup=speedup, **measures), "ok")


def test_parts_of_a_step() -> None:
    rows = [
        generated("dense", 8192, 10.0, 1.0, attention=0.5, mlp=0.25, other=0.25),
        generated("hierarchical", 8192, 8.0, 1.25, attention=0.25, append=0.125, mlp=0.625),
        generated("dense", 32768, 20.0, 1.0, attention=0.75, mlp=0.25),
    ]
    picture = draw([stored(rows, "rows.json")])
    panels = picture.spec()["vconcat"]
    assert picture.kind == "step" and "8 sequences" in picture.about
    assert [panel["title"]["text"] for panel in panels] == ["8k tokens", "32k tokens"]
    bars = panels[0]["layer"][0]["data"]["values"]
    ms = {(point["method"], point["part"]): point["ms"] for point in bars}
    assert ms["dense", "attention"] == 5.0 and ms["hierarchical", "append"] == 1.0
    assert sum(point["ms"] for point in bars if point["method"] == "hierarchical") == 8.0
    assert [one["words"] for one in panels[0]["layer"][1]["data"]["values"]] == ["10.00", "8.00, 1.25x"]
    with pytest.raises(UsageError, match="has no rows of generate, which --kind step draws"):
        draw([stored(SETTINGS)], "step")


# ---- What cannot be drawn ------------------------------------------------------------------------------------
def test_what_cannot_be_drawn(sweep: list[Any]) -> None:
    with pytest.raises(UsageError, match="has no rows of quality, which --kind quality draws"):
        draw([stored(sweep)], "quality")
    with pytest.raises(UsageError, match=r"has no row that is ok, so there is nothing to draw \(oom: needs 34 GiB\)"):
        draw([stored([one for one in sweep if one.record.status != "ok"])])
    with pytest.raises(UsageError, match="no method of the file prunes"):
        draw([stored([one for one in sweep if one.record.case.dense])], "sparsity")
    with pytest.raises(UsageError, match="kind pie: unknown"):
        draw([stored(sweep)], "pie")


def test_one_row(sweep: list[Any]) -> None:
    for kind in ("scaling", "roofline"):
        assert at(marks(draw([stored(sweep[:1])], kind), "point", "time" if kind == "scaling" else "rate"), "seq") == [
            (8192,)
        ]


def test_a_cell_without_a_number(sweep: list[Any]) -> None:
    sweep[1].record.measures.time_us = None
    assert len(marks(draw([stored(sweep)]), "line", "time")) == 5


# ---- The looks -----------------------------------------------------------------------------------------------
def test_series_differ_by_shape_and_dash_where_colours_do_not_show(sweep: list[Any]) -> None:
    picture = draw([stored(sweep)])
    (line,) = [
        one for one in layers(picture.spec()) if one["mark"] == "line" and one["encoding"]["y"]["field"] == "time"
    ]
    (dots,) = [
        one for one in layers(picture.spec()) if one["mark"] == "point" and one["encoding"]["y"]["field"] == "time"
    ]
    for scale in (line["encoding"]["strokeDash"]["scale"], dots["encoding"]["shape"]["scale"]):
        assert len({str(value) for value in scale["range"]}) == len(scale["domain"]) == len(picture.series)


def test_lines_stand_out_from_the_paper() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for look in theme.THEMES:
        config = theme.config(look, [(str(n), n >= 6) for n in range(10)])
        paper = light(config["background"])
        for colour in config["range"]["category"]:
            bright, dark = sorted((light(colour), paper), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 3, (look, colour)


def test_the_spec_is_the_same_in_both_looks(sweep: list[Any]) -> None:
    picture = draw([stored(sweep)])
    light, dark = (picture.spec(look) for look in theme.THEMES)
    assert light.pop("config") != dark.pop("config") and light == dark


WITH_VL_CONVERT = pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="needs vl-convert-python")


def every_kind(sweep: list[Any]) -> list[Picture]:
    heads = [quality(layer=0, head=head, output_error=0.1) for head in range(3)]
    steps = [
        generated("dense", 8192, 10.0, 1.0, attention=0.5),
        generated("hierarchical", 8192, 8.0, 1.25, attention=0.5),
    ]
    attention, costs = stored(sweep), stored([*SETTINGS, *heads])
    of = {"quality": costs, "layers": costs, "step": stored(steps)}
    return [draw([of.get(kind, attention)], kind) for kind in KINDS if kind != "auto"]


def test_the_spec_is_vega_lite_s(sweep: list[Any]) -> None:
    """By its schema, which Altair has."""
    jsonschema, altair = pytest.importorskip("jsonschema"), pytest.importorskip("altair")
    (path, *_) = Path(altair.__file__).parent.glob("vegalite/v*/schema/vega-lite-schema.json")
    schema = jsonschema.Draft7Validator(json.loads(path.read_text(encoding="utf-8")))
    for picture in every_kind(sweep):
        spec = picture.spec()
        for layer in layers(spec):
            layer["data"]["values"] = layer["data"]["values"][:1]  # one is as good as all
        assert [error.message for error in schema.iter_errors(spec)] == [], picture.kind
        next(layers(spec))["mark"] = "blot"
        assert not schema.is_valid(spec)


@WITH_VL_CONVERT
def test_every_kind_is_drawn(sweep: list[Any]) -> None:
    """As SVG; one of them in both looks and as PNG. Every number that a mark is made of has found its place."""
    for at, picture in enumerate(every_kind(sweep)):
        for look in theme.THEMES[: 1 if at else 2]:
            drawn = drawing.svg(picture, look).decode()
            assert drawn.startswith("<svg") and "NaN" not in drawn and picture.title in drawn, picture.kind
            assert theme.config(look, ())["background"].lower() in drawn.lower()
    assert drawing.png(picture, "light").startswith(b"\x89PNG")


@WITH_VL_CONVERT
def test_the_page_needs_nothing_else(sweep: list[Any]) -> None:
    page = drawing.page(draw([stored(sweep)]), "light").decode()
    assert "src=" not in page.split("<script")[0] and "<link" not in page and "import(" not in page.split("looks")[0]
    assert page.count("</script>") == 3 and json.loads(page.split('id="looks">')[1].split("</script>")[0])["dark"]
