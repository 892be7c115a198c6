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


if __name__ == "__main__":
    raise SystemExit(main())
