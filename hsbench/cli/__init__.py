"""The commands: one file each, thin, over a few shared parts.

``options.py`` declares every option once; ``usage.py`` turns a bad command line into one line of text. A ``request.py``
holds what was typed; ``parse.py`` reads sizes, shares and lists, and knows what an option is called; ``problems.py``
makes workloads of a request, and ``tasks.py`` a task: a plan (which ``hsbench.run`` resolves), and where results go.
``run.py`` carries it out through ``output.py`` (to a place that ``places.py`` knows) and ``progress.py`` (what is shown
meanwhile), and ``handoff.py`` takes its cells to a profiler afterwards. ``streams.py`` is the one way to stderr;
``signals.py`` is Ctrl-C and its like. Nothing here measures, and torch is imported only once a command line is sound.
"""
