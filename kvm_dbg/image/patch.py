"""Patch files: what was written into an image's private copy, kept to be applied to the same image again.

A patch is a JSON object:

    {"kvm_dbg_patch": 1, "release": "6.1.0", "build_id": "c0ffee",
     "blocks": [{"paddr": "0x1000", "old": "00--ff", "new": "2a2a2a"}]}

`old` and `new` have two characters for each byte, hexadecimal digits, or "--" in `old` for a byte that the image does
not hold. A patch is applied as a whole, or not at all where the image's bytes are not the old ones.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from kvm_dbg.errors import CommandError, FileAccessError, FormatError, UnknownFormatError
from kvm_dbg.image.overlay import OverlayImage

KEY = "kvm_dbg_patch"
VERSION = 1
MAX_SIZE = 1 << 28  # bytes of a file


class Block(NamedTuple):
    """Bytes at a physical address. old: two characters for each byte, as in the file."""

    paddr: int
    old: str
    new: bytes


class Patch(NamedTuple):
    """A patch. release, build_id: of the kernel that it was made on, None where nobody knew."""

    release: str | None
    build_id: str | None
    blocks: tuple[Block, ...]


def make_patch(image: OverlayImage, release: str | None, build_id: str | None) -> bytes:
    """Return the contents of a patch file with all that was written into `image`."""
    blocks = [
        {"paddr": f"{paddr:#x}", "old": image.image.read_partial(paddr, len(data)).digits(paddr), "new": data.hex()}
        for paddr, data in image.for_each_block()
    ]
    document = {KEY: VERSION, "release": release, "build_id": build_id, "blocks": blocks}
    return json.dumps(document, indent=1).encode() + b"\n"


def read_patch(path: str) -> Patch:
    """Return the patch in the file `path`.

    Raises:
        FileAccessError: it cannot be read.
        UnknownFormatError: it is no patch.
        FormatError: it is one, but damaged.
    """
    try:
        if os.stat(path).st_size > MAX_SIZE:
            raise UnknownFormatError(path, f"is larger than a patch may be ({MAX_SIZE} bytes)")
        with open(path, "rb") as file:
            text = file.read(MAX_SIZE)
    except (OSError, ValueError) as error:
        raise FileAccessError(path, getattr(error, "strerror", None) or str(error)) from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnknownFormatError(path, f"is no patch of kvm_dbg: {error}") from error
    if not isinstance(document, dict) or KEY not in document:
        raise UnknownFormatError(path, f"is no patch of kvm_dbg: it has no key {KEY!r}")
    if document[KEY] != VERSION:
        raise UnknownFormatError(path, f"is a patch of version {document[KEY]!r}, not {VERSION}")
    rows = document.get("blocks")
    if not isinstance(rows, list):
        raise FormatError(path, 0, "blocks", "is not a list")
    blocks = tuple(_block(path, f"blocks[{number}]", row) for number, row in enumerate(rows))
    return Patch(_text(path, document, "release"), _text(path, document, "build_id"), blocks)


def apply_patch(image: OverlayImage, patch: Patch, path: str) -> None:
    """Write a patch into the private copy of an image; it does not count as a change that `undo` takes back.

    Raises:
        CommandError: the image's bytes are not those that the patch was made on; nothing is written then.
        NotInImageError: it is about what the image does not describe as memory.
    """
    for block in patch.blocks:
        if image.read_partial(block.paddr, len(block.new)).digits(block.paddr) != block.old:
            where = f"the {len(block.new)} bytes at physical {block.paddr:#x}"
            raise CommandError(f"{path} does not fit: {where} are not those that it was made on")
    for block in patch.blocks:
        image.write(block.paddr, block.new)


def _text(path: str, document: dict[str, Any], key: str) -> str | None:
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        raise FormatError(path, 0, key, "is no text")
    return value


def _block(path: str, place: str, row: object) -> Block:
    if not isinstance(row, dict):
        raise FormatError(path, 0, place, "is no object")
    texts = [text for key in ("paddr", "old", "new") if isinstance(text := row.get(key), str)]
    if len(texts) != 3:
        raise FormatError(path, 0, place, "has not the texts paddr, old and new")
    paddr, old, new = texts
    try:
        address, data = int(paddr, 16), bytes.fromhex(new)
        bytes.fromhex(old.replace("-", "0"))
    except ValueError as error:
        raise FormatError(path, 0, place, str(error)) from error
    if not data or len(old) != 2 * len(data) or not 0 <= address < 1 << 64:
        raise FormatError(path, 0, place, f"{len(data)} new bytes, {len(old)} characters of old ones, at {paddr}")
    return Block(address, old.lower(), data)
