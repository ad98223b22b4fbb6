"""The fixture of the golden tests: `subject`, one scenario of the lab after the other.

A module that says IMAGE_IS_ENOUGH = True sees every scenario twice: with its kernel file, and with the image alone.
"""

from __future__ import annotations

import pytest

from tests.golden.subject import HIDDEN, NAMES, Subject, find_subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `subject` its scenarios."""
    if "subject" in metafunc.fixturenames:
        names = (*NAMES, *HIDDEN) if getattr(metafunc.module, "IMAGE_IS_ENOUGH", False) else NAMES
        metafunc.parametrize("subject", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    """One scenario of the lab."""
    return find_subject(request.param)
