"""Which decoder replica serves an image: the one with its embedding, unless it is overloaded.

Pure.  Rendezvous hashing (Thaler and Ravishankar, 1998): all ingress replicas compute the same
ranking without communication, and a new or stopped replica only moves the images that rank it
first.  A replica is hot if its load is clearly above the mean, as in consistent hashing with
bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

_OVER_MEAN = 1.25


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """Replicas in order of preference for a key; the first one is its home."""
    return sorted(replicas, key=lambda replica: _weight(key, replica), reverse=True)


def preferred(key: str, queues: Mapping[str, int], *, hot_at: int, full_at: int) -> list[str]:
    """Replicas in order of preference under the present load.

    Replicas that are not hot come first, each group in the order of `ranked`: overflow of one home
    always goes to the same replica, which then has the embedding as well.

    Args:
        key: the image's id.
        queues: known number of requests at each replica.
        hot_at: a replica with fewer requests is never hot: waiting in so short a queue costs less
            than encoding an image again.
        full_at: number of requests at which a replica accepts no more.
    """
    # The mean includes this request, so at least one replica is below the bound.
    mean = (sum(queues.values()) + 1) / max(len(queues), 1)
    bound = max(hot_at, _OVER_MEAN * mean)

    def penalty(replica: str) -> int:
        length = queues[replica]
        return (length >= bound) + (length >= full_at)

    return sorted(ranked(key, queues), key=penalty)


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
