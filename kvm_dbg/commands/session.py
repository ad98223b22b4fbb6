"""What commands work on: one opened image with its kernel, and how to open another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CommandError, ConfirmationError, FileAccessError, KvmDbgError, SymbolNotFound, UsageError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.through import WriteThroughImage
from kvm_dbg.kernel import find_symbols, open_kernel, system_of
from kvm_dbg.kernel.base import GRADES, Check, Kernel, OperatingSystem, Thread
from kvm_dbg.symbols.base import Symbol

if TYPE_CHECKING:
    from kvm_dbg.commands.module_file import LoadedSymbols

ELF_MAGIC = b"\x7fELF"
ET_CORE = 4  # e_type of a core file; everything else that is ELF is taken for a kernel file


class OpenRequest(NamedTuple):
    """What a user asks to open: files and options, before anything is looked at.

    images: one image, or the parts of a split one. vmlinux: a kernel file, None to search for it. base, hole: see
    `image.raw`. format: a reader's name, None to probe. offset: where the dump starts in a dump partition. candidate:
    which kernel of several (from 1). force: use a vmlinux that does not match. layout: a layout file with types. patch:
    a file of changes to make in the private copy. search: directories to look for vmlinux in, before the usual ones.
    index_directory: where indexes are kept, None for no index. live: memory changes while it is read; without images,
    that of this machine. qmp: where the monitor of a virtual machine listens, whose memory it is then. write: what is
    written goes into that memory itself.
    """

    images: tuple[str, ...]
    vmlinux: str | None = None
    base: int | None = None
    hole: tuple[int, int] | None = None
    format: str | None = None
    offset: int | None = None
    candidate: int | None = None
    force: bool = False
    layout: str | None = None
    patch: str | None = None
    search: tuple[str, ...] = ()
    index_directory: str | None = None
    live: bool = False
    write: bool = False
    qmp: str | None = None


def sort_files(files: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return (vmlinux or None, images) of files named in any order: an ELF file that is no core is the kernel's.

    Raises:
        UsageError: two kernel files.
    """
    vmlinux: str | None = None
    images: list[str] = []
    for path in files:
        if is_kernel_file(path):
            if vmlinux is not None:
                raise UsageError(f"two kernel files given: {vmlinux} and {path}")
            vmlinux = path
        else:
            images.append(path)
    return vmlinux, tuple(images)


def is_kernel_file(path: str) -> bool:
    """Return whether the file, or what is compressed in it, is ELF and no core.

    False as well if it cannot be read, which opening will explain.
    """
    from kvm_dbg.image.compressed import read_head

    try:
        head = read_head(path, 18)
    except KvmDbgError:
        return False
    if len(head) < 18 or not head.startswith(ELF_MAGIC):
        return False
    return int.from_bytes(head[16:18], "big" if head[5] == 2 else "little") != ET_CORE


def worst_grade(checks: Iterable[Check]) -> str | None:
    """Return the worst grade of the checks, None if there are none."""
    return max((check.grade for check in checks), key=GRADES.index, default=None)


