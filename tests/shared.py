"""Data that stands beside the checkout and is no part of it: dumps of other systems, with what their own tools said."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

VARIABLE = "KVM_DBG_SHARED"
FOLDER = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parent.parent.parent / "shared")


def shared_data(name: str) -> Path:
    """Return the folder `name` of the data ("netbsd", ...); the test is skipped where it is missing."""
    folder = FOLDER / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: put it there, or name the folder that has data/ in {VARIABLE}")
    return folder


def unpack(source: Path, folder: Path) -> Path:
    """Unpack a file that zstd(1) packed into `folder`, and return its path there."""
    target = folder / source.stem
    subprocess.run(["zstd", "-q", "-d", "-o", target, source], check=True)
    return target
