"""Types that are written as text (see `declaration`), as debugging information entries."""

from __future__ import annotations

import re
from typing import Final

from kvm_dbg.debuginfo.btf import KEYWORDS, PLAIN, BtfTypes
from kvm_dbg.debuginfo.btf_data import KIND_MASK, PREFIXES
from kvm_dbg.debuginfo.c_integer import other_spellings
from kvm_dbg.kernel_file.dwarf_abbrev import Entry
from kvm_dbg.kernel_file.dwarf_type import TypeEntries

TEXT: Final = re.compile(r"((?:(?:struct|union|enum) )?\w+(?: \w+)*?)((?: ?(?:const\b|volatile\b|\*|\[\w*\]))*)")
STEP: Final = re.compile(r"const|volatile|\*|\[\w*\]")
MAX_LENGTH = 1 << 20  # of an array
QUALIFIERS: Final = {
    "const": (Entry.CONST, Entry.CONST_VOID), "volatile": (Entry.VOLATILE, Entry.VOLATILE_VOID),
}  # fmt: skip


class DeclaredTypes:
    """Types made of those of a BTF section; what had to be made for them is in `parts`.

    Args:
        types: those of the section.
        entries: its entries.
        at: where in .debug_info `parts` will be.
    """

    def __init__(self, types: BtfTypes, entries: TypeEntries, at: int) -> None:
        self.parts: list[bytes] = []
        self._types = types
        self._entries = entries
        self._at = at
        self._made: dict[tuple[str, int, int | None], int] = {}

    def find(self, text: str, symbol_size: int) -> int | None:
        """Return the place of a type's entry; None if BTF does not have it, or if it is larger than its symbol.

        Args:
            text: such as "char const *[MIGRATE_TYPES]", where the length is an enumerator; an array without a length
                has what fits into the symbol.
            symbol_size: in bytes; 0 if it is not known, and then nothing is too large.
        """
        matched = TEXT.fullmatch(text)
        if matched is None:
            return None
        found = (0, -1) if matched[1] == "void" else self._find_base(matched[1])
        if found is None:
            return None
        place, size = found
        for step in STEP.findall(matched[2]):
            count = None
            if step[0] == "[":
                length = self._length(step[1:-1]) if step != "[]" else symbol_size // max(size, 1)
                if size <= 0 or length is None:
                    return None
                count = length or None
                size *= length
            elif step == "*":
                size = self._entries.checked.pointer_size
            place = self._make(step[0] if step[0] == "[" else step, place, count)
        return None if size < 0 or 0 < symbol_size < size else place

    def _length(self, text: str) -> int | None:
        """Return a length that is a number or an enumerator, None if BTF does not have that or it cannot be one."""
        found = int(text) if text.isdigit() else self._types.find_enumerator(text)
        return found if found is not None and 0 < found <= MAX_LENGTH else None

    def _find_base(self, name: str) -> tuple[int, int] | None:
        """Return (place, size in bytes) of a type that BTF has by name."""
        checked = self._entries.checked
        words = checked.words
        for spelling in (name, *other_spellings(name)):
            keyword, _, tag = spelling.partition(" ")
            kinds = KEYWORDS.get(keyword, PLAIN)
            wanted = (spelling if kinds is PLAIN else tag).encode()
            for type_id in self._types.data.find_ids(PREFIXES[kinds[0]], wanted):
                if not checked.first_id <= type_id < checked.broken_id or checked.sizes[type_id] <= 0:
                    continue
                at = checked.places[type_id - checked.first_id]
                if words[at + 1] >> 24 & KIND_MASK in kinds and checked.text(words[at]) == wanted:
                    return self._entries.places[type_id], checked.sizes[type_id]
        return None

    def _make(self, step: str, target: int, count: int | None) -> int:
        """Return the place of an entry that is one step from the entry at `target`."""
        key = (step, target, count)
        if key not in self._made:
            pack = self._entries.pack
            if step == "[":
                part = self._entries.array(target, count)
            elif step == "*":
                part = self._entries.pointer(target)
            else:
                plain, void = QUALIFIERS[step]
                part = pack[plain].pack(plain, target) if target else pack[void].pack(void)
            self._made[key] = self._at
            self.parts.append(part)
            self._at += len(part)
        return self._made[key]
