"""Which tests share a worker of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling


class OneRay(LoadScopeScheduling):
    """The tests of a file share a worker, and so do all that start Ray: one cluster at a time.

    Two clusters would have more replicas than a small machine has memory for, and one cluster
    serves a whole folder of tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "ray" if file.startswith(("tests/cluster/", "tests/contract/ray/")) else file
