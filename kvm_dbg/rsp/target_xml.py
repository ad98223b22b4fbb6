"""Target descriptions: which registers a processor has, as gdb and lldb read it, and their bytes in packets.

Facts: gdb's features/i386/64bit-core.xml, 64bit-linux.xml, 64bit-segments.xml, 32bit-core.xml and 32bit-linux.xml,
features/aarch64-core.xml, riscv/64bit-cpu.xml and rs6000/power64-core.xml for names, sizes and order ("Target
Descriptions" in the gdb manual); lldb's additions (generic, dwarf_regnum, encoding) from lldb's
docs/resources/lldbgdbremote, and the DWARF numbers from the System V ABI for x86-64, figure 3.36, and for i386, table
2.14, "DWARF for the Arm 64-bit Architecture" (aadwarf64) and the RISC-V ELF psABI; for 64-bit Power, lldb's numbers
(source/Utility/PPC64_DWARF_Registers.h and PPC64LE_DWARF_Registers.h), which are those of the ABI's two versions. gdb
ignores what it does not know, so one file serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvm_dbg.arch.base import Arch
from kvm_dbg.errors import UnsupportedError


def quoted(text: str) -> str:
    """Return the text as the value of an XML attribute, in quotes."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return f'"{text}"'


class TargetRegister(NamedTuple):
    """One register of a description.

    name: as in `Thread.registers` and in gdb. type: gdb's. generic: lldb's role for it. dwarf: its DWARF number. alias:
    what lldb calls it elsewhere.
    """

    name: str
    bits: int
    type: str
    generic: str = ""
    dwarf: int | None = None
    alias: str = ""


class Feature(NamedTuple):
    """A group of registers that debuggers know by name."""

    name: str
    registers: tuple[TargetRegister, ...]


class TargetDescription:
    """The registers of one architecture, in the order of `g` packets.

    Args:
        arch: the architecture's name in the house.
        architecture: the name in gdb (BFD).
        triple: the target triple that lldb wants.
        pointer_size: bytes.
    """

    def __init__(
        self,
        arch: str,
        byteorder: str,
        architecture: str,
        triple: str,
        features: tuple[Feature, ...],
        pointer_size: int = 8,
    ) -> None:
        self.arch = arch
        self.byteorder = byteorder
        self.architecture = architecture
        self.triple = triple
        self.pointer_size = pointer_size
        self.features = features
        self.registers = tuple(register for feature in features for register in feature.registers)

    def xml(self) -> bytes:
        """Return the target.xml."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
            '<target version="1.0">',
            f"<architecture>{self.architecture}</architecture>",
            "<osabi>GNU/Linux</osabi>",
        ]
        number = offset = 0
        for feature in self.features:
            lines.append(f"<feature name={quoted(feature.name)}>")
            for register in feature.registers:
                extra = f' generic="{register.generic}"' if register.generic else ""
                extra += f' altname="{register.alias}"' if register.alias else ""
                if register.dwarf is not None:
                    extra += f' dwarf_regnum="{register.dwarf}" gcc_regnum="{register.dwarf}"'
                lines.append(
                    f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}" regnum="{number}"'
                    f' offset="{offset}"{extra}/>'
                )
                number += 1
                offset += register.bits // 8
            lines.append("</feature>")
        lines.append("</target>\n")
        return "\n".join(lines).encode()

    def encode(self, register: TargetRegister, values: Mapping[str, int]) -> bytes:
        """Return the register's value in hexadecimal, in target byte order; `xx` for each byte of an unknown one."""
        size = register.bits // 8
        value = values.get(register.name)
        if value is None:
            return b"xx" * size
        value &= (1 << register.bits) - 1
        return value.to_bytes(size, "big" if self.byteorder == "big" else "little").hex().encode()

    def encode_all(self, values: Mapping[str, int]) -> bytes:
        """Return the payload of a `g` reply."""
        return b"".join([self.encode(register, values) for register in self.registers])


_X86_64_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_X86_64_FLOAT = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_X86_64_DWARF = {
    name: number for number, name in enumerate(("rax", "rdx", "rcx", "rbx", "rsi", "rdi", *_X86_64_GENERAL[6:], "rip"))
}
_X86_64_GENERIC = {
    "rip": "pc",
    "rsp": "sp",
    "rbp": "fp",
    "eflags": "flags",
    "rdi": "arg1",
    "rsi": "arg2",
    "rdx": "arg3",
    "rcx": "arg4",
    "r8": "arg5",
    "r9": "arg6",
}


def _x86_64_register(name: str, bits: int, type_: str) -> TargetRegister:
    return TargetRegister(name, bits, type_, _X86_64_GENERIC.get(name, ""), _X86_64_DWARF.get(name))


_X86_64_TYPES = {"rbp": "data_ptr", "rsp": "data_ptr", "rip": "code_ptr"}

X86_64 = TargetDescription(
    "x86_64",
    "little",
    "i386:x86-64",
    "x86_64-unknown-linux-gnu",
    (
        Feature(
            "org.gnu.gdb.i386.core",
            tuple(_x86_64_register(name, 64, _X86_64_TYPES.get(name, "int64")) for name in (*_X86_64_GENERAL, "rip"))
            + tuple(_x86_64_register(name, 32, "int32") for name in ("eflags", "cs", "ss", "ds", "es", "fs", "gs"))
            + tuple(_x86_64_register(f"st{number}", 80, "i387_ext") for number in range(8))
            + tuple(_x86_64_register(name, 32, "int") for name in _X86_64_FLOAT),
        ),
        Feature("org.gnu.gdb.i386.linux", (_x86_64_register("orig_rax", 64, "int64"),)),
        Feature(
            "org.gnu.gdb.i386.segments",
            (_x86_64_register("fs_base", 64, "int64"), _x86_64_register("gs_base", 64, "int64")),
        ),
    ),
)

