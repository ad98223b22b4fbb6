"""Data that stands beside the checkout and is no part of it: dumps of other systems, with what their own tools said."""

from __future__ import annotations

import bz2
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import zstandard

VARIABLE = "KVM_DBG_SHARED"
OPENERS: dict[str, Callable[..., IO[Any]]] = {".zst": zstandard.open, ".xz": lzma.open, ".bz2": bz2.open}
CHUNK = 1 << 16  # bytes
FOLDER = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parent.parent.parent / "shared")


def shared_data(name: str) -> Path:
    """Return the folder `name` of the data ("netbsd", ...); the test is skipped where it is missing."""
    folder = FOLDER / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: put it there, or name the folder that has data/ in {VARIABLE}")
    return folder


def unpack(source: Path, folder: Path) -> Path:
    """Unpack a file that zstd, xz or bzip2 packed into `folder`, and return its path there; zeros become holes."""
    target = folder / source.stem
    with OPENERS[source.suffix](source, "rb") as packed, target.open("wb") as out:
        while chunk := packed.read(CHUNK):
            if any(chunk):
                out.write(chunk)
            else:
                out.seek(len(chunk), os.SEEK_CUR)
        out.truncate()
    return target
