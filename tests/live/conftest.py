"""The live guest, one for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.package import find_missing_tools
from tests.live.machine import LiveGuest


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest) -> Iterator[LiveGuest]:
    """A running guest with a few processes worth looking at.

    The module's WORDS are on its kernel's command line; with SHARED = False nobody but QEMU sees its RAM.
    """
    if missing := find_missing_tools():
        pytest.skip(f"no {', '.join(missing)}: `python -m tests.lab install`, as root")
    shared = getattr(request.module, "SHARED", True)
    with LiveGuest(words=request.module.WORDS, shared=shared) as running:
        running.check("python3 /live/zoo.py >/tmp/zoo & until grep -q READY /tmp/zoo; do sleep 0.2; done")
        yield running
