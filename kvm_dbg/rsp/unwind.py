"""The file of unwind rules for a debugger, written where it lives as long as the server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvm_dbg.errors import FileAccessError, KvmDbgError

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session


class UnwindFile:
    """Makes the file when it is asked for; `close` removes it."""

    def __init__(self) -> None:
        self._directory: str | None = None

    def make(self, session: Session) -> str | None:
        """Return the path of the file for the opened kernel, or None if it has no rules beyond its debug information.

        Raises:
            FileAccessError: it cannot be written.
        """
        from kvm_dbg.kernel_file.frame import make_frame_file
        from kvm_dbg.rsp.frame_table import read_covered

        path = getattr(session.kernel, "vmlinux_path", None)
        slide = getattr(session.kernel, "slide", None) or 0
        try:
            covered = read_covered(str(path)) if path is not None else []
            runs = [(start + slide, end + slide) for start, end in covered]
            data = make_frame_file(session.system.for_each_unwind_row(session.kernel, runs))
        except KvmDbgError:  # no such tables, or not in the image: a backtrace guesses in entry code
            return None
        if data is None:
            return None
        try:
            self._directory = self._directory or tempfile.mkdtemp(prefix="kvm-dbg-")
            path = Path(self._directory) / "entry-code.debug"
            path.write_bytes(data)
        except OSError as error:
            raise FileAccessError(tempfile.gettempdir(), f"cannot write there: {error.strerror}") from error
        return str(path)

    def close(self) -> None:
        """Remove the file."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
