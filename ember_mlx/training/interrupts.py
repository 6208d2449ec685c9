"""Handling of Ctrl-C between training steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_between_steps() -> Iterator[list[int]]:
    """Yield a list that is empty until Ctrl-C, so that the current step is completed; a second Ctrl-C raises KeyboardInterrupt.

    Only the main thread receives signals: in other threads the list stays empty.
    """
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked  # or another handler is installed
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
