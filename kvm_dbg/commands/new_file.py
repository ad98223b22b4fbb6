"""Files that commands write: always new, and gone again if they cannot be completed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from kvm_dbg.errors import FileAccessError


@contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """Open the new file `path` for writing; if the block fails, there is no file.

    Raises:
        FileAccessError: the file exists, or cannot be made or written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        raise FileAccessError(path, getattr(error, "strerror", None) or str(error)) from error
    done = False
    try:
        with open(descriptor, "wb") as file:
            yield file
        done = True
    except OSError as error:
        raise FileAccessError(path, error.strerror or str(error)) from error
    finally:
        if not done:
            os.unlink(path)
