"""The little operating system as a fixture."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.image.base import MemoryImage
from tests.writers.system import LittleSystem, Registered, install, write_image


class Little(NamedTuple):
    """An image of the little system, which is the only one there is while a test runs.

    image: the path of its file, called "vmcore", in a directory that is also the working directory.
    """

    image: str
    entry: Registered
    system: LittleSystem


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Little:
    entry = install(monkeypatch)
    image = write_image(tmp_path / "vmcore")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Little(image, entry, entry.system)


class LittleMachine:
    """What halts the machine behind an image."""

    running = True

    def is_running(self) -> bool:
        return self.running

    def halt(self) -> None:
        self.running = False

    def resume(self) -> None:
        self.running = True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> LittleMachine:
    """A machine behind every image."""
    machine = LittleMachine()
    monkeypatch.setattr(MemoryImage, "control", machine)
    return machine
