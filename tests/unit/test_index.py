from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvm_dbg.index import MAX_SIZE, Index, compose, parse

IDENTITY = b"layout 1, 4711 bytes"
PARTS = {"hashes": bytes(range(40)), "rows": b"", "odd": b"abc"}


def stored(directory: Path) -> Index:
    index = Index(directory, b"\xab\xcd")
    index.store("symbols", IDENTITY, PARTS)
    assert index.note is None
    return index


def test_what_is_stored_is_found_again_by_name(tmp_path: Path) -> None:
    stored(tmp_path)
    found = Index(tmp_path, b"\xab\xcd").find("symbols", IDENTITY)
    assert found is not None
    assert {name: bytes(part) for name, part in found.items()} == PARTS
    assert (tmp_path / "abcd" / "symbols.index").is_file()


def test_other_names_kernels_and_identities_are_not_found(tmp_path: Path) -> None:
    index = stored(tmp_path)
    assert index.find("btf", IDENTITY) is None
    assert index.find("symbols", IDENTITY + b"!") is None
    assert index.find("symbols", IDENTITY[:-1] + b"X") is None
    assert Index(tmp_path, b"\xab\xce").find("symbols", IDENTITY) is None


def test_a_second_store_replaces_the_first(tmp_path: Path) -> None:
    index = stored(tmp_path)
    index.store("symbols", IDENTITY, {"only": b"new"})
    found = index.find("symbols", IDENTITY)
    assert found is not None
    assert {name: bytes(part) for name, part in found.items()} == {"only": b"new"}
    assert os.listdir(tmp_path / "abcd") == ["symbols.index"]


def test_every_truncation_is_as_good_as_absent() -> None:
    data = b"".join(bytes(piece) for piece in compose(IDENTITY, PARTS))
    assert parse(data, IDENTITY) is not None
    for size in range(len(data)):
        assert parse(data[:size], IDENTITY) is None, size
    assert parse(data + b"\0", IDENTITY) is None


def test_every_single_wrong_byte_is_noticed() -> None:
    data = b"".join(bytes(piece) for piece in compose(IDENTITY, PARTS))
    for place in range(len(data)):
        if 36 <= place < 40:  # nothing is kept there
            continue
        wrong = bytearray(data)
        wrong[place] ^= 0x41
        assert parse(bytes(wrong), IDENTITY) is None, place


def test_parts_start_at_multiples_of_eight() -> None:
    parts = {"a": b"first part", "b": b"2nd", "c": b"the third"}
    data = b"".join(bytes(piece) for piece in compose(b"12345", parts))
    assert [data.index(part) % 8 for part in parts.values()] == [0, 0, 0]


def test_a_file_where_the_directory_should_be_only_leaves_a_note(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    index = Index(tmp_path / "cache", b"\x01")
    index.store("symbols", IDENTITY, PARTS)
    assert index.note is not None
    assert "symbols.index" in index.note
    assert "\n" not in index.note
    assert index.find("symbols", IDENTITY) is None


def test_a_full_disk_leaves_a_note_and_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777: full(opened, path, flags, mode))
    index = Index(tmp_path, b"\x01")
    index.store("symbols", IDENTITY, {"large": bytes(1 << 20)})
    monkeypatch.undo()
    assert index.note is not None
    assert "No space left on device" in index.note
    assert os.listdir(tmp_path / "01") == []


def full(opened: object, path: object, flags: int, mode: int) -> int:
    """Make the file that was asked for, and return a descriptor of a device that is always full."""
    assert callable(opened)
    os.close(opened(path, flags, mode))
    found = opened("/dev/full", os.O_WRONLY)
    assert isinstance(found, int)
    return found


def test_a_link_left_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    index = Index(tmp_path, b"\x02")
    os.mkdir(index.directory)
    (Path(index.directory) / f".symbols.index.{os.getpid()}").symlink_to(target)
    index.store("symbols", IDENTITY, PARTS)
    assert target.read_text() == "mine"
    assert index.find("symbols", IDENTITY) is not None


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    index = stored(tmp_path)
    with open(index.path("symbols"), "r+b") as file:
        file.truncate(MAX_SIZE + 1)
    assert index.find("symbols", IDENTITY) is None


def test_deleting_everything_between_two_uses_is_harmless(tmp_path: Path) -> None:
    index = stored(tmp_path)
    found = index.find("symbols", IDENTITY)
    assert found is not None
    os.unlink(index.path("symbols"))
    os.rmdir(index.directory)
    assert bytes(found["odd"]) == b"abc"
    assert index.find("symbols", IDENTITY) is None
    index.store("symbols", IDENTITY, PARTS)
    assert index.find("symbols", IDENTITY) is not None
    assert stat.S_ISREG(os.stat(index.path("symbols")).st_mode)
