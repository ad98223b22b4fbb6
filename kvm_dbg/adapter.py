"""Where the debugger adapters lie on this machine.

The adapters (`gdb/kvm_dbg_gdb.py`, `lldb/kvm_dbg_lldb.py`) are data files, for a root folder named `gdb` must never
be importable. In a checkout they lie beside the package. A wheel puts them below `share/kvm-dbg/` of the prefix (see
`[tool.setuptools.data-files]` in pyproject.toml), and the installed distribution's own list of files says where that
is, whichever scheme (system, `--user`, virtual environment) it was installed by.
"""

from __future__ import annotations

from pathlib import Path

from kvm_dbg.errors import FileAccessError

DISTRIBUTION = "kvm-dbg"
FILES = {"gdb": "gdb/kvm_dbg_gdb.py", "lldb": "lldb/kvm_dbg_lldb.py"}
"""One per debugger: its adapter, relative to a checkout's root and to `share/kvm-dbg/`."""


def find_adapter(debugger: str) -> Path:
    """Return the absolute path of the adapter for `debugger`, one of the keys of FILES.

    A checkout's own file is preferred over an installed copy, so that an editable installation runs what is edited.

    Raises:
        KeyError: the debugger is not one of FILES.
        FileAccessError: neither the checkout nor the installed distribution has the file.
    """
    relative = FILES[debugger]
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file() and (root / relative).is_file():
        return root / relative
    installed = _find_installed(f"share/{DISTRIBUTION}/{relative}")
    if installed is None:
        raise FileAccessError(
            root / relative,
            f"the {debugger} adapter is neither in this checkout nor among the installed files of {DISTRIBUTION};"
            f" install {DISTRIBUTION} again",
        )
    return installed


def _find_installed(ending: str) -> Path | None:
    """Return the file of the installed distribution whose path ends in `ending`, or None."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files(DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    for entry in listed:
        if entry.as_posix().endswith(ending):
            path = Path(str(entry.locate())).resolve()
            if path.is_file():
                return path
    return None
