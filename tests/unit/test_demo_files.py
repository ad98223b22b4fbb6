"""The demo's files are the ones that its checksums name, and small enough to ship."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "sample"
SIZE_LIMIT = 8 << 20  # bytes, dump and kernel together


def read_sums(path: Path) -> dict[str, str]:
    """Return name -> SHA-256 in hexadecimal, from a file as sha256sum writes it."""
    pairs = [line.split("  ", 1) for line in path.read_text().splitlines()]
    return {name: digest for digest, name in pairs}


def test_shipped_files_have_their_checksums() -> None:
    sums = read_sums(DEMO / "SHA256SUMS")
    assert "demo.tar.xz" in sums
    assert {name: hashlib.sha256((DEMO / name).read_bytes()).hexdigest() for name in sums} == sums


def test_every_file_of_the_truth_has_a_checksum() -> None:
    names = {str(path.relative_to(DEMO)) for path in (DEMO / "truth").rglob("*") if path.is_file()}
    assert names
    assert names == {name for name in read_sums(DEMO / "SHA256SUMS") if name.startswith("truth/")}


def test_shipped_files_are_small_enough() -> None:
    sizes = [(DEMO / name).stat().st_size for name in read_sums(DEMO / "SHA256SUMS")]
    assert sum(sizes) <= SIZE_LIMIT


def test_the_archive_holds_what_its_checksums_say() -> None:
    digests = {}
    with tarfile.open(DEMO / "demo.tar.xz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                digests[member.name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    assert {"vmlinux", "vmcore", "modules/shelf.ko"} <= set(digests)
    assert digests == read_sums(DEMO / "UNPACKED.SHA256SUMS")
