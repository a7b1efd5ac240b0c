"""Work on several threads: items in, results out, in whatever order they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

_POLL_SECONDS = 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    items: Iterable[Item],
    make_work: Callable[[], Callable[[Item], Result]],
    workers: int,
    cancel: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:
    """Results of `work(item)` in any order; `make_work` is called once in each thread.

    The first exception of a worker ends all of them and is raised here. Leaving the iteration stops
    the workers after the item that each has in hand; `cancel` is called to make that soon.
    """
    if workers == 1:  # no thread between the user's debugger and the work
        yield from map(make_work(), items)
        return
    source, lock, stop = iter(items), Lock(), Event()
    results: deque[Result] = deque()

    def run() -> None:
        work = make_work()
        while not stop.is_set():
            with lock:
                item = next(source, None)
            if item is None:
                return
            results.append(work(item))

    with ThreadPoolExecutor(workers, thread_name_prefix="tq3") as pool:
        try:
            running = {pool.submit(run) for _ in range(workers)}
            while running:
                # Not woken for each result: on few processors that would cost the workers time.
                ended, running = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                for worker in ended:
                    worker.result()
                while results:
                    yield results.popleft()
        except BaseException:
            cancel()
            raise
        finally:
            stop.set()
