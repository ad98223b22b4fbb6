"""Keep what was made, by the inputs that it was made from.

An entry is a directory `KIND/NAME-HASH` under the cache's root.  It is built in a directory beside it and renamed when
it is complete, so an entry that exists is whole; a lock file per name keeps two builders apart.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def find_root() -> Path:
    """Return the cache's root: KVM_DBG_LAB_CACHE, else kvm-dbg/lab in the user's cache directory."""
    own = os.environ.get("KVM_DBG_LAB_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvm-dbg" / "lab"


def digest(*inputs: object) -> str:
    """Return 12 hexadecimal digits that stand for `inputs`: bytes as they are, files by content, the rest by repr."""
    sum_ = hashlib.sha256()
    for entry in inputs:
        if isinstance(entry, Path):
            data = entry.read_bytes()
        else:
            data = entry if isinstance(entry, bytes) else repr(entry).encode()
        sum_.update(b"%d:" % len(data) + data)
    return sum_.hexdigest()[:12]


def digest_source(*paths: Path) -> str:
    """Return a digest of Python files that comments and formatting do not change."""
    return digest(*(ast.dump(ast.parse(path.read_text())) for path in paths))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, across processes and threads; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def obtain(root: Path, kind: str, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the directory of the entry, made by `make(directory)` if it is not there yet.

    Older entries of the same name (other inputs) are removed once the new one is complete.
    """
    final = root / kind / f"{name}-{key}"
    if final.is_dir():
        return final
    with locked(root / "locks" / f"{kind}-{name}"):
        if final.is_dir():
            return final
        work = root / "work" / f"{kind}-{name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            make(work)
            final.parent.mkdir(parents=True, exist_ok=True)
            for old in find_entries(root, kind, name):
                shutil.rmtree(old)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


def find_entries(root: Path, kind: str, name: str) -> list[Path]:
    """Return the complete entries called `name`, whatever their inputs were."""
    return [path for path in (root / kind).glob(f"{name}-*") if path.name.rpartition("-")[0] == name]
