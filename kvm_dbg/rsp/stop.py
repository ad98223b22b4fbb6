"""Stopping what runs: Ctrl-C in the debugger, and a debugger that has gone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

POLL_SECONDS = 0.1  # between two looks at the connections while something runs

T = TypeVar("T")


class ClientGone(Exception):  # noqa: N818 - no error: a debugger has left
    """The debugger has closed its connection, or its process has ended."""


class Interruptible:
    """Lets a timer look at the connections while something runs, and stop it.

    As a context manager it only looks: `poll` may raise ClientGone, which ends everything. `running` adds that an
    interrupt raises KeyboardInterrupt from within what runs, between two bytecodes and nowhere else.

    Args:
        poll: looks at the connections; calls `interrupt` when one asks for it.
    """

    def __init__(self, poll: Callable[[], None]) -> None:
        self._poll = poll
        self._armed = False
        self._pending = False
        self._depth = 0

    def interrupt(self) -> None:
        """Ask what runs to stop."""
        self._pending = True

    def __enter__(self) -> Interruptible:
        if not self._depth:
            self._pending = False
            signal.signal(signal.SIGALRM, self._on_timer)
            signal.setitimer(signal.ITIMER_REAL, POLL_SECONDS, POLL_SECONDS)
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_timer(self, _number: int, _frame: FrameType | None) -> None:
        if not self._depth:  # the last tick, delivered late
            return
        self._poll()
        if self._pending and self._armed:
            self._armed = False
            self._pending = False
            raise KeyboardInterrupt

    def running(self, items: Iterator[T]) -> Iterator[T]:
        """Yield from `items`; an interrupt raises KeyboardInterrupt from within them."""
        with self:
            while True:
                self._armed = True
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    self._armed = False
                yield item
