"""The dump that comes with the project, unpacked for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

ARCHIVE = Path(__file__).resolve().parent.parent / "sample" / "demo.tar.xz"


def unpack_sample(folder: Path) -> None:
    """Put vmlinux, vmcore and modules/ into `folder`, by tar(1): tarfile's filters came only with Python 3.11.4."""
    subprocess.run(["tar", "-xJf", ARCHIVE, "-C", folder], check=True)
