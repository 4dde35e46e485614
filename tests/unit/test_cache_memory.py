"""The bounded memory tier."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.memory import ByteBoundedLru


def test_the_least_recently_used_goes_first() -> None:
    lru: ByteBoundedLru[str] = ByteBoundedLru(3)
    for key in "abc":
        lru.put(key, key.upper(), 1)
    assert lru.get("a") == "A"  # now b is the oldest
    lru.put("d", "D", 1)
    assert [lru.get(key) for key in "abcd"] == ["A", None, "C", "D"]


def test_one_value_may_push_out_several() -> None:
    lru: ByteBoundedLru[str] = ByteBoundedLru(10)
    for key in "abc":
        lru.put(key, key, 3)
    lru.put("d", "d", 6)
    assert (len(lru), lru.nbytes) == (2, 9)
    assert lru.get("c") == "c"


def test_the_bound_itself_fits_and_one_more_does_not() -> None:
    lru: ByteBoundedLru[str] = ByteBoundedLru(10)
    lru.put("a", "small", 4)
    lru.put("b", "too large", 11)
    assert lru.get("b") is None
    assert lru.get("a") == "small"  # nothing is thrown out for what cannot be kept
    lru.put("c", "just fits", 10)
    assert lru.get("c") == "just fits"
    assert lru.nbytes == 10


def test_a_value_replaced_is_counted_once() -> None:
    lru: ByteBoundedLru[str] = ByteBoundedLru(10)
    lru.put("a", "old", 8)
    lru.put("a", "new", 3)
    assert (lru.get("a"), lru.nbytes, len(lru)) == ("new", 3, 1)
    lru.put("a", "too large now", 11)
    assert (lru.get("a"), lru.nbytes, len(lru)) == (None, 0, 0)


@given(
    bound=st.integers(0, 20),
    puts=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 12)), max_size=60),
)
def test_bytes_are_bounded_and_true_whatever_is_put(
    bound: int, puts: list[tuple[str, int]]
) -> None:
    lru: ByteBoundedLru[int] = ByteBoundedLru(bound)
    for key, size in puts:
        lru.put(key, size, size)
        kept = [value for name in "abcdef" if (value := lru.get(name)) is not None]
        assert lru.nbytes == sum(kept) <= bound
        assert len(lru) == len(kept)
        assert lru.get(key) == (size if size <= bound else None)
