"""Write tasks of a small Linux: processes with threads, credentials, memory, a terminal, and the allocator of PIDs."""

from __future__ import annotations

from tests.writers.linux import World

CPUS = 2
PER_CPU = 0x1000  # bytes between the per-CPU areas


class Tasks(World):
    """A kernel with tasks. `modern` has the layouts of v6.12, else those of v4.18."""

    def __init__(self, *, modern: bool = True) -> None:
        super().__init__()
        self.modern = modern
        self._declare()
        self.init_task = self.place("struct task_struct", symbol="init_task", comm=b"swapper/0")
        self.link = self.types.offset_of("struct task_struct", "tasks")
        self.node = self.types.offset_of("struct task_struct", "thread_node")
        self.leaders: list[int] = []
        self.threads: dict[int, list[int]] = {}
        self.pids: dict[int, int] = {0: self.new_pid(0)}
        self.namespace = self.place("struct pid_namespace", symbol="init_pid_ns")
        self.relink()
        self._place_cpus()

    def _declare(self) -> None:
        modern = self.modern
        self.struct("struct list_head", next="ptr", prev="ptr")
        self.struct("atomic_t", counter="s32")
        self.struct("kuid_t", val="u32")
        self.struct("struct cpumask", bits=("u64", 2))
        self.struct("struct upid", nr="s32", ns="ptr")
        self.struct("struct pid", level="u32", tasks=("ptr", 4), numbers=("struct upid", 1))
        self.struct("struct thread_info", flags="u64", cpu="u32")
        self.struct("struct prev_cputime", utime="u64", stime="u64")
        self.struct("struct sched_entity", sum_exec_runtime="u64")
        self.struct("struct thread_struct", sp="u64")
        if not modern:
            self.struct("struct hlist_node", next="ptr", pprev="ptr")
            self.struct("struct pid_link", node="struct hlist_node", pid="ptr")
        self.struct(
            "struct task_struct",
            thread_info="struct thread_info",
            **{"__state" if modern else "state": "u32" if modern else "s64"},
            stack="ptr",
            flags="u32",
            on_cpu="s32",
            **({} if modern else {"cpu": "u32"}),
            prio="s32",
            static_prio="s32",
            se="struct sched_entity",
            tasks="struct list_head",
            mm="ptr",
            exit_state="s32",
            pid="s32",
            tgid="s32",
            real_parent="ptr",
            group_leader="ptr",
            **({"thread_pid": "ptr", "pid_links": ("u64", 8)} if modern else {"pids": ("struct pid_link", 3)}),
            thread_node="struct list_head",
            set_child_tid="ptr",
            worker_private="ptr",
            utime="u64",
            stime="u64",
            prev_cputime="struct prev_cputime",
            **{"start_boottime" if modern else "real_start_time": "u64"},
            real_cred="ptr",
            comm=("u8", 16),
            files="ptr",
            signal="ptr",
            thread="struct thread_struct",
        )
        self.struct(
            "struct signal_struct",
            nr_threads="s32",
            thread_head="struct list_head",
            **({"pids": ("ptr", 4)} if modern else {}),
            tty="ptr",
            utime="u64",
            stime="u64",
            prev_cputime="struct prev_cputime",
            sum_sched_runtime="u64",
        )
        ids = dict.fromkeys(("uid", "gid", "suid", "sgid", "euid", "egid"), "kuid_t")
        self.struct("struct cred", **ids, group_info="ptr")
        self.struct("struct group_info", usage="u32", ngroups="s32", gid=("u32", 4))
        if modern:
            self.struct("struct percpu_counter", lock="u32", count="s64", counters="ptr")
            rss: tuple[str, int] | str = ("struct percpu_counter", 4)
        else:
            self.struct("atomic_long_t", counter="s64")
            self.struct("struct mm_rss_stat", count=("atomic_long_t", 4))
            rss = "struct mm_rss_stat"
        words = dict.fromkeys(("pgd", "total_vm", "locked_vm", "arg_start", "arg_end", "env_start", "env_end"), "u64")
        self.struct("struct mm_struct", **words, rss_stat=rss)
        self.struct("struct tty_ctrl", pgrp="ptr")
        self.struct(
            "struct tty_struct",
            driver="ptr",
            index="s32",
            **({"ctrl": "struct tty_ctrl"} if modern else {"pgrp": "ptr"}),
        )
        self.struct(
            "struct tty_driver",
            name="ptr", name_base="s32", major="s32", minor_start="s32", type="u16", subtype="u16", flags="u64",
        )  # fmt: skip
        self.struct("struct rq", nr_running="u32", curr="ptr", idle="ptr")
        node = {"shift": "u8", "offset": "u8", "parent": "ptr", "slots": ("ptr", 64)}
        if modern:
            self.struct("struct xa_node", **node)  # type: ignore[arg-type]
            self.struct("struct xarray", xa_lock="u32", xa_head="ptr")
            self.struct("struct idr", idr_rt="struct xarray", idr_base="u32", idr_next="u32")
        else:
            self.struct("struct radix_tree_node", **node)  # type: ignore[arg-type]
            self.struct("struct radix_tree_root", xa_lock="u32", rnode="ptr")
            self.struct("struct idr", idr_rt="struct radix_tree_root", idr_next="u32")
        self.struct("struct pid_namespace", idr="struct idr", level="u32")
        self.struct("struct tk_read_base", mult="u32", shift="u32", xtime_nsec="u64")
        self.struct(
            "struct timekeeper", tkr_mono="struct tk_read_base", xtime_sec="u64", offs_real="s64", offs_boot="s64"
        )
        self.struct("seqcount_t", sequence="u32")

    def _place_cpus(self) -> None:
        mask = self.place("struct cpumask", symbol="__cpu_online_mask")
        self.words(mask, (1 << CPUS) - 1)
        offsets = self.allocate(8 * CPUS, symbol="__per_cpu_offset")
        areas = [self.allocate(PER_CPU, page=True) for _ in range(CPUS)]
        self.words(offsets, *(area - areas[0] for area in areas))
        self._symbols["current_task"] = areas[0]
        self._symbols["runqueues"] = areas[0] + 64
        self.area = areas[0] + 256  # room for per-CPU parts of counters
        for cpu in range(CPUS):
            self.run(cpu, self.init_task)
        keeper = self.allocate(8 + self.types.size_of("struct timekeeper"), symbol="tk_core") + 8
        for path, value in {
            "xtime_sec": 1_700_000_100,
            "tkr_mono.shift": 8,
            "tkr_mono.xtime_nsec": 500_000_000 << 8,
            "offs_real": 1_700_000_000 * 10**9,
            "offs_boot": 0,
        }.items():
            self.put(keeper, "struct timekeeper", path, value)
        self.__dict__.pop("symbols", None)

    def run(self, cpu: int, task: int) -> None:
        """Let a CPU run a task."""
        self.words(self._symbols["current_task"] + cpu * PER_CPU, task)

    def new_pid(self, number: int) -> int:
        """Return a new struct pid."""
        address = self.allocate(self.types.size_of("struct pid"))
        offset = self.types.offset_of("struct pid", "numbers")
        self.put(address + offset, "struct upid", "nr", number)
        return address

    def process(self, pid: int, parent: int | None = None, *, comm: bytes = b"proc", **values: int) -> int:
        """Add a process with one thread; `values` are fields of its task_struct. Return the task's address."""
        signal = self.place("struct signal_struct", nr_threads=1)
        task = self._task(pid, pid, signal, comm, parent or self.init_task, values)
        self.put(task, "struct task_struct", "group_leader", task)
        self.leaders.append(task)
        self.threads[task] = [task]
        self.relink()
        return task

    def thread(self, leader: int, tid: int, *, comm: bytes = b"thread", **values: int) -> int:
        """Add a thread to a process."""
        signal = int.from_bytes(self.read(leader + self.types.offset_of("struct task_struct", "signal"), 8), "little")
        pid = int.from_bytes(self.read(leader + self.types.offset_of("struct task_struct", "tgid"), 4), "little")
        task = self._task(tid, pid, signal, comm, self.init_task, values)
        self.put(task, "struct task_struct", "group_leader", leader)
        self.threads[leader].append(task)
        self.put(signal, "struct signal_struct", "nr_threads", len(self.threads[leader]))
        self.relink()
        return task

    def _task(self, tid: int, pid: int, signal: int, comm: bytes, parent: int, values: dict[str, int]) -> int:
        task = self.place("struct task_struct", comm=comm)
        fields = {"pid": tid, "tgid": pid, "signal": signal, "real_parent": parent, "prio": 120, "static_prio": 120}
        for path, value in {**fields, **values}.items():
            self.put(task, "struct task_struct", path, value)
        self.pids[tid] = number = self.new_pid(tid)
        link = "pid_links" if self.modern else "pids"
        self.words(
            number + self.types.offset_of("struct pid", "tasks"),
            task + self.types.offset_of("struct task_struct", link),
        )
        return task

    def groups(self, task: int, pgid: int, sid: int) -> None:
        """Set a process's group and session."""
        for number in (pgid, sid):
            if number not in self.pids:
                self.pids[number] = self.new_pid(number)
        if self.modern:
            place = self.signal(task) + self.types.offset_of("struct signal_struct", "pids")
            self.words(place + 16, self.pids[pgid], self.pids[sid])
        else:
            place = task + self.types.offset_of("struct task_struct", "pids")
            self.words(place + 24 + 16, self.pids[pgid])
            self.words(place + 48 + 16, self.pids[sid])

    def signal(self, task: int) -> int:
        """Return the address of a task's signal_struct."""
        return int.from_bytes(self.read(task + self.types.offset_of("struct task_struct", "signal"), 8), "little")

    def relink(self) -> None:
        """Link all lists afresh, and fill the allocator of PIDs."""
        self.ring(self.init_task + self.link, [task + self.link for task in self.leaders])
        head = self.types.offset_of("struct signal_struct", "thread_head")
        for leader, tasks in self.threads.items():
            self.ring(self.signal(leader) + head, [task + self.node for task in tasks])

    def number(self) -> None:
        """Fill the allocator of PIDs with all tasks: a tree of two levels."""
        name = "struct xa_node" if self.modern else "struct radix_tree_node"
        tag = 2 if self.modern else 1
        slots = self.types.offset_of(name, "slots")
        top = self.place(name, shift=6)
        children: dict[int, int] = {}
        for tid, pid in self.pids.items():
            child = children.setdefault(tid >> 6, 0) or self.place(name, shift=0)
            children[tid >> 6] = child
            self.words(child + slots + 8 * (tid & 63), pid)
            self.words(top + slots + 8 * (tid >> 6), child | tag)
        head = "idr.idr_rt.xa_head" if self.modern else "idr.idr_rt.rnode"
        self.put(self.namespace, "struct pid_namespace", head, top | tag)
        self.put(self.namespace, "struct pid_namespace", "idr.idr_next", max(self.pids) + 1)
        self.tree = top
