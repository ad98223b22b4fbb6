"""What is wrong in a made FreeBSD's memory, or missing of it, costs cells or lines, and never the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel import system_of
from tests.golden.made_freebsd import Made, make, opened

PIDS = [0, 1, 12, 700, 701, 702, 703, 704, 705]


@pytest.fixture(scope="module", params=[(12, "dwarf"), (15, "ctf")], ids=["12", "15"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"), *request.param)


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("newest"), 15, "dwarf")


def test_a_list_of_processes_that_loops(made: Made) -> None:
    dump = made.damaged(made.pointer("p_stop", "p_make", "proc.p_list"))
    answer = made.run("procs", dump=dump)
    assert answer.status == 1
    assert "the list of processes loops back" in answer.err
    # those behind the loop are in the table of PIDs
    expected = [pid for pid in PIDS if pid != 703] if made.system.release == 12 else PIDS
    assert [row["pid"] for row in answer.rows] == expected
    grades = {row["command"]: row["grade"] for row in made.run("selftest", dump=dump).rows}
    assert grades["procs"] == "suspect"
    assert grades["log"] == "ok"


def test_a_list_of_processes_that_leads_nowhere(made: Made) -> None:
    nowhere = made.system.address("p_sh", "proc.p_list")
    answer = made.run("procs", dump=made.damaged({nowhere: (0xFFFFFFFF90000000).to_bytes(8, "little")}))
    assert answer.status == 1
    assert "is not mapped" in answer.err
    assert {700, 701, 12, 1, 0} <= {row["pid"] for row in answer.rows}


def test_a_table_of_pids_that_cannot_be_right(newest: Made) -> None:
    changes = newest.pointer("p_stop", "p_make", "proc.p_list") | {
        newest.system.address("pidhash"): (1 << 60).to_bytes(8, "little")
    }
    answer = newest.run("procs", dump=newest.damaged(changes))
    assert answer.status == 1
    assert [row["pid"] for row in answer.rows] == [701, 702, 703, 704, 705]


def test_a_list_of_threads_that_loops(made: Made) -> None:
    dump = made.damaged(made.pointer("td_make", "td_make2", "thread.td_plist"))
    answer = made.run("lwps", dump=dump)
    assert answer.status == 1
    assert "the list of threads of process 701 loops back" in answer.err
    assert len(answer.rows) == 11
    (row,) = made.run("procs", "--pid", "701", dump=dump).rows
    assert (row["stat"], row["time"], row["unread"]) == ("RNX+", None, ["user_time", "system_time", "run_time"])
    with opened(made, dump) as kernel:
        threads = system_of(kernel).for_each_thread(kernel)
        assert len([next(threads) for _ in range(11)]) == 11
        with pytest.raises(KvmDbgError, match="loops back"):
            next(threads)


def test_tables_of_descriptors_that_cannot_be_right(made: Made) -> None:
    for count in (-1, 0x7FFFFFFF):
        answer = made.run("files", dump=made.damaged(made.number(count, "t_sh")))
        assert answer.status == 1
        assert f"process 700 has a table of {count} descriptors" in answer.err
        assert [row["role"] for row in answer.rows if row["pid"] == 700] == ["root", "wd"]
        assert {row["pid"] for row in answer.rows} == {700, 701}


def test_a_table_of_descriptors_that_is_too_long(newest: Made) -> None:
    """What lies behind it is no file: such lines have empty cells."""
    answer = newest.run("files", "700", dump=newest.damaged(newest.number(1000, "t_sh")))
    fine = [row for row in answer.rows if row["fd"] is None or row["fd"] < 20]
    assert [row["fd"] for row in fine] == [None, None, 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert fine == newest.run("files", "700").rows


def test_a_file_whose_page_is_missing(made: Made) -> None:
    answer = made.run("files", "700", dump=made.damaged(without=(made.system.address("far_page"),)))
    assert answer.status == 0
    (row,) = (row for row in answer.rows if row["fd"] == 11)
    assert (row["kind"], row["path"], row["unread"]) == ("?", None, ["kind", "path", "flags", "offset", "inode"])
    assert [row["path"] for row in answer.rows if row["fd"] == 3] == ["/usr/home/notes"]


def test_a_name_cache_that_loops(made: Made) -> None:
    """A directory that is in itself: its path is not known."""
    changes = made.pointer("v_home", "n_home", "namecache.nc_dvp")
    rows = {row["fd"]: row for row in made.run("files", "700", dump=made.damaged(changes)).rows}
    assert (rows[3]["path"], rows[4]["path"], rows[0]["path"]) == (None, None, "/dev/pts/0")


def test_names_of_a_file_that_loop(made: Made) -> None:
    changes = made.pointer("n_updir", "n_updir", "namecache.nc_dst")
    rows = {row["fd"]: row for row in made.run("files", "700", dump=made.damaged(changes)).rows}
    assert (rows[3]["path"], rows[4]["path"]) == (None, "/usr/home")


def test_a_tree_of_mappings_with_a_cycle(newest: Made) -> None:
    """The first entry's place before it is the root: everything is shown once, and the loop is named."""
    dump = newest.damaged(newest.pointer("e_shared", "text_page", "vm_map_entry.left"))
    answer = newest.run("vm", "700", dump=dump)
    assert answer.status == 1
    assert "the tree of mappings leads back" in answer.err
    assert [row["path"] for row in answer.rows] == ["/bin/sh", "/bin/sh", None, "[guard]", "[stack]"]


def test_a_ring_of_mappings_that_never_ends(tmp_path: Path) -> None:
    made = make(tmp_path, 12, "ctf")
    answer = made.run("vm", "700", dump=made.damaged(made.pointer("e_data", "e_stack", "vm_map_entry.next")))
    assert answer.status == 1
    assert "more mappings than the 5 that it counts" in answer.err
    assert len(answer.rows) == 5


