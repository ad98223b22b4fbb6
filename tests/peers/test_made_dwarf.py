"""DWARF made from BTF, as drgn reads it, against the DWARF of the distributions' own kernel files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.debuginfo.btf_data import ENUM, ENUM64, FUNC, INT, KIND_MASK, STRUCT, TYPEDEF, UNION, VAR, VLEN_MASK
from kvm_dbg.elf import open_elf
from kvm_dbg.kernel_file.declaration import DECLARATIONS
from kvm_dbg.kernel_file.dwarf import MadeDwarf, make_dwarf
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.lab import find
from tests.writers.elf import Part, write_elf

KERNELS = ("deb11-4level", "deb12-4level", "deb13-4level", "bpo13-4level")  # one scenario of each kernel
PREFIXES = {STRUCT: "struct ", UNION: "union ", ENUM: "enum ", ENUM64: "enum ", TYPEDEF: "", INT: ""}
NOT_ASKED = {"__int128", "__int128 unsigned", "ssizetype"}  # drgn finds no type by these names

# BTF itself says something else: it leaves out what the verifier passes to a function of BPF (KF_IMPLICIT_ARGS), and of
# two static functions of one name, of which one was inlined, it may describe that one
OTHER_PROTOTYPES = {"bpf_list_push_front", "scx_bpf_dsq_move_to_local", "nvme_init_request", "store_status"}

Shape = tuple[Any, ...]


class Pair:
    """One kernel's own DWARF, and the one made from its BTF and its symbols, which have no sizes as in kallsyms."""

    def __init__(self, path: Path, folder: Path) -> None:
        elf = open_elf(path)
        section = elf.find_section(".BTF")
        assert section is not None
        self.btf = BtfTypes(elf.section_data(section), source=f"BTF of {path}")
        symbols = [Symbol(symbol.name, symbol.address, 0, symbol.kind) for symbol in ElfSymbolTable(path).for_each()]
        self.made: MadeDwarf = make_dwarf(self.btf, symbols, parameter_names=True)
        self.signs_lost = not self.btf.data.tables()["facts"][0]
        self.functions = _named(self.btf, FUNC)
        file = folder / "made"
        file.write_bytes(write_elf([Part(name, 1, 0, data) for name, data in self.made.sections.items()]))
        self.ours, self.theirs = _program(file), _program(path)

    def names(self) -> Iterator[str]:
        """Yield the names that BTF has one type for; of several, each reader may choose another."""
        data = self.btf.data
        words = data.words
        found: Counter[str] = Counter()
        for at in data.offsets:
            kind = words[at + 1] >> 24 & KIND_MASK
            declared = kind in (ENUM, ENUM64) and not words[at + 1] & VLEN_MASK
            if kind in PREFIXES and words[at] and not declared:
                found[PREFIXES[kind] + data.name(words[at]).decode()] += 1
        yield from (name for name, times in found.items() if times == 1 and name not in NOT_ASKED)


def _named(btf: BtfTypes, kind: int) -> list[str]:
    """Return the names of all records of a kind."""
    words = btf.data.words
    places = (at for at in btf.data.offsets if words[at + 1] >> 24 & KIND_MASK == kind)
    return [btf.data.name(words[at]).decode() for at in places]


def _program(path: Path) -> Any:
    import drgn

    program: Any = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module: Any = program.extra_module("kernel", create=True)
    module.try_file(str(path), force=True)
    assert module.debug_file_status == drgn.ModuleFileStatus.HAVE
    return program