class Session:
    """One opened image, or none yet.

    Attributes:
        loaded: the modules' symbols that a debugger has loaded, None without a debugger.
        find_selected: returns what `selected` is; only asked where a command wants to know.
        last_error: the text of the last command that failed, "" before any has; `geterr` shows it.
        progress: called with a line of text when something takes long.
        color: whether what reads the output is a terminal that shows colours.
        index_directory, search: what `open` uses where the user does not say.
        attended: somebody is there who has to agree to the first write into a running kernel.
        ask: asks a question, to be answered by yes or no; None where only the debugger can do that.
    """

    def __init__(
        self,
        progress: Callable[[str], None] | None = None,
        index_directory: str | None = None,
        search: tuple[str, ...] = (),
    ) -> None:
        self.request: OpenRequest | None = None
        self.find_selected: Callable[[], Thread | None] = lambda: None
        self.loaded: LoadedSymbols | None = None
        self.index_directory = index_directory
        self.search = search
        self.last_error = ""
        self.color = False
        self.progress = progress
        self.attended = False
        self.ask: Callable[[str], bool] | None = None
        self._kernel: Kernel | None = None
        self._grades: dict[str, str | None] = {}

    @property
    def is_open(self) -> bool:
        """Return whether an image is open."""
        return self._kernel is not None

    @property
    def selected(self) -> Thread | None:
        """Return the thread that a debugger has selected while one of its commands runs, None without a debugger."""
        return self.find_selected()

    @property
    def kernel(self) -> Kernel:
        """Return the opened kernel. Raises CommandError if none is open."""
        if self._kernel is None:
            raise CommandError("no image is open: use `open [VMLINUX] IMAGE...` first")
        return self._kernel

    def require_kernel(self) -> None:
        """Raise CommandError if no image is open."""
        _ = self.kernel

    @property
    def system(self) -> OperatingSystem:
        """Return the room of the opened kernel's operating system."""
        return system_of(self.kernel)

    @property
    def image(self) -> MemoryImage:
        """Return the opened image."""
        return self.kernel.image

    def find_symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Return the found ones of `names`, in the kernel and in its modules."""
        return find_symbols(self.kernel, names, self.system)

    def find_symbol(self, name: str) -> Symbol:
        """Return the symbol `name` of the kernel or of a module. Raises SymbolNotFound."""
        symbol = self.find_symbols([name]).get(name)
        if symbol is None:
            raise SymbolNotFound(name)
        return symbol

    def grade(self, command: str) -> str | None:
        """Return how far the data behind a command can be believed (one of GRADES), None if nothing tells.

        It is found out once; what is written into the image afterwards does not change it.
        """
        if self.image.live:
            return None  # what contradicts itself may just have changed between two looks
        if command not in self._grades:
            self._grades[command] = worst_grade(self.system.for_each_check(self.kernel, command))
        return self._grades[command]

    def open(self, request: OpenRequest, given: MemoryImage | None = None) -> Kernel:
        """Open an image and the kernel in it; what was open before is closed once the new one stands.

        given: the image, where it is none of the request's files.

        Raises:
            KvmDbgError: the image or the named kernel file cannot be used; what was open stays open.
        """
        if given is None:
            given = open_image(
                request.images,
                base=request.base,
                hole=request.hole,
                format=request.format,
                offset=request.offset,
                live=request.live,
                write=request.write,
                qmp=request.qmp,
                cache_directory=request.index_directory,
                progress=self.progress,
            )
        image = self._cover(given, request)
        try:
            if request.patch is not None:
                if not isinstance(image, OverlayImage):
                    raise CommandError(f"{given.paths[0]}: --patch is for dumps; a running kernel has no private copy")
                from kvm_dbg.image.patch import apply_patch, read_patch

                apply_patch(image, read_patch(request.patch), request.patch)
            kernel = open_kernel(
                image,
                request.vmlinux,
                candidate=request.candidate,
                force=request.force,
                layout=request.layout,
                search=request.search,
                index_directory=request.index_directory,
                progress=self.progress,
            )
        except KvmDbgError:
            image.close()
            raise
        except MemoryError as error:
            image.close()
            raise FileAccessError(given.paths[0], "opening it needs more memory than there is") from error
        self.close()
        self.request = request
        self._kernel = kernel
        return kernel

    def _cover(self, image: MemoryImage, request: OpenRequest) -> MemoryImage:
        """Return an image that takes writes: a dump's private copy, live memory itself, or none of the two."""
        if request.write:
            return WriteThroughImage(image, confirmed=not self.attended)
        return image if image.live else OverlayImage(image)  # a copy of what moves would hide what it becomes

    def confirm(self, error: ConfirmationError) -> None:
        """Ask for somebody's word on writes into a running kernel; it counts until the image is closed.

        Raises:
            ConfirmationError: `error`, where nobody can be asked here.
            CommandError: the answer was no.
        """
        if self.ask is None:
            raise error
        if not self.ask(error.question):
            raise CommandError("not written: the answer was no")
        self.allow_writes()

    def allow_writes(self) -> None:
        """Take it that somebody has agreed to writes into a running kernel."""
        if self.is_open and isinstance(self.image, WriteThroughImage):
            self.image.confirmed = True

    def refresh(self) -> None:
        """Forget what was read from memory.

        Raises:
            CommandError: the kernel is another one than was opened.
            FileAccessError: the machine is gone.
        """
        self.image.refresh()
        self.kernel.refresh()
        self._grades = {}

    def close(self) -> None:
        """Close what is open; nothing happens if nothing is."""
        if self._kernel is not None:
            self._kernel.image.close()
        self._kernel = None
        self._grades = {}
        self.request = None
        self.find_selected = lambda: None