def test_a_map_that_counts_too_few(made: Made) -> None:
    answer = made.run("vm", "700", dump=made.damaged(made.number(3, "vm_sh", "vmspace.vm_map.nentries")))
    assert answer.status == 1
    assert "3 that it counts" in answer.err or "the 3 it counts" in answer.err
    assert len(answer.rows) == 3


def test_an_entry_whose_page_is_missing(newest: Made) -> None:
    answer = newest.run("vm", "700", dump=newest.damaged(without=(newest.system.address("text_page"),)))
    assert answer.status == 1
    assert "is not memory that the image describes" in answer.err
    assert [row["path"] for row in answer.rows] == ["/bin/sh", None, "[guard]", "[stack]"]


def test_shadows_that_loop(made: Made) -> None:
    dump = made.damaged(made.pointer("o_data", "o_data", "vm_object.backing_object"))
    rows = made.run("vm", "700", dump=dump).rows
    assert [row["unread"] for row in rows][1] == ["permissions", "offset", "inode", "path"]
    assert rows[0]["path"] == "/bin/sh"


@pytest.mark.parametrize(
    ("member", "fields", "kept"),
    [
        ("proc.p_ucred", ["uid", "ruid", "svuid", "gid", "rgid", "svgid", "groups"], "tty"),
        ("proc.p_pgrp", ["pgid", "sid", "tty"], "uid"),
        ("proc.p_vmspace", ["rss", "vsize"], "uid"),
        ("proc.p_stats", ["start_time"], "rss"),
        ("proc.p_threads", ["state", "cpu", "user_time", "system_time", "run_time"], "uid"),
    ],
)
def test_a_pointer_to_memory_that_is_missing(made: Made, member: str, fields: list[str], kept: str) -> None:
    gone = made.system.address("lonely_page")
    change = {made.system.address("p_sh", member): gone.to_bytes(8, "little")}
    (row,) = made.run("procs", "--pid", "700", dump=made.damaged(change, without=(gone,))).rows
    (whole,) = made.run("procs", "--pid", "700").rows
    assert row["unread"] == fields
    assert row[kept] == whole[kept] is not None
    for field in {"uid", "pgid", "rss", "vsize", "time"} & set(fields):
        assert row[field] is None, field


def test_groups_that_cannot_be_counted(made: Made) -> None:
    rows = made.run("procs", dump=made.damaged(made.number(-5, "cred_boxed", "ucred.cr_ngroups"))).rows
    (row,) = (row for row in rows if row["pid"] == 702)
    assert (row["uid"], row["unread"]) == (None, ["uid", "ruid", "svuid", "gid", "rgid", "svgid", "groups"])
    assert [row["uid"] for row in rows if row["pid"] == 701] == [0]


def test_modules_that_cannot_be_listed_to_the_end(made: Made) -> None:
    dump = made.damaged(made.pointer("toy", "plain", "linker_file.link"))
    answer = made.run("mods", dump=dump)
    assert answer.status == 1
    assert "the list of loaded files loops back" in answer.err
    assert [row["name"] for row in answer.rows] == ["toy", "plain"]
    assert {row["command"]: row["grade"] for row in made.run("selftest", dump=dump).rows}["mods"] == "suspect"


@pytest.mark.parametrize(
    ("variable", "member", "value", "command", "why"),
    [
        ("nprocs", "", 8, "procs", "nprocs says 8"),
        ("p_make", "proc.p_numthreads", 3, "lwps", "process 701 has 2 threads and counts 3"),
        ("dumptid", "", 4711, "sys", "is in no list"),
        ("averunnable", "", 0x7FFFFFFF, "loadavg", "load averages 1048576.00"),
        ("td_dd", "thread.td_oncpu", 1, "bt", "CPU 1 runs several threads"),
        ("osrelease", "", 0x39393939, "sys", "osrelease b'9999"),
        ("msgbuf0", "msgbuf.msg_magic", 1, "log", "its magic is 0x1"),
    ],
)
def test_a_self_test_names_what_contradicts_itself(
    newest: Made, variable: str, member: str, value: int, command: str, why: str
) -> None:
    dump = newest.damaged(newest.number(value, variable, member))
    (row,) = (row for row in newest.run("selftest", dump=dump).rows if row["command"] == command)
    assert row["grade"] == "suspect"
    assert why in str(row["why"])


def test_offsets_that_are_not_those_of_the_types(newest: Made) -> None:
    dump = newest.damaged(newest.number(8, "proc_off_p_comm"))
    rows = {row["command"]: row for row in newest.run("selftest", dump=dump).rows}
    assert rows["vm"]["grade"] == "suspect"
    assert "proc_off_p_comm is 8" in str(rows["vm"]["why"])
    assert rows["log"]["grade"] == "ok"


def test_a_kernel_file_without_types(tmp_path: Path) -> None:
    made = make(tmp_path, 14, "none")
    rows = made.run("procs").rows
    assert [row["pid"] for row in rows] == PIDS
    assert [row["command"] for row in rows][3:5] == ["sh", "make"]
    assert {row["uid"] for row in rows} == {None}
    for command in ("files", "args", "env", "mods"):
        answer = made.run(command)
        assert answer.status == 1, command
        assert "offsets that the kernel tells debuggers" in answer.err
        assert "--layout FILE" in answer.err
    assert "mappings are read with more than offsets" in made.run("vm", "700").err
    assert "--layout FILE" in made.run("read", "0x1000", "8", "--pid", "700").err
    grades = {row["command"]: row["grade"] for row in made.run("selftest").rows}
    assert (grades["log"], grades["loadavg"], grades["mods"]) == ("ok", "ok", "partial")