@pytest.fixture(scope="module", params=KERNELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    dump = find(request.param)
    if dump is None:
        pytest.skip(f"the lab has no dump {request.param}: python -m tests.lab build {request.param}")
    return Pair(dump.vmlinux, tmp_path_factory.mktemp(request.param))


def shape(type_: Any) -> Shape:
    """Return what a type consists of; types inside are named, those without a name are described."""
    import drgn

    kind = type_.kind
    if kind == drgn.TypeKind.ENUM:
        return (type_.type.size, type_.type.is_signed, *map(tuple, type_.enumerators or ()))
    if kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        members = type_.members or ()
        return (
            type_.size,
            *((member.name, member.bit_offset, member.bit_field_size or 0, told(member.type)) for member in members),
        )
    if kind == drgn.TypeKind.TYPEDEF:
        return told(type_.type)
    return (type_.size, getattr(type_, "is_signed", None), type_.name)


def told(type_: Any) -> Shape:
    """Return a type's size and its name, or its shape if it has none.

    BTF does not tell an array of several dimensions from one of all its elements, nor `[0]` from `[]`.
    """
    import drgn

    nameless = type_.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION, drgn.TypeKind.ENUM) and type_.tag is None
    if nameless:
        return shape(type_)
    if type_.kind == drgn.TypeKind.ARRAY:
        count = 1
        size = _size(type_)
        while type_.kind == drgn.TypeKind.ARRAY:
            count *= type_.length or 0
            type_ = type_.type
        return (size, count, told(type_))
    if type_.kind == drgn.TypeKind.POINTER and "anonymous" in type_.type_name():
        return (_size(type_), "pointer", *(() if type_.type.kind == drgn.TypeKind.FUNCTION else told(type_.type)))
    return _size(type_), re.sub(r"(\[\d*\])+", "[]", type_.type_name())


def _size(type_: Any) -> int:
    import drgn

    try:
        return int(drgn.sizeof(type_))
    except TypeError:  # void, functions and incomplete types
        return 0


def test_nothing_is_left_out(pair: Pair) -> None:
    assert pair.made.left_out == 0
    assert pair.made.functions > 30000


def test_every_type_is_as_in_the_kernel_file(pair: Pair) -> None:
    different, absent, same = {}, [], 0
    for name in pair.names():
        ours = shape(pair.ours.type(name))
        try:
            theirs = shape(pair.theirs.type(name))
        except LookupError:
            absent.append(name)  # drgn does not look for types inside functions
            continue
        if ours == theirs or (name.startswith("enum ") and pair.signs_lost and low_words(ours) == low_words(theirs)):
            same += 1
        else:
            different[name] = (ours, theirs)
    assert different == {}
    assert same > 9000
    assert len(absent) < 30


def low_words(enum: Shape) -> list[object]:
    """Return an enum without what BTF of before ENUM64 cannot say: signs and upper halves."""
    return [enum[0], *((name, value & 0xFFFFFFFF) for name, value in enum[2:])]


def prototype(function: Any) -> Shape:
    """Return the types of a function; BTF may have its parameters' names from another declaration."""
    type_ = function.type_
    return told(type_.type), *(told(parameter.type) for parameter in type_.parameters), type_.is_variadic


def test_functions_have_their_prototypes(pair: Pair) -> None:
    """Every tenth of the functions, without those that drgn finds elsewhere: weak ones, and those it cannot read."""
    import drgn

    different, same, elsewhere = {}, 0, 0
    for name in pair.functions[::10]:
        try:
            ours = pair.ours.function(name)
            theirs = pair.theirs.function(name)
        except (LookupError, drgn.BadDataError):
            elsewhere += 1
            continue
        if ours.address_ != theirs.address_:
            elsewhere += 1
        elif prototype(ours) == prototype(theirs) or name in OTHER_PROTOTYPES:
            same += 1
        else:
            different[name] = (prototype(ours), prototype(theirs))
    assert different == {}
    assert same > 5 * elsewhere


def test_variables_have_their_types(pair: Pair) -> None:
    import drgn

    declared = {name: text for variables in DECLARATIONS.values() for name, text in variables.items()}
    different, same, unread = {}, set(), 0
    for name in [*declared, *_named(pair.btf, VAR)]:
        try:
            ours = pair.ours.variable(name)
            theirs = pair.theirs.variable(name)
        except (LookupError, drgn.BadDataError):
            unread += 1
            continue
        assert ours.address_ == theirs.address_
        if told(ours.type_) == told(theirs.type_) or (
            declared.get(name, "").endswith("[]") and padded(told(ours.type_), told(theirs.type_))
        ):
            same.add(name)
        else:
            different[name] = (told(ours.type_), told(theirs.type_))
    assert different == {}
    assert same > {"init_task", "modules", "linux_banner", "runqueues", "prb", "__per_cpu_offset", "jiffies_64"}
    assert len(same) > 10 * unread


def padded(ours: Shape, theirs: Shape) -> bool:
    """Return whether an array differs by some bytes of alignment at its end, or is one declared without a length."""
    return ours[2:] == theirs[2:] and (theirs[0] == 0 or 0 <= ours[0] - theirs[0] < 64)
