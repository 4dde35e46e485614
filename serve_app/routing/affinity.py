"""Which decoder replica an image's prompts go to: whoever has its embedding, unless that is hot.

Pure.  Every ingress replica ranks alike without asking anyone, and when replicas come or go only
the images move whose first rank came or went: rendezvous hashing (Thaler and Ravishankar, 1998).
Hot is who has clearly more than the mean, as in consistent hashing with bounded loads (Mirrokni,
Thorup and Zadimoghaddam, 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

_OVER_MEAN = 1.25


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """Replicas in the order in which they are to serve a key; the first one is its home."""
    return sorted(replicas, key=lambda replica: _weight(key, replica), reverse=True)


def preferred(key: str, queues: Mapping[str, int], *, hot_at: int, full_at: int) -> list[str]:
    """Replicas in the order in which they are to be asked now.

    Those that are not hot come first, each group as `ranked`, so that what spills over from a
    home always goes to the same replica, which then has the embedding too.

    Args:
        key: the image's id.
        queues: requests at each replica, as far as is known.
        hot_at: nobody with fewer requests is hot: a queue that short costs less than encoding
            an image again.
        full_at: requests with which a replica takes no more.
    """
    # The mean with this request: so there is always somebody below the bound.
    mean = (sum(queues.values()) + 1) / max(len(queues), 1)
    bound = max(hot_at, _OVER_MEAN * mean)

    def reluctance(replica: str) -> int:
        length = queues[replica]
        return (length >= bound) + (length >= full_at)

    return sorted(ranked(key, queues), key=reluctance)


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
