"""How commands show where a frame is in the source: its line, inlined functions, and the lines around."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from kvm_dbg.commands.base import Cell
from kvm_dbg.commands.module_file import find_module_file
from kvm_dbg.commands.render import printable
from kvm_dbg.commands.session import Session
from kvm_dbg.commands.source_file import SourceFiles
from kvm_dbg.commands.value_text import value_text
from kvm_dbg.errors import CommandError, KvmDbgError
from kvm_dbg.kernel.base import Frame, SourcePlace, SourceReader, Thread

CONTEXT_LINES = 5  # around the line, where the user does not say
MARGIN = "       "
NO_CELLS: list[Cell] = [None, None, [], []]


class SourceView:
    """What is shown of the source.

    Args:
        reader: None to show nothing.
        files: where source files are, None to show no lines of them.
        context: lines of them to show around.
        session: whose kernel's variables are shown, None to show none.

    Attributes:
        notes: what could not be read, each once.
    """

    def __init__(
        self,
        reader: SourceReader | None,
        files: SourceFiles | None = None,
        context: int = 0,
        session: Session | None = None,
    ) -> None:
        self._reader = reader
        self._session = session
        self._files = files
        self._context = context
        self.notes: list[str] = []

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("-l", "--lines", action="store_true", help="source lines and inlined functions")
        parser.add_argument(
            "-s",
            "--source",
            metavar="N",
            type=int,
            nargs="?",
            const=CONTEXT_LINES,
            help=f"N lines of the source around ({CONTEXT_LINES}), where its file is found",
        )
        parser.add_argument("--locals", action="store_true", help="parameters and variables, as far as they are known")
        parser.add_argument(
            "--source-dir",
            metavar="DIR",
            action="append",
            default=[],
            help="the root of the sources; or FROM=TO: replace the beginning FROM of paths by TO",
        )

    @classmethod
    def open(cls, session: Session, args: Any, *, unasked: bool) -> SourceView:
        """Return the view that the arguments ask for; without any of them lines, if `unasked` and there are any.

        Raises:
            CommandError: there is no debug information, and it was asked for.
            KvmDbgError: it is damaged, and it was asked for.
        """
        asked = args.lines or args.locals or args.source is not None
        if not asked and not unasked:
            return cls(None)
        try:
            reader = session.system.open_source_reader(session.kernel, partial(find_module_file, session))
        except KvmDbgError as error:
            if asked:
                raise
            view = cls(None)
            view.notes.append(f"no source lines: {error}")
            return view
        if reader is None and asked:
            raise CommandError("source lines need a vmlinux with debug information (DWARF)")
        shown = session if args.locals else None
        if args.source is None:
            return cls(reader, session=shown)
        if args.source < 1:
            raise CommandError(f"--source {args.source}: at least one line")
        release = str(getattr(session.kernel, "release", None) or "")
        files = SourceFiles(args.source_dir, release, color=session.color)
        return cls(reader, files, args.source, shown)

    def _note(self, error: KvmDbgError) -> None:
        note = f"not all of the source is known: {error}"
        if note not in self.notes:
            self.notes.append(note)

    def _places(self, frame: Frame) -> Sequence[SourcePlace]:
        if self._reader is None:
            return ()
        try:
            return self._reader.places(frame)
        except KvmDbgError as error:
            self._note(error)
            return ()

    def _variables(self, thread: Thread, frames: Sequence[Frame], number: int) -> list[list[str]]:
        """Return a text for each variable of each place of a frame."""
        session = self._session
        if self._reader is None or session is None:
            return []
        symbolize = partial(session.system.symbolize, session.kernel)
        try:
            places = self._reader.variables(thread, frames, number)
        except KvmDbgError as error:
            self._note(error)
            return []
        return [
            [
                f"{one.name} = {f'<{one.why}>' if one.value is None else value_text(one.value, symbolize)}"
                for one in variables
            ]
            for variables in places
        ]

    def cells(self, thread: Thread, frames: Sequence[Frame], number: int) -> list[Cell]:
        """Return FILE, LINE, INLINE and LOCALS of a frame."""
        places = self._places(frames[number])
        if not places:
            return NO_CELLS
        inlined = [f"{inner.function or '?'} {outer.file or '?'}:{outer.line}" for inner, outer in pairwise(places)]
        names = [f"{place.function}: " if place.inlined else "" for place in places]
        variables = self._variables(thread, frames, number)
        named = [f"{name}{text}" for name, texts in zip(names, variables, strict=False) for text in texts]
        return [places[0].file, places[0].line or None, list(inlined), list(named)]

    def lines(self, thread: Thread | None, frames: Sequence[Frame], number: int) -> Iterator[str]:
        """Yield the lines of text below a frame. thread: whose variables are shown, None for nobody's."""
        places = self._places(frames[number])
        variables = self._variables(thread, frames, number) if thread is not None else []
        for at, place in enumerate(places):
            inlined = f" in {place.function or '?'} (inlined)" if place.inlined else ""
            line = f":{place.line}" if place.line else ""
            if place.file is not None:
                yield f"{MARGIN}at {printable(place.file)}{line}{printable(inlined)}"
            if self._files is not None and place.file is not None and place.line:
                yield from (f"{MARGIN}{text}" for text in self._files.context(place, self._context))
            yield from (f"{MARGIN}    {printable(text)}" for text in (variables[at] if at < len(variables) else ()))
        if self._files is not None:
            self.notes += [note for note in self._files.take_notes() if note not in self.notes]
