"""What all tests share: the debuggers' plugin and the account of skipped tests."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.debuggers.plugin", "tests.skips"]


def pytest_configure() -> None:
    """Heed Ctrl-C, and let children heed it, even where a shell has started the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
