"""A sequence over several ranks in cells: what a method's time is made of there, and what more ranks are worth."""

from __future__ import annotations

from hsbench.report import text
from hsbench.results import Record


def parts(ok: list[Record]) -> list[list[str]]:
    """A header, and a line per method; empty where there is one rank."""
    records = [record for record in ok if record.case.ranks != 1 and record.measures.part_us is not None]
    if not records:
        return []
    unit, length = text.time_unit([record.measures.part_us or 0.0 for record in records])
    name, nbytes = text.byte_unit([record.measures.device_kv_bytes or 0 for record in records])

    def us(value: float) -> str:
        return text.digits(value / length)

    rows = []
    for record in records:
        m = record.measures
        cells = [
            text.known(m.part_us, us),
            text.known(m.collective_us, us),
            text.known(m.efficiency, "{:.2f}".format),
            m.efficiency_by or "",
            text.known(m.device_kv_bytes, lambda count: text.amount(count, nbytes)),
        ]
        rows.append([record.method, *cells])
    ranks = records[0].case.ranks
    return [[f"{ranks} ranks", f"part {unit}", f"collective {unit}", "efficiency", "by", f"device {name}"], *rows]
