"""The fixtures of the golden tests: one scenario of the lab after the other."""

from __future__ import annotations

import pytest

from tests.golden.subject import HIDDEN, NAMES, Subject, find_subject


@pytest.fixture(params=NAMES, scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    """One scenario of the lab, with its kernel file."""
    return find_subject(request.param)


@pytest.fixture(params=(*NAMES, *HIDDEN), scope="session")
def either(request: pytest.FixtureRequest) -> Subject:
    """One scenario of the lab, with its kernel file and then with nothing but the image."""
    return find_subject(request.param)
