"""What a run of the commands ends with, beside what an error's own ``exit_code`` says."""

#: INTERRUPTED is Ctrl-C's; another signal has its own, see ``signals.py``.
OK, INTERNAL, INCORRECT, CANNOT_RUN, INTERRUPTED = 0, 1, 3, 4, 130
