"""Side-by-side benchmarks: this service and its peers in turn, in one run on one machine.

Sections hold the figures of systems that did the same work; the ratios are made of rounds in which
all of them took their turn.  ``python -m serve_app bench`` runs them, ``docs/benchmarks.md`` keeps
what a run found.
"""
