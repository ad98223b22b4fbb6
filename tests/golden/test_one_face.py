"""One face for all systems: the same commands have the same columns, with cells of the same kinds, on each of them.

Linux is the sample's dump, NetBSD the real one beside the checkout, FreeBSD a made one.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg import cli
from kvm_dbg.commands import find_command
from tests.golden.made_freebsd import make
from tests.sample import unpack_sample
from tests.shared import shared_data, unpack

COMMANDS = ("procs", "lwps", "args", "env", "files", "vm", "loadavg", "log", "mods", "sys", "selftest", "bt")
KINDS: dict[str, tuple[type, ...]] = {
    "number": (int,), "size": (int,), "text": (str,), "address": (str,), "bool": (bool,), "float": (int, float),
    "duration": (int, float), "list": (list,), "lines": (list,), "argv": (list,),
}  # fmt: skip
NEVER_EMPTY = {
    "procs": ("pid", "stat", "command", "address"),
    "lwps": ("pid", "lwp", "state", "name", "address"),
    "files": ("pid", "kind", "address"),
    "vm": ("start", "end", "perms", "address"),
    "mods": ("name", "state", "symbols"),
    "log": ("text",),
    "sys": ("system", "release", "version", "machine", "cpus"),
    "selftest": ("command", "grade"),
}


@pytest.fixture(scope="module", params=["Linux", "NetBSD", "FreeBSD"])
def opening(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """Return a system's name and the words that open a dump of it."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, _open(request.param, folder)


def _open(system: str, folder: Path) -> list[str]:
    if system == "Linux":
        unpack_sample(folder)
        return [str(folder / "vmlinux"), str(folder / "vmcore")]
    if system == "NetBSD":
        data = shared_data("netbsd")
        files = [str(unpack(data / name, folder)) for name in ("netbsd.0.zst", "netbsd.0.core.zst")]
        return [*files, "--layout", str(data / "layout.json")]
    made = make(folder, 15, "ctf")
    return [made.kernel, made.dump]


@pytest.mark.parametrize("name", COMMANDS)
def test_columns(opening: tuple[str, list[str]], name: str) -> None:
    system, words = opening
    out = io.StringIO()
    pid = {"Linux": "1", "NetBSD": "1", "FreeBSD": "700"}[system] if name == "vm" else None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        cli.main([name, *words[:2], *([pid] if pid else []), *words[2:], "--no-index", "--json"])
    answer: Any = json.loads(out.getvalue())
    rows = answer if isinstance(answer, list) else [answer]
    assert rows or (system, name) == ("NetBSD", "mods")  # that kernel's modules are not in its list
    columns = {column.key: column for column in find_command(name).columns}
    for row in rows:
        assert list(row) == [*columns, *(["grade"] if "grade" not in columns else [])]  # how far it can be believed
        for key, column in columns.items():
            assert row[key] is None or type(row[key]) in KINDS[column.kind], (system, name, key, row[key])
    if name == "files":
        assert all((row["fd"] is None) == (row["role"] in ("wd", "root")) for row in rows)
        assert {row["role"] for row in rows} == {None, "wd", "root"} - ({"root"} if system == "NetBSD" else set())
    for key in NEVER_EMPTY.get(name, ()):
        assert all(row[key] is not None for row in rows), (system, name, key)
