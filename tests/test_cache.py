"""What a cache keeps, how much of it, and that nobody makes it twice."""

from __future__ import annotations

from threading import Barrier, Thread
from time import sleep

import pytest

from tq3.cache import Cache


def asked(cache: Cache[int, bytes], keys: list[int]) -> list[int]:
    """Ask for these keys, one after the other; those whose values, of so many bytes, were made."""
    made = []

    def make(key: int) -> bytes:
        made.append(key)
        return bytes(key)

    for key in keys:
        assert cache.get(key, lambda key=key: make(key)) == bytes(key)  # type: ignore[misc]
    return made


def test_the_value_that_was_asked_for_longest_ago_makes_room():
    assert asked(Cache(2), [1, 2, 1, 3, 1, 2]) == [1, 2, 3, 2]


def test_values_have_sizes_and_one_may_be_too_large_for_the_room():
    assert asked(Cache(10, len), [4, 6, 4, 6, 1, 4, 6]) == [4, 6, 1, 4, 6]
    assert asked(Cache(10, len), [4, 11, 4, 11]) == [4, 11, 4, 11]


def test_so_many_are_kept_whatever_their_size():
    assert asked(Cache(10, len, least=2), [20, 30, 20, 30, 40, 30, 20]) == [20, 30, 40, 20]


def test_a_value_that_could_not_be_made_is_made_by_the_next_one():
    cache = Cache[int, bytes](2)
    with pytest.raises(ZeroDivisionError):
        cache.get(1, lambda: bytes(1 // 0))
    assert asked(cache, [1, 1]) == [1]


def test_threads_that_ask_at_one_time_get_one_value():
    cache, start = Cache[str, object](2), Barrier(4)
    found: list[object] = []

    def ask() -> None:
        start.wait()
        found.append(cache.get("a", make))

    def make() -> object:
        sleep(0.02)  # time enough for the others to come, too
        return object()

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1
