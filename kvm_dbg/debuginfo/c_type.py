"""C's type names as text: "struct lwp *", "char [17]", "int (**)(void *)".

Facts: ISO C 6.7.7 (type names, abstract declarators). gdb, lldb and pahole all write members' types so, the name left
out. What an anonymous struct has inside is written "{...}", as gdb does.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    FunctionType,
    PointerType,
    StructType,
    Type,
    VoidType,
)

POINTER, FUNCTION = "pointer", "function"
ANONYMOUS = "{...}"  # in the place of a tag
KEYWORDS = ("struct", "union", "enum")
QUALIFIERS = frozenset(("const", "volatile", "restrict", "__restrict", "__restrict__", "_Atomic", "__volatile__"))
MAX_DEPTH = 32  # parentheses in parentheses, and derivations one after another

_TOKEN = re.compile(r"\s*(\{\.\.\.\}|\.\.\.|[A-Za-z_$][A-Za-z_0-9$]*|[0-9]+|[*()\[\],])")


class CType(NamedTuple):
    """A type name taken apart.

    base: "int", "struct proc", "union {...}", a typedef's name. steps: what is made of it, from the base outwards:
    POINTER, FUNCTION, or the number of an array's elements (0 where it is not said).
    """

    base: str
    steps: tuple[str | int, ...]


def parse_c_type(text: str) -> CType:
    """Take the type name `text` apart; qualifiers and functions' parameters are skipped.

    Raises:
        ValueError: it is no type name; the text says why.
    """
    parser = _Parser(text)
    base = parser.base()
    steps = parser.declarator(0)
    if parser.at < len(parser.tokens):
        raise ValueError(f"{parser.tokens[parser.at]!r} is unexpected in {text[:80]!r}")
    if len(steps) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} pointers and arrays of each other")
    return CType(base, tuple(steps))


class _Parser:
    """The tokens of one type name, and where in them the parser is."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        self.at = 0
        end = len(text.rstrip())
        place = 0
        while place < end:
            found = _TOKEN.match(text, place)
            if found is None:
                raise ValueError(f"{text[place : place + 20]!r} is no part of a C type")
            self.tokens.append(found[1])
            place = found.end()

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def base(self) -> str:
        words = []
        while self.next and self.next not in ("*", "(", "["):
            if self.next not in QUALIFIERS:
                words.append(self.next)
            self.at += 1
        if not words or not all(word[0].isalpha() or word[0] in "_$" or word == ANONYMOUS for word in words):
            raise ValueError(f"{self.text[:80]!r} is no C type")
        tagged = words[0] in KEYWORDS
        if (tagged and len(words) != 2) or (not tagged and ANONYMOUS in words):
            raise ValueError(f"{self.text[:80]!r} is no C type")
        return " ".join(words)

    def declarator(self, depth: int) -> list[str | int]:
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} parentheses in each other")
        steps: list[str | int] = []
        while self.next == "*" or self.next in QUALIFIERS:
            if self.next == "*":
                steps.append(POINTER)
            self.at += 1
        inner: list[str | int] = []
        if self.next == "(" and self.tokens[self.at + 1 : self.at + 2] in (["*"], ["("], ["["]):
            self.at += 1
            inner = self.declarator(depth + 1)
            self.expect(")")
        suffixes: list[str | int] = []
        while self.next in ("(", "["):
            suffixes.append(self.array() if self.next == "[" else self.parameters())
        return [*steps, *reversed(suffixes), *inner]

    def array(self) -> int:
        self.expect("[")
        count = 0
        if self.next.isdigit():
            if len(self.next) > 18:
                raise ValueError(f"an array of {self.next[:20]}... elements")
            count = int(self.next)
            self.at += 1
        self.expect("]")
        return count

    def parameters(self) -> str:
        depth = 0
        while self.next:
            depth += {"(": 1, ")": -1}.get(self.next, 0)
            self.at += 1
            if not depth:
                return FUNCTION
        raise ValueError(f"a parenthesis without its end in {self.text[:80]!r}")

    def expect(self, token: str) -> None:
        if self.next != token:
            raise ValueError(f"{token!r} is missing in {self.text[:80]!r}")
        self.at += 1


def c_type_text(type_: Type) -> str:
    """Return the type's name as `parse_c_type` reads it. Functions are written without their parameters."""
    declarator = ""
    for _ in range(MAX_DEPTH):
        if isinstance(type_, PointerType):
            declarator, type_ = f"*{declarator}", type_.target
        elif isinstance(type_, ArrayType):
            declarator, type_ = f"{_bound(declarator)}[{type_.count}]", type_.element
        elif isinstance(type_, FunctionType):
            declarator, type_ = f"{_bound(declarator)}()", VoidType()  # what it returns is not known
        else:
            break
    else:
        raise ValueError(f"more than {MAX_DEPTH} pointers and arrays of each other")
    name = type_.name
    if isinstance(type_, (StructType, EnumType)):
        name = f"{type_.keyword if isinstance(type_, StructType) else 'enum'} {name or ANONYMOUS}"
    return f"{name} {declarator}" if declarator else name


def _bound(declarator: str) -> str:
    return f"({declarator})" if declarator.startswith("*") else declarator
