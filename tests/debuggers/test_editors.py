"""A dump in an editor: `docs/editors.md` is taken at its word, and its configurations sent as an editor sends them.

The page's `launch.json` and script are read out of it. The home directory has an installation where the page has it,
the workspace is the demo's directory.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.debuggers.case import plain
from tests.debuggers.child import Dialogue
from tests.debuggers.conftest import Demo, children_of_tests
from tests.debuggers.dap import DapClient
from tests.debuggers.debugger import ROOT, Debugger, Found, clean_environment, find, of_kind
from tests.debuggers.demo_truth import TRUTH, call_trace, kernel_symbols
from tests.debuggers.plugin import CACHE

PAGE = (ROOT / "docs" / "editors.md").read_text()
ADAPTERS = (*of_kind("gdb", dap=True), *of_kind("lldb", dap=True))
CLIENT = {"adapterID": "test", "pathFormat": "path", "linesStartAt1": True, "columnsStartAt1": True}
GUEST = ROOT / "sample" / "guest"


class Editor(NamedTuple):
    """An editor that has started a debug adapter: the client, and the configuration that it is about to send."""

    dap: DapClient
    configuration: dict[str, Any]
    capabilities: dict[str, Any]


def block(language: str) -> str:
    """Return the page's only block of code in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def configuration(kind: str, variables: dict[str, str]) -> dict[str, Any]:
    """Return the page's configuration for a debugger, with VS Code's variables replaced."""
    text = block("json")
    for name, value in variables.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text
    (found,) = [one for one in json.loads(text)["configurations"] if one["type"] == f"{kind}-dap"]
    return dict(found)


def install(home: Path) -> None:
    """Make `~/kvm-dbg` look as pip leaves it."""
    (home / "kvm-dbg" / "bin").mkdir(parents=True)
    (home / "kvm-dbg" / "share").mkdir()
    (home / "kvm-dbg" / "share" / "kvm-dbg").symlink_to(ROOT)
    program = home / "kvm-dbg" / "bin" / "kvm-dbg"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m kvm_dbg.cli "$@"\n')
    program.chmod(0o755)


def command_of(found: Found, workspace: Path, programs: Path) -> list[str]:
    """Return the command line by which an editor's extension starts the debug adapter."""
    if found.debugger.kind == "lldb":
        program = Path(found.program).resolve().with_name("lldb-dap")
        if not program.exists():
            pytest.skip(f"{program} is not there")
        return [str(program)]
    programs.mkdir()
    gdb = programs / "gdb"
    gdb.write_text(f'#!/bin/sh\nexec {found.program} -nx "$@"\n')
    gdb.chmod(0o755)
    script = workspace / ".vscode" / "kernel-gdb"
    script.parent.mkdir(exist_ok=True)
    script.write_text(block("sh"))
    script.chmod(0o755)
    return [str(script), "-i", "dap"]


@pytest.fixture(params=ADAPTERS, ids=lambda debugger: debugger.name)
def editor(request: pytest.FixtureRequest, tmp_path: Path, demo: Demo) -> Iterator[Editor]:
    """Return an editor that has initialized a debug adapter; the test runs once for each."""
    debugger: Debugger = request.param
    found = find(debugger)
    if not isinstance(found, Found):
        pytest.skip(found.reason)
    home, runtime, workspace = tmp_path / "home", tmp_path / "run", demo.vmcore.parent
    home.mkdir()
    runtime.mkdir()
    install(home)
    environment = clean_environment(home, request.config.stash[CACHE])
    environment |= {"XDG_RUNTIME_DIR": str(runtime), "PATH": f"{tmp_path / 'bin'}:{environment['PATH']}"}
    variables = {"env:HOME": str(home), "env:XDG_RUNTIME_DIR": str(runtime), "workspaceFolder": str(workspace)}
    command = command_of(found, workspace, tmp_path / "bin")
    with Dialogue(command, env=environment | {"KVM_DBG_PYTHON": sys.executable}) as dialogue:
        dap = DapClient(dialogue)
        capabilities = dap.request("initialize", CLIENT)
        yield Editor(dap, configuration(debugger.kind, variables), capabilities)
    assert list(runtime.iterdir()) == []


def attach(editor: Editor) -> int:
    """Send the configuration as an editor does; return the thread that the debugger has stopped in."""
    dap = editor.dap
    answer = dap.send(editor.configuration["request"], editor.configuration)
    dap.wait_event("initialized")
    dap.request("configurationDone")
    dap.response(answer)
    return int(dap.wait_event("stopped")["threadId"])


def stack(editor: Editor, thread: int) -> list[dict[str, Any]]:
    found = editor.dap.request("stackTrace", {"threadId": thread, "startFrame": 0, "levels": 40})
    return list(found["stackFrames"])


