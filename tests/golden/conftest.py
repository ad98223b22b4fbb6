"""The fixture of the golden tests."""

from __future__ import annotations

import pytest

from tests.golden.subject import NAMES, Subject, find_subject


@pytest.fixture(params=NAMES, scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    """One scenario of the lab."""
    return find_subject(request.param)
