"""What the demo's guest said of itself: its console and its /proc, as far as debuggers show it."""

from __future__ import annotations

import json
import re

from tests.debuggers.debugger import ROOT

TRUTH = ROOT / "sample" / "truth"
PROCESSES = json.loads((TRUTH / "processes.json").read_text())


def kernel_symbols() -> dict[str, int]:
    """Return the run-time addresses that the guest's /proc/kallsyms had of a few names."""
    lines = (TRUTH / "kallsyms-of-modules").read_text().splitlines()
    return {words[2]: int(words[0], 16) for words in map(str.split, lines)}


def call_trace() -> list[str]:
    """Return the functions of the kernel's own call trace, the innermost first, without its guesses."""
    console = (TRUTH / "console").read_text()
    trace = console[console.index("RIP: 0010:") : console.index("</TASK>")]
    return [
        match[1]
        for line in trace.splitlines()
        if (match := re.search(r"(?:RIP: 0010:|\]  )([a-zA-Z_]\w*)\+0x", line)) and "? " not in line
    ]


def user_registers() -> dict[str, int]:
    """Return the registers that the panicking task had in user space, as the kernel printed them."""
    console = (TRUTH / "console").read_text()
    text = console[console.index("RIP: 0033:") : console.index("</TASK>")]
    found = {
        re.sub("r0", "r", name.lower()): int(value, 16)
        for name, value in re.findall(r"\b(R[A-Z0-9]{2}): ([0-9a-f]{16})\b", text)
    }
    found["rip"] = int(re.findall(r"RIP: 0033:0x([0-9a-f]+)", text)[0], 16)
    found["rsp"] = int(re.findall(r"RSP: 002b:([0-9a-f]+)", text)[0], 16)
    return found
