"""``python -m hsbench``, and the ``hsbench`` command: ready for Ctrl-C before anything that takes time is imported."""

from __future__ import annotations


def main() -> int:
    """Run the command line of this process and return its exit code. Raises nothing."""
    try:
        from hsbench.cli import signals

        signals.leave_at_once()
        from hsbench.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # in the few milliseconds before that, or an impatient one at the very end
        from hsbench.cli.streams import say

        say("hsbench: interrupted")
        return 130


def end(code: int) -> None:
    """End this process. A rank ends at once: threads of its collectives that are left at the interpreter's end have
    been seen to abort it there, after all was done."""
    import os
    import sys

    if not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        raise SystemExit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            code = code or 1
    os._exit(code)


if __name__ == "__main__":
    end(main())