def in_console(editor: Editor, text: str, frame: int) -> str:
    """Return what the debug console shows for a line."""
    return str(editor.dap.request("evaluate", {"expression": text, "context": "repl", "frameId": frame})["result"])


def test_threads_are_the_tasks_and_the_panicking_one_is_first(editor: Editor) -> None:
    stopped = attach(editor)
    threads = editor.dap.request("threads")["threads"]
    (comm,) = re.findall(r"CPU: \d+ PID: 42 Comm: (\S+)", (TRUTH / "console").read_text())
    assert threads[0] == {"id": stopped, "name": f"{comm}/42"}
    running = json.loads((TRUTH / "processes.json").read_text())
    names = {f"{process['status']['Name']}/{pid}" for pid, process in running.items()}
    assert {name for name in names if not name.startswith("kworker")} <= {thread["name"] for thread in threads}


def test_the_stack_has_the_lines_of_the_source(editor: Editor) -> None:
    frames = stack(editor, attach(editor))
    trace = [plain(name) for name in call_trace()]
    names = [plain(frame["name"]) for frame in frames]
    assert [name for name in names if name in trace] == trace  # inlined functions stand between them
    first = frames[0]
    assert first["source"]["path"].endswith("/guest/shelf.c")
    text = (GUEST / "shelf.c").read_text().splitlines()[first["line"] - 1]
    assert "reader->books--" in text  # where the demo's bug is
    assert {Path(frame["source"]["path"]).name for frame in frames if "source" in frame} >= {
        "shelf.c",
        "shelf_proc.c",
        "read_write.c",
    }


def test_scopes_have_the_variables(editor: Editor) -> None:
    frame = stack(editor, attach(editor))[0]["id"]
    scopes = editor.dap.request("scopes", {"frameId": frame})["scopes"]
    values: dict[str, str] = {}
    for scope in scopes:
        if scope["name"] in ("Arguments", "Locals"):
            found = editor.dap.request("variables", {"variablesReference": scope["variablesReference"]})["variables"]
            values |= {variable["name"]: variable["value"] for variable in found}
    assert int(values["reader"].split()[0], 16) == 0  # the null pointer of the demo's bug
    assert int(values["book"].split()[0], 16) >> 47 == (1 << 17) - 1


def test_expressions_and_commands_are_answered(editor: Editor) -> None:
    frame = stack(editor, attach(editor))[0]["id"]
    request = {"expression": "init_task.comm", "context": "watch", "frameId": frame}
    assert '"swapper/0' in editor.dap.request("evaluate", request)["result"]
    assert " ".join((TRUTH / "loadavg").read_text().split()[:3]) in in_console(editor, "kvm loadavg", frame)
    processes = in_console(editor, "kvm procs --csv", frame)
    assert re.search(r"^42,.*\blibrarian\b", processes, re.MULTILINE)
    assert "take_back+0xa [shelf]" in in_console(editor, "kvm bt", frame)


def test_the_console_is_about_the_chosen_thread(editor: Editor) -> None:
    chosen = stack(editor, attach(editor))[0]["id"]
    threads = editor.dap.request("threads")["threads"]
    frame = stack(editor, next(thread["id"] for thread in threads if thread["name"] == "init/1"))[0]["id"]
    if editor.configuration["type"] == "lldb-dap":  # whose console has a selection of its own, as the page says
        assert "name = 'init/1'" in in_console(editor, "kvm thread 1", chosen)
    answer = json.loads(
        re.findall(r"^\[.*^\]$", in_console(editor, "kvm bt --json", frame), re.MULTILINE | re.DOTALL)[0]
    )
    assert {row["pid"] for row in answer} == {1}


def test_memory_can_be_read(editor: Editor) -> None:
    attach(editor)
    banner = (TRUTH / "version").read_bytes()
    where = kernel_symbols()["linux_banner"]
    if not editor.capabilities.get("supportsReadMemoryRequest"):
        assert "lldb-dap 19 cannot read memory" in PAGE
        assert editor.dap.dialogue.command[0].endswith("/lldb-dap")
        return
    answer = editor.dap.request("readMemory", {"memoryReference": hex(where), "offset": 0, "count": len(banner)})
    assert base64.b64decode(answer["data"]) == banner


def test_at_the_end_nothing_is_left(editor: Editor, demo: Demo, tmp_path: Path) -> None:
    def servers() -> list[str]:
        return children_of_tests(demo.vmcore.parent) + children_of_tests(tmp_path)  # by image, by socket

    attach(editor)
    assert len(servers()) == 1
    editor.dap.request("disconnect", {"terminateDebuggee": False})
    assert editor.dap.dialogue.wait() == 0
    deadline = time.monotonic() + 30
    while servers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert servers() == []
