"""`kvm-dbg serve`: the words of its command line, for people with a client of their own and for the adapters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError, UsageError
from kvm_dbg.rsp.server import LOOPBACK, ServeOptions, serve

if TYPE_CHECKING:
    from kvm_dbg.commands.parser import Parser
    from kvm_dbg.commands.session import OpenRequest, Session

PROGRAM = "kvm-dbg serve"
MAX_PORT = 65535


def make_parser() -> Parser:
    """Return the parser of `kvm-dbg serve`."""
    from kvm_dbg.commands.open import add_open_arguments
    from kvm_dbg.commands.parser import Parser

    parser = Parser(
        PROGRAM,
        description="Serve a kernel memory image to one debugger. The first line printed is JSON and says where.",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help="the kernel file, if any, and the image")
    parser.add_argument(
        "--tcp",
        metavar="PORT",
        type=int,
        help=f"listen on {LOOPBACK} (0: any free port), where any local user can connect",
    )
    parser.add_argument("--socket", metavar="PATH", help="listen on a Unix socket there")
    parser.add_argument("--control", action="store_true", help="speak with an adapter on standard input and output")
    parser.add_argument(
        "--attended", action="store_true", help="somebody has to agree before a running kernel is written to"
    )
    parser.add_argument("--notices", metavar="DESCRIPTOR", type=int, help="where to say what the protocol cannot")
    parser.add_argument("--attached", action="store_true", help="ask that adapter for memory, in place of any image")
    add_open_arguments(parser)
    return parser


def run_program(words: Sequence[str], session: Session) -> int:
    """Serve the image that the words name and return the exit status.

    Raises:
        UsageError: wrong use, where no adapter waits for JSON.
    """

    def open_image() -> None:
        from kvm_dbg.commands.open import request_of

        if problem is not None:
            raise problem
        session.attended = args.attended
        session.open(request_of(args, args.files, session.index_directory, session.search))

    def request_attached() -> OpenRequest:
        from kvm_dbg.commands.open import request_of

        args.live = True
        session.attended = args.attended
        request = request_of(args, args.files, session.index_directory, session.search)
        if request.images:
            raise UsageError(f"{request.images[0]} is no kernel file: `kvm attach` opens no image beside the machine")
        return request

    problem: KvmDbgError | None = None
    control = "--control" in words
    try:
        args = make_parser().parse_args(words)
        if args.tcp is not None and not 0 <= args.tcp <= MAX_PORT:
            raise UsageError(f"{PROGRAM}: --tcp {args.tcp} is no port")
        if args.tcp is not None and args.socket is not None:
            raise UsageError(f"{PROGRAM}: --tcp and --socket exclude each other")
        if args.attached and not control:
            raise UsageError(f"{PROGRAM}: --attached is for adapters, with --control: use `kvm attach` in a debugger")
    except UsageError as error:
        if not control:
            raise
        problem = error
        return serve(session, open_image, ServeOptions(control=True))
    if args.attached:
        from kvm_dbg.rsp.attached import serve_attached

        return serve_attached(session, request_attached)
    if args.tcp is not None and not control:
        sys.stderr.write(
            f"{PROGRAM}: warning: every user of this machine can connect to a port of {LOOPBACK} and read the image\n"
        )
    return serve(
        session, open_image, ServeOptions(args.control, args.tcp is not None, args.tcp or 0, args.socket, args.notices)
    )
