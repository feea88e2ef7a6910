"""Programs that are timed against each other, each in a process of its own.

Every module here runs as `python -m experiments.benchmarks.contestants.<name>` and
speaks the protocol of `serve`. Peers run in a Python of their own, where rlx need not
be installed: nothing above this folder may import more than the standard library.
"""
