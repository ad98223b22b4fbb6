"""The client of gdb's machine interface: its syntax, and a talk with each gdb."""

from __future__ import annotations

import pytest

from tests.debuggers.driver import Gdb
from tests.debuggers.mi import MiError, Record, parse_record


@pytest.mark.parametrize(
    ("line", "token", "record"),
    [
        (b"12^done", 12, Record("^", "done", {})),
        (b'^error,msg="No symbol \\"x\\".\\n"', None, Record("^", "error", {"msg": 'No symbol "x".\n'})),
        (
            b'7^done,threads=[{id="1",core="0"},{id="2"}],current-thread-id="1"',
            7,
            Record("^", "done", {"threads": [{"id": "1", "core": "0"}, {"id": "2"}], "current-thread-id": "1"}),
        ),
        (
            b'^done,stack=[frame={level="0",args=[]},frame={level="1"}]',
            None,
            Record("^", "done", {"stack": [{"level": "0", "args": []}, {"level": "1"}]}),
        ),
        (b'=thread-created,id="1"', None, Record("=", "thread-created", {"id": "1"})),
        (b'*stopped,text="\\303\\251\\ttab"', None, Record("*", "stopped", {"text": "\u00e9\ttab"})),
        (b"(gdb) ", None, None),
    ],
)
def test_records_are_read(line: bytes, token: int | None, record: Record | None) -> None:
    assert parse_record(line) == (token, record)


@pytest.mark.parametrize("line", [b"^done,=1", b'^done,a="open', b"^done,a={b=", b'^done,a=["x" "y"]'])
def test_broken_records_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="expected at column"):
        parse_record(line)


def test_a_talk_with_gdb(gdb: Gdb) -> None:
    mi = gdb.mi()
    assert mi.command('-data-evaluate-expression "6 * 7"').results == {"value": "42"}
    assert "python" in mi.command("-list-features").results["features"]
    assert mi.console('echo say "hi"\\n').console == 'say "hi"\n'
    with pytest.raises(MiError, match="Undefined command"):
        mi.console("nonsense")
    assert mi.quit() == 0
