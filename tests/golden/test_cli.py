"""The program on real files: a wrong kernel file, one without symbols, and no room for the index."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.subject import Subject, find_subject

ROOT = Path(__file__).resolve().parent.parent.parent
E_SHOFF = 0x28  # ELF64 header: offset of the section headers, their size and number at 0x3a and 0x3c
SHT_SYMTAB = 2


@pytest.fixture(scope="module")
def subject() -> Subject:
    return find_subject("deb12-4level")


def run(*words: str | Path, cache: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `kvm-dbg` in a process of its own; `limit` is the size that no file it writes can exceed, in bytes."""

    def prepare() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "kvm_dbg.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        preexec_fn=prepare,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("kvm-dbg: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_wrong_kernel_file_names_both_sides(subject: Subject, tmp_path: Path) -> None:
    other = find_subject("deb11-4level").dump.vmlinux
    [image] = subject.dump.files["elf"].paths
    text = complaint(run("procs", other, image, cache=tmp_path))
    assert str(other) in text
    assert "the build-id is" in text
    assert "--force" in text


def test_a_kernel_file_without_symbols(subject: Subject, tmp_path: Path) -> None:
    stripped = tmp_path / "vmlinux"
    shutil.copyfile(subject.dump.vmlinux, stripped)
    with stripped.open("r+b") as file:
        header = file.read(64)
        start = int.from_bytes(header[E_SHOFF : E_SHOFF + 8], "little")
        size, count = (int.from_bytes(header[at : at + 2], "little") for at in (0x3A, 0x3C))
        found = 0
        for place in range(start, start + size * count, size):
            file.seek(place + 4)
            if int.from_bytes(file.read(4), "little") == SHT_SYMTAB:
                file.seek(place + 4)
                file.write(bytes(4))
                found += 1
    assert found == 1
    text = complaint(run("procs", stripped, subject.dump.files["elf"].paths[0], cache=tmp_path))
    stripped.unlink()
    assert f"{stripped}: " in text
    assert "no symbol table" in text


def test_no_room_for_the_index_costs_nothing_but_time(subject: Subject, tmp_path: Path) -> None:
    words = ("procs", subject.dump.vmlinux, subject.dump.files["elf"].paths[0], "--json")
    kept = run(*words, cache=tmp_path / "kept")
    lost = run(*words, cache=tmp_path / "lost", limit=4096)
    assert (kept.returncode, lost.returncode) == (0, 0)
    assert json.loads(lost.stdout) == json.loads(kept.stdout)
    assert "Traceback" not in lost.stderr
    assert [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert [path for path in (tmp_path / "lost").rglob("*") if path.is_file()] == []
