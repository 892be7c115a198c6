"""docs/results.md is the published description of the schema: it says what the declarations say."""

from __future__ import annotations

import re
from pathlib import Path

from hsbench.results import SCHEMA, STATUSES, GenerateCase, GenerateMeasures, QualityCase, QualityMeasures, Record
from hsbench.results.columns import columns_of

PAGE = (Path(__file__).parents[2] / "docs/results.md").read_text(encoding="utf-8")


def test_every_column_is_described_in_order():
    described = re.findall(r"^\| `\w+` \| (?:bool|int|float|str)\b.*\|$", PAGE, re.MULTILINE)
    others = (QualityCase, QualityMeasures, GenerateCase, GenerateMeasures)
    assert described == [
        f"| `{one.name}` | {one.type.__name__}{'?' * one.optional} | {one.unit} | {one.hint} | {one.meaning} |"
        for one in (*Record.columns(), *(column for kind in others for column in columns_of(kind)))
    ]


def test_statuses_and_schema_are_described():
    assert tuple(re.findall(r"^\| `(\w+)` \| [^|]*\|$", PAGE, re.MULTILINE))[: len(STATUSES)] == STATUSES
    assert f"This is schema `{SCHEMA}`" in PAGE
    assert f"\n**{SCHEMA.partition('/')[2]}** (from 3)\n" in PAGE
