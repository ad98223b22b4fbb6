"""The kvm commands as both adapters register them: their names, and their help in the debugger's own `help`.

They exist before an image is open, when there is no server to ask for them; a test holds them against the package's own
list. What a server knows of them besides, descriptions and examples, joins the help when one runs.
"""

from __future__ import annotations

from typing import Any

PREFIX_HELP = "Work on a kernel memory image: a crash dump, a RAM file, live memory. Start with `kvm open`."
ATTACH_HELP = """Work on the machine that the debugger is attached to.
Usage: kvm attach [VMLINUX] [OPTION]...

For a remote connection to QEMU's stub for gdb, to kgdb, or to another stub of
a whole machine, stopped.  All kvm commands then read its memory through that
connection; stepping, breakpoints and registers stay the debugger's.  Symbols
of VMLINUX are placed where the kernel is, unless they are there already.
Without VMLINUX the usual places are searched, and without any the kernel's own
tables serve.  `kvm detach` ends it, and leaves the debugger attached.

  --no-symbols     leave the debugger's symbols alone
  --write          let `kvm write` change the machine's memory
  --vmlinux FILE   the kernel file
  --search DIR     look for vmlinux in DIR first
  --force          use a kernel file that does not match
  --layout FILE    a layout file with types that the kernel file lacks"""
THREAD_USAGE = "usage: kvm thread PID"
COMMANDS = (
    ("open", "Open a kernel memory image, with its kernel file if there is one"),
    ("close", "Close the image; what was written is forgotten"),
    ("attach", "Work on the machine that gdb or lldb is attached to, by its own connection"),
    ("detach", "Leave the machine to the debugger, as it was before `attach`"),
    ("status", "Show what is open, and where symbols and types come from"),
    ("geterr", "Print the text of the last error, as kvm_geterr does"),
    ("identify", "Say what an image file is: format, kernel, page tables, coverage, quirks"),
    ("sys", "Show the system, its state, and what it panicked of"),
    ("procs", "List the processes, as ps would have shown them"),
    ("lwps", "List the threads of some processes, or of all"),
    ("bt", "Print kernel stacks, of the selected thread, of the task that panicked, or of any others"),
    ("thread", "Select the thread of a process or thread id, in gdb or lldb"),
    ("args", "Show the argument vectors of processes"),
    ("env", "Show the environments of processes"),
    ("files", "List the open files of some processes, or of all"),
    ("vm", "List the mappings of a process, as /proc/PID/maps does"),
    ("user", "Open a process in the debugger, with its threads, executable and libraries"),
    ("gcore", "Write an ELF core file of a process, for any debugger"),
    ("vmlinux", "Write a kernel file for debuggers, made from the image itself"),
    ("layout", "Write a layout file from a kernel file with debug information"),
    ("loadavg", "Print the load averages of 1, 5 and 15 minutes"),
    ("vmstat", "Print the counters of memory and events, as `vmstat -s` or /proc/vmstat does"),
    ("top", "Show who uses the processors, again and again, until Ctrl-C"),
    ("log", "Print the kernel's log, as dmesg would have"),
    ("mods", "List the loaded modules"),
    ("nlist", "Look up symbols by name"),
    ("read", "Read memory by virtual or physical address"),
    ("write", "Write memory: in a private copy of a dump, or in a kernel that runs"),
    ("vtop", "Translate a virtual address, showing every page-table entry"),
    ("selftest", "Check this image against itself, and grade what each command shows of it"),
    ("refresh", "Forget what was read so far: memory, threads, registers"),
    ("halt", "Halt the virtual machine, so that its memory and registers stay as they are"),
    ("resume", "Let a virtual machine that was halted run on"),
    ("help", "List the commands, or show the help of one"),
)
"""Names and summaries, in the order of the package's list."""


def list_commands() -> str:
    """Return what `kvm` and `kvm help` print while nothing is open."""
    width = max(len(name) for name, _ in COMMANDS)
    rows = [("COMMAND", "SUMMARY"), *COMMANDS]
    lines = [f"{name:{width}}  {summary}" for name, summary in rows]
    return "\n".join([*lines, "note: nothing is open: start with `kvm open [VMLINUX] IMAGE...`\n"])


def help_of(name: str, summary: str, facts: dict[str, Any] | None = None) -> str:
    """Return a command's help text.

    Args:
        name: of the command.
        summary: as in COMMANDS.
        facts: what the server says of the command, None while there is none.
    """
    parts = [summary + "."]
    if facts is not None and facts["description"]:
        parts.append(facts["description"])
    parts.append(f"Options: `kvm help {name}`" + ("." if facts is not None else ", once an image is open."))
    if facts is not None and facts["examples"]:
        parts.append("Examples:\n" + "\n".join("  kvm " + example for example in facts["examples"]))
    return "\n".join(parts)


def thread_request(words: list[str]) -> dict[str, Any] | None:
    """Return the request that the arguments of `kvm thread` are for the server; None if they make no sense."""
    return {"select": int(words[0])} if len(words) == 1 and words[0].isdecimal() else None
