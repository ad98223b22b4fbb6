"""Real files that are not part of the project: other systems' kernels and dumps, and what their own tools say of them.

The directory is KVM_DBG_DATA, or ~/.cache/kvm-dbg/data; it has a folder for a system: `netbsd`, `freebsd`.
"""

from __future__ import annotations

import bz2
import lzma
import os
from pathlib import Path

import pytest
import zstandard


def find_data(name: str) -> Path:
    """Return the path of a file of the directory; the test is skipped where there is none."""
    directory = Path(os.environ.get("KVM_DBG_DATA") or Path.home() / ".cache/kvm-dbg/data")
    path = directory / name
    if not path.exists():
        pytest.skip(f"{path} does not exist; KVM_DBG_DATA names the directory of real kernels and dumps")
    return path


def unpack_data(name: str, directory: Path) -> Path:
    """Return the path of a packed file of the directory, unpacked into another one."""
    packed = find_data(name)
    target = directory / packed.stem
    if packed.suffix == ".zst":
        with packed.open("rb") as file, target.open("wb") as out:
            zstandard.ZstdDecompressor().copy_stream(file, out)
        return target
    with lzma.open(packed) if packed.suffix == ".xz" else bz2.open(packed) as file:
        target.write_bytes(file.read())
    return target
