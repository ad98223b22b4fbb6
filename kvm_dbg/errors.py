"""Every error that kvm_dbg raises on purpose, in one tree.

    KvmDbgError
      FileAccessError(path)            the operating system refused the file: missing, a directory, no permission
      UnknownFormatError(path)         no reader recognises the file
      FormatError(path, offset, field) a reader recognises it, but a field is impossible
      UnsupportedError(feature)        understood, and not built
      ReadError(address)
        NotInImageError                memory exists, its bytes are not in the image: not dumped, filtered, truncated
        NotMappedError(level, entry)   a page-table walk ended at an entry that maps nothing
      SymbolNotFound(name)  TypeNotFound(name)  MemberNotFound(type_name, member)
      KernelNotFoundError              no kernel found in the image, or several and none chosen
      KernelMismatchError              the given kernel file is not the one in the image
      CorruptError(address)            a list that loops, an impossible value in the image's memory
      CommandError                     a command has no answer, or cannot be carried out
        UsageError                     words that a command does not understand
        ConfirmationError(question)    a write to a running kernel that somebody has to agree to first
      ProtocolError                    a debugger sent what the remote serial protocol does not allow

Each text stands alone (what, where, what the user can do); what a program may want is an attribute.
"""

from __future__ import annotations


class KvmDbgError(Exception):
    """Base of all errors raised on purpose by kvm_dbg."""


class FileAccessError(KvmDbgError):
    """A file could not be opened, mapped or read; `path` names it."""

    def __init__(self, path: object, message: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path}: {message}")


class UnknownFormatError(KvmDbgError):
    """No reader recognises the file `path`."""

    def __init__(self, path: object, message: str) -> None:
        self.path = str(path)
        super().__init__(f"{self.path}: {message}")


class FormatError(KvmDbgError):
    """A file is of a known format, but `field` at byte `offset` cannot be right."""

    def __init__(self, path: object, offset: int, field: str, message: str) -> None:
        self.path = str(path)
        self.offset = offset
        self.field = field
        super().__init__(f"{self.path}: offset {offset:#x}: {field}: {message}")


class UnsupportedError(KvmDbgError):
    """Something is recognised, but this version does not handle it; `feature` names it."""

    def __init__(self, feature: str, message: str = "") -> None:
        self.feature = feature
        super().__init__(f"{feature} is not supported" + (f": {message}" if message else ""))


class ReadError(KvmDbgError):
    """Memory at `address` could not be read."""

    def __init__(self, address: int, message: str) -> None:
        self.address = address
        super().__init__(message)


class NotInImageError(ReadError):
    """Bytes that exist on the machine are not in the image.

    `address` is the first missing byte (physical unless the text says otherwise), `size` the length in bytes of
    the first missing run and `reason` one of "excluded", "truncated", "hole" or "refused" (see `image.base.Presence`),
    or "device", for a write to what is no RAM.
    `role` says what the bytes would have been, where the reader knows ("the PDE of virtual address ...").
    """

    def __init__(self, address: int, size: int, reason: str, path: object = "", role: str = "") -> None:
        self.size = size
        self.reason = reason
        self.path = str(path)
        self.role = role
        why = {
            "excluded": "was excluded by the dump level",
            "truncated": "is past the end of the truncated or incomplete file",
            "hole": "is not memory that the image describes",
            "refused": "is not shown by the running kernel",
            "device": "is no RAM, by the kernel's list of resources",
        }.get(reason, reason)
        where = f"{self.path}: " if self.path else ""
        what = f", {role}," if role else ""
        super().__init__(address, f"{where}physical address {address:#x} ({size} bytes){what} {why}")


class NotMappedError(ReadError):
    """A page-table walk for `address` (virtual) ended at an entry that maps nothing.

    `level` is the vendor's name of the entry ("PML4E", "PTE", ...), `entry` its raw value, `entry_paddr` its
    physical address; all None where the address itself is impossible (not canonical).
    """

    def __init__(
        self,
        address: int,
        reason: str,
        *,
        level: str | None = None,
        entry: int | None = None,
        entry_paddr: int | None = None,
    ) -> None:
        self.reason = reason
        self.level = level
        self.entry = entry
        self.entry_paddr = entry_paddr
        text = f"virtual address {address:#x} is not mapped: {reason}"
        if level is not None and entry is not None and entry_paddr is not None:
            text += f" ({level} {entry:#018x} at physical address {entry_paddr:#x})"
        super().__init__(address, text)


class SymbolNotFound(KvmDbgError):  # noqa: N818 - the house's name
    """No symbol called `name` is known."""

    def __init__(self, name: str, message: str = "") -> None:
        self.name = name
        super().__init__(message or f"no symbol {name!r}")


class TypeNotFound(KvmDbgError):  # noqa: N818 - the house's name
    """No type called `name` is known."""

    def __init__(self, name: str, message: str = "") -> None:
        self.name = name
        super().__init__(message or f"no type {name!r}")


class MemberNotFound(KvmDbgError):  # noqa: N818 - the house's name
    """The type `type_name` has no member `member`."""

    def __init__(self, type_name: str, member: str) -> None:
        self.type_name = type_name
        self.member = member
        super().__init__(f"{type_name} has no member {member!r}")


class KernelNotFoundError(KvmDbgError):
    """No kernel could be identified in the image, several were and none was chosen, or one lacks its kernel file.

    `candidates` holds one line of text for each that was found, in the order of `--kernel N` (from 1).
    """

    def __init__(self, message: str, candidates: tuple[str, ...] = ()) -> None:
        self.candidates = candidates
        super().__init__(message)


class KernelMismatchError(KvmDbgError):
    """A kernel file is not of the kernel in the image; `expected` is the image's side, `found` the file's."""

    def __init__(self, path: object, what: str, expected: str, found: str) -> None:
        self.path = str(path)
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(
            f"{self.path} is not the kernel of this image: {what} is {found} in the file and {expected} in the image"
            " (--force uses it all the same)"
        )


class CorruptError(KvmDbgError):
    """The image's memory contradicts itself at `address` (virtual): a list that loops, an impossible value."""

    def __init__(self, address: int, message: str) -> None:
        self.address = address
        super().__init__(f"{message} (at {address:#x})")


class CommandError(KvmDbgError):
    """A command has no answer, or cannot be carried out; the text says what to do."""


class UsageError(CommandError):
    """A command was given words that it does not understand; the text ends with how it is used."""


class ConfirmationError(CommandError):
    """A write to a running kernel waits for somebody's word; `question` is what to ask, to be answered by yes or no."""

    def __init__(self, question: str, message: str) -> None:
        self.question = question
        super().__init__(message)


class ProtocolError(KvmDbgError):
    """The peer broke the remote serial protocol."""
