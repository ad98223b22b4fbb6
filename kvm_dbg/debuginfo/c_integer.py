"""The many spellings of C's integer types.

GCC's debug information, and BTF made from it, says "long unsigned int" where clang's says "unsigned long" and a person
may write either. ISO C 6.7.2 lists which sets of specifiers mean the same type.
"""

from __future__ import annotations

SAME: tuple[tuple[str, ...], ...] = (
    ("signed char",),
    ("unsigned char",),
    ("short int", "short", "signed short", "signed short int"),
    ("short unsigned int", "unsigned short", "unsigned short int"),
    ("int", "signed int", "signed"),
    ("unsigned int", "unsigned"),
    ("long int", "long", "signed long", "signed long int"),
    ("long unsigned int", "unsigned long", "unsigned long int"),
    ("long long int", "long long", "signed long long", "signed long long int"),
    ("long long unsigned int", "unsigned long long", "unsigned long long int"),
    ("_Bool", "bool"),
)


def other_spellings(name: str) -> tuple[str, ...]:
    """Return the other names of the integer type `name`; empty if it is none."""
    for names in SAME:
        if name in names:
            return tuple(other for other in names if other != name)
    return ()
