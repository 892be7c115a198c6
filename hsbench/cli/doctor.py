"""``hsbench doctor``."""

from __future__ import annotations

import json

from hsbench.cli import options as o
from hsbench.cli.output import results_stdout, writing
from hsbench.cli.parse import parse_choice


def doctor(format: o.DoctorFormat = None, probe: o.Probe = True) -> int:
    """Say what this machine can run, what is missing and how to get it, and how fast its memory is.

    Example: hsbench doctor
    """
    chosen = parse_choice(format or "table", "format", ("table", "json"))
    stdout = results_stdout("send it somewhere, as in hsbench doctor > FILE")

    from hsbench.report import console_for
    from hsbench.report.doctor import document, render_doctor
    from hsbench.run import diagnosis

    facts = diagnosis.diagnose(probe)
    with writing():
        if chosen == "json":
            print(json.dumps(document(facts), indent=2))
        else:
            render_doctor(facts, console_for(stdout))
    return 0
