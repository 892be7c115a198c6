"""The commands: one file each, thin, over a few shared parts.

``options.py`` declares every option once; ``usage.py`` turns a bad command line into one line of text;
``request.py`` checks everything before any work and makes a plan; ``run.py`` carries it out through
``output.py`` (where results go, to a place that ``places.py`` knows) and ``progress.py`` (what is shown meanwhile), and
``handoff.py`` takes its cells to a profiler afterwards. ``streams.py`` is the one way to stderr; ``signals.py`` is
Ctrl-C and its like. Nothing here measures, and torch is imported only once a plan is whole.
"""
