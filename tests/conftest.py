"""What all tests share: the debuggers' plugin and the account of skipped tests."""

from __future__ import annotations

pytest_plugins = ["tests.debuggers.plugin", "tests.skips"]
