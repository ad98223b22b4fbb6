"""Values as C programmers write them, on one line and no longer than a line.

Characters out of an image are left as they are here: whoever prints the text makes it safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    FloatType,
    FunctionType,
    IntType,
    PointerType,
    StructType,
    Type,
    TypedefType,
    size_of,
)
from kvm_dbg.debuginfo.value import Value
from kvm_dbg.errors import FormatError, MemberNotFound, ReadError, TypeNotFound

WIDTH = 100  # characters of one value
MAX_ITEMS = 12  # members or elements
MAX_DEPTH = 2  # structs inside structs
MAX_STRING = 48  # bytes of a string that are shown
MAX_LOADED = 1 << 16  # bytes of an object that are read at once
MAX_NAME = 16  # pointers to pointers
GONE = "<not in the image>"
NAMES: dict[str, str] = {"_Bool": "bool"}

Symbolize = Callable[[int], str | None]


def type_name(type_: Type) -> str:
    """Return a type as C spells it, without the names of parameters."""
    stars = ""
    for _ in range(MAX_NAME):
        if not isinstance(type_, PointerType):
            break
        type_ = type_.target
        stars += "*"
    if isinstance(type_, FunctionType):
        return f"void ({stars or '*'})()"
    if isinstance(type_, ArrayType):
        return f"{type_name(type_.element)} {f'({stars})' if stars else ''}[{type_.count or ''}]"
    if isinstance(type_, StructType):
        name = f"{type_.keyword} {type_.name or '{...}'}"
    elif isinstance(type_, EnumType):
        name = f"enum {type_.name or '{...}'}"
    else:
        name = NAMES.get(type_.name, type_.name) or "void"
    return f"{name} {stars}" if stars else name


def value_text(value: Value, symbolize: Symbolize) -> str:
    """Return a value on one line, shortened; what is not in the image says so."""
    text = "".join(_pieces(value, symbolize, 0))
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def _pieces(value: Value, symbolize: Symbolize, depth: int) -> Iterator[str]:
    try:
        if not value.bit_size and size_of(value.type) <= MAX_LOADED:
            value.load()
        yield from _parts(value, symbolize, depth)
    except ReadError:
        yield GONE
    except (TypeNotFound, MemberNotFound, FormatError):
        yield "<of an unknown type>"


def _parts(value: Value, symbolize: Symbolize, depth: int) -> Iterator[str]:
    type_ = value.type
    if isinstance(type_, StructType):
        yield from _struct(value, type_, symbolize, depth)
    elif isinstance(type_, ArrayType):
        element = type_.element.stripped()
        if isinstance(element, IntType) and element.is_char and type_.count:
            yield _quoted(value.string())
        else:
            yield from _array(value, type_, symbolize, depth)
    elif isinstance(type_, PointerType):
        yield _pointer(value, type_, symbolize, depth)
    elif isinstance(type_, EnumType):
        number = int(value)
        yield next((name for name, known in type_.enumerators if known == number), str(number))
    elif isinstance(type_, FloatType) and type_.size in (4, 8):
        import struct

        order = "<" if value.byteorder == "little" else ">"
        yield str(struct.unpack(order + ("f" if type_.size == 4 else "d"), value.data)[0])
    elif isinstance(type_, IntType):
        number = int(value)
        if type_.is_bool and number in (0, 1):
            yield "true" if number else "false"
        elif type_.is_char and type_.size == 1 and 0x20 <= number < 0x7F:
            yield f"{number} {chr(number)!r}"
        else:
            yield str(number)
    else:
        yield "<of no size>" if not size_of(type_) else value.data.hex(" ")


def _struct(value: Value, type_: StructType, symbolize: Symbolize, depth: int) -> Iterator[str]:
    if not type_.size or depth >= MAX_DEPTH:
        yield "{...}"
        return
    yield "{"
    for number, member in enumerate(type_.members):
        if number:
            yield ", "
        if number >= MAX_ITEMS:
            yield "..."
            break
        yield f"{member.name} = " if member.name else ""
        yield from _pieces(value.part(member), symbolize, depth + 1)
    yield "}"


def _array(value: Value, type_: ArrayType, symbolize: Symbolize, depth: int) -> Iterator[str]:
    if not type_.count or depth >= MAX_DEPTH:
        yield "{...}" if type_.count else "{}"
        return
    yield "{"
    for number in range(type_.count):
        if number:
            yield ", "
        if number >= MAX_ITEMS:
            yield "..."
            break
        yield from _pieces(value[number], symbolize, depth + 1)
    yield "}"


def _pointer(value: Value, type_: PointerType, symbolize: Symbolize, depth: int) -> str:
    address = int(value)
    text = f"{address:#x}"
    if not depth and not isinstance(type_.target, TypedefType):
        text = f"({type_name(type_)}) {text}"
    elif not depth:
        text = f"({type_.target.name} *) {text}"
    target = type_.target.stripped()
    if not address:
        return text
    if isinstance(target, IntType) and target.is_char:
        try:
            return f"{text} {_quoted(value.string(MAX_STRING + 1))}"
        except ReadError:
            return text
    symbol = symbolize(address)
    return f"{text} <{symbol}>" if symbol is not None else text


def _quoted(data: bytes) -> str:
    text = data[:MAX_STRING].decode("utf-8", "backslashreplace").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' + ("..." if len(data) > MAX_STRING else "")
