"""Work that goes on in another thread while a test does something."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meanwhile(work: Callable[[int], None]) -> Iterator[None]:
    """Do something over and over in another thread."""
    stop = threading.Event()

    def run() -> None:
        n = 0
        while not stop.is_set():
            work(n)
            n += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
