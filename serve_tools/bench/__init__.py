"""Side-by-side benchmarks: this service and its peers in turn, in one run on one machine.

A section has the figures of systems that did the same work; ratios are computed from rounds in
which each of them ran once.  ``python -m serve_app bench`` runs them, ``docs/benchmarks.md`` keeps
what a run found.
"""
