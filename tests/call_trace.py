"""Stacks as the kernel prints them: in /proc/PID/stack (fs/proc/base.c) and in the log (kernel/dumpstack.c)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

PROC_LINE = re.compile(r"\[<0>\] (\S+?)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?")
LOG_PREFIX = re.compile(r"^\[[ .\d]+\](?:\[ *\w+\])?")
LOG_LINE = re.compile(r"(\S+?)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?")
LOG_INTERRUPTED = re.compile(r"RIP: (\w{4}):(.*)")
LOG_REGISTER = re.compile(r"\b(R|EFLAGS)0?(\w*): (?:\w{4}:)?([0-9a-f]{8,16})\b")
HEADING = re.compile(r"<(/?)(\S+)>")

Place = tuple[str | None, int, str | None]
"""Function, offset in it, and its module; a stack's are in order, the innermost first."""


class TraceFrame(NamedTuple):
    """A line of a call trace: the stack under whose heading it stands, and the place."""

    stack: str
    place: Place


class Trace(NamedTuple):
    """A call trace in the log: its certain frames, and what it says of the registers that an exception saved.

    interrupted: index of a frame in `frames` to its registers; the frame of user space has the index after the last.
    """

    frames: list[TraceFrame]
    interrupted: dict[int, dict[str, int]]


def place_of(match: re.Match[str]) -> Place:
    """Return what a line says."""
    return match[1], int(match[2], 16), match[3]


def proc_stack(text: bytes) -> list[Place]:
    """Return the frames in a file /proc/PID/stack."""
    matches = [PROC_LINE.fullmatch(line) for line in text.decode().splitlines()]
    return [place_of(match) for match in matches if match]


def trace_of(lines: Iterable[str]) -> Trace:
    """Return the last call trace in a log. Kernels before 5.16 have no heading for the task's own stack."""
    trace = Trace([], {})
    stack = ""
    registers: dict[str, int] = {}
    for line in lines:
        text = LOG_PREFIX.sub("", line).strip()
        if text == "Call Trace:":
            trace, stack = Trace([], {}), "TASK"
        elif not stack:
            continue
        elif heading := HEADING.fullmatch(text):
            stack = "TASK" if heading[1] else heading[2]
        elif match := LOG_LINE.fullmatch(text):
            trace.frames.append(TraceFrame(stack, place_of(match)))
        elif interrupted := LOG_INTERRUPTED.fullmatch(text):
            registers = trace.interrupted[len(trace.frames)] = {"cs": int(interrupted[1], 16)}
            if match := LOG_LINE.fullmatch(interrupted[2]):
                trace.frames.append(TraceFrame(stack, place_of(match)))
            else:
                registers["rip"] = int(interrupted[2], 16)
        elif trace.interrupted and not text.startswith("Code:"):
            registers |= {(r + n).lower(): int(value, 16) for r, n, value in LOG_REGISTER.findall(text)}
            if text.startswith("R13:") and registers["cs"] & 3:
                return trace
    return trace
