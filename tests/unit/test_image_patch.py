"""Patch files: kept writes, applied to the same image again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvm_dbg.errors import CommandError, FileAccessError, FormatError, UnknownFormatError
from kvm_dbg.image.base import BytesImage
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.patch import apply_patch, make_patch, read_patch


def memory(first: bytes = b"abcdefgh") -> OverlayImage:
    return OverlayImage(BytesImage({0x1000: first}, excluded=((0x1008, 8),)))


def test_a_patch_makes_the_same_changes_again(tmp_path: Path) -> None:
    image = memory()
    image.write(0x1006, b"XYZ")
    image.write(0x1000, b"!")
    path = tmp_path / "patch"
    path.write_bytes(make_patch(image, "6.1", "c0ffee"))
    assert json.loads(path.read_text())["blocks"] == [
        {"paddr": "0x1000", "old": "61", "new": "21"},
        {"paddr": "0x1006", "old": "6768--", "new": "58595a"},
    ]
    patch = read_patch(str(path))
    assert (patch.release, patch.build_id) == ("6.1", "c0ffee")
    other = memory()
    apply_patch(other, patch, str(path))
    assert other.read_partial(0x1000, 16) == image.read_partial(0x1000, 16)
    assert not other.changes


def test_a_patch_of_another_image_is_refused(tmp_path: Path) -> None:
    image = memory()
    image.write(0x1000, b"!")
    image.write(0x1007, b"?")
    path = tmp_path / "patch"
    path.write_bytes(make_patch(image, None, None))
    other = memory(b"abcdefgX")
    with pytest.raises(CommandError, match="the 1 bytes at physical 0x1007 are not those"):
        apply_patch(other, read_patch(str(path)), str(path))
    assert other.written == 0


@pytest.mark.parametrize(
    ("text", "error", "complaint"),
    [
        ("", UnknownFormatError, "is no patch"),
        ("[" * 100000, UnknownFormatError, "is no patch"),
        ("{}", UnknownFormatError, "no key"),
        ('{"kvm_dbg_patch": 2}', UnknownFormatError, "version 2"),
        ('{"kvm_dbg_patch": 1}', FormatError, "blocks"),
        ('{"kvm_dbg_patch": 1, "blocks": [5]}', FormatError, "no object"),
        ('{"kvm_dbg_patch": 1, "blocks": [], "release": 5}', FormatError, "release"),
        ('{"kvm_dbg_patch": 1, "blocks": [{"paddr": 1, "old": "", "new": ""}]}', FormatError, "texts"),
        ('{"kvm_dbg_patch": 1, "blocks": [{"paddr": "0", "old": "", "new": ""}]}', FormatError, "0 new bytes"),
        ('{"kvm_dbg_patch": 1, "blocks": [{"paddr": "0", "old": "00", "new": "0000"}]}', FormatError, "2 new bytes"),
        ('{"kvm_dbg_patch": 1, "blocks": [{"paddr": "-1", "old": "00", "new": "00"}]}', FormatError, "at -1"),
        ('{"kvm_dbg_patch": 1, "blocks": [{"paddr": "0", "old": "0g", "new": "00"}]}', FormatError, "blocks\\[0\\]"),
    ],
)
def test_damaged_patches(text: str, error: type[Exception], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "patch"
    path.write_text(text)
    with pytest.raises(error, match=complaint):
        read_patch(str(path))


def test_a_missing_patch(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="No such file"):
        read_patch(str(tmp_path / "none"))