_I386_GENERAL = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip")
_I386_GENERIC = {"eip": "pc", "esp": "sp", "ebp": "fp", "eflags": "flags"}
_I386_TYPES = {"ebp": "data_ptr", "esp": "data_ptr", "eip": "code_ptr"}


def _i386_register(name: str, number: int | None = None) -> TargetRegister:
    return TargetRegister(name, 32, _I386_TYPES.get(name, "int32"), _I386_GENERIC.get(name, ""), number)


I386 = TargetDescription(
    "i386",
    "little",
    "i386",
    "i386-unknown-linux-gnu",
    (
        Feature(
            "org.gnu.gdb.i386.core",
            tuple(_i386_register(name, number) for number, name in enumerate((*_I386_GENERAL, "eflags")))
            + tuple(_i386_register(name) for name in ("cs", "ss", "ds", "es", "fs", "gs"))
            + tuple(TargetRegister(f"st{number}", 80, "i387_ext") for number in range(8))
            + tuple(TargetRegister(name, 32, "int") for name in _X86_64_FLOAT),
        ),
        Feature("org.gnu.gdb.i386.linux", (_i386_register("orig_eax"),)),
    ),
    pointer_size=4,
)
"""What a process of 32 bits sees of an x86_64 processor; the kernel keeps it as the lower halves of `WIDE_NAMES`."""

WIDE_NAMES = {**{name: f"r{name[1:]}" for name in _I386_GENERAL}, "orig_eax": "orig_rax"}
NARROW = {"x86_64": I386}  # by the architecture whose processes of 32 bits are meant


def _registers(
    names: tuple[str, ...], bits: int, type_: str, generic: Mapping[str, str], first_dwarf: int | None
) -> tuple[TargetRegister, ...]:
    """Return registers of one size and type; their DWARF numbers follow each other, or they have none."""
    return tuple(
        TargetRegister(name, bits, type_, generic.get(name, ""), None if first_dwarf is None else first_dwarf + index)
        for index, name in enumerate(names)
    )


_AARCH64_GENERIC = {f"x{number}": f"arg{number + 1}" for number in range(8)}

AARCH64 = TargetDescription(
    "aarch64",
    "little",
    "aarch64",
    "aarch64-unknown-linux-gnu",
    (
        Feature(
            "org.gnu.gdb.aarch64.core",
            (
                *_registers(tuple(f"x{number}" for number in range(29)), 64, "int64", _AARCH64_GENERIC, 0),
                TargetRegister("x29", 64, "int64", "fp", 29, "fp"),
                TargetRegister("x30", 64, "int64", "ra", 30, "lr"),
                TargetRegister("sp", 64, "data_ptr", "sp", 31),
                TargetRegister("pc", 64, "code_ptr", "pc", 32),
                TargetRegister("cpsr", 32, "uint32", "flags", 33),
            ),
        ),
    ),
)

# fmt: off
_RISCV_GENERAL = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7",
    "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
)
# fmt: on
_RISCV_GENERIC = {"ra": "ra", "sp": "sp", "fp": "fp", **{f"a{number}": f"arg{number + 1}" for number in range(8)}}

RISCV64 = TargetDescription(
    "riscv64",
    "little",
    "riscv:rv64",
    "riscv64-unknown-linux-gnu",
    (
        Feature(
            "org.gnu.gdb.riscv.cpu",
            (
                *_registers(_RISCV_GENERAL, 64, "int64", _RISCV_GENERIC, 0),
                TargetRegister("pc", 64, "code_ptr", "pc"),
            ),
        ),
    ),
)

_POWER_GENERIC = {"r1": "sp", "r31": "fp", **{f"r{number + 3}": f"arg{number + 1}" for number in range(8)}}


def _ppc64(byteorder: str, triple: str) -> TargetDescription:
    """Return the description of one byte order; lldb's own numbers of registers differ between the two."""
    cr, lr, ctr, xer = (64, 108, 109, 100) if byteorder == "big" else (68, 65, 66, 76)
    core = (
        *_registers(tuple(f"r{number}" for number in range(32)), 64, "uint64", _POWER_GENERIC, 0),
        TargetRegister("pc", 64, "code_ptr", "pc"),
        TargetRegister("msr", 64, "uint64"),
        TargetRegister("cr", 32, "uint32", "flags", cr),
        TargetRegister("lr", 64, "code_ptr", "ra", lr),
        TargetRegister("ctr", 64, "uint64", "", ctr),
        TargetRegister("xer", 32, "uint32", "", xer),
    )
    return TargetDescription("ppc64", byteorder, "powerpc:common64", triple, (Feature("org.gnu.gdb.power.core", core),))


DESCRIPTIONS = (
    X86_64,
    AARCH64,
    RISCV64,
    I386,
    _ppc64("big", "powerpc64-unknown-linux-gnu"),
    _ppc64("little", "powerpc64le-unknown-linux-gnu"),
)


def find_description(arch: Arch) -> TargetDescription:
    """Return the description for an architecture.

    Raises:
        UnsupportedError: there is none.
    """
    for description in DESCRIPTIONS:
        if (description.arch, description.byteorder) == (arch.name, arch.byteorder):
            return description
    raise UnsupportedError(f"a debugger's view of {arch.name}")
