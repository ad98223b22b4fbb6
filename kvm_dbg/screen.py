"""A screen in the terminal, for commands that are watched: each block replaces the one before; `q` ends it.

The last floor but one: only the command line has a terminal of its own.
"""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

QUIT = "qQ\x1b"  # of keys: q, and Escape
HINT = "q: quit"


class Keys:
    """Standard input key by key, without showing them; a context manager that puts the terminal back as it was."""

    def __enter__(self) -> Self:
        self._descriptor = sys.stdin.fileno()
        self._saved = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a key ends it; return whether to go on."""
        end = time.monotonic() + seconds
        while True:
            left = max(end - time.monotonic(), 0.0)
            if not select.select([self._descriptor], [], [], left)[0]:
                return True
            key = sys.stdin.read(1)
            if not key or key in QUIT:
                return False


def show(blocks: Callable[[Callable[[float], bool]], Iterator[str]]) -> None:
    """Show blocks of text until they end, `q` or Ctrl-C.

    Args:
        blocks: yields them; given what waits between two of them.

    Raises:
        KvmDbgError: what making a block raises; the terminal is as it was by then.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            for block in blocks(keys.wait):
                first, _, rest = block.partition("\n")
                text = Text(f"{first}  {HINT}\n{rest}", no_wrap=True, overflow="crop", end="")
                live.update(text, refresh=True)
        except KeyboardInterrupt:
            return
