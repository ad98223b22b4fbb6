"""Names of kernel threads as /proc/PID/comm and ps(1) show them: longer than `comm`, and with what a worker does.

Sources: fs/proc/array.c proc_task_name(), kernel/kthread.c get_kthread_comm() (`full_name` since v5.17, commit
d6986ce24fc0), kernel/workqueue.c wq_worker_comm() (since v4.18, commit 6b59808bfe48: the description of the latest work
after "+" if it is being done, else after "-"). struct kthread hangs on task_struct.worker_private since v5.17 (commit
e32cf5dfbe22), before that on set_child_tid. Rescuers are called "kworker/R-..." in kernels that show a worker by its
full name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, remembered
from kvm_dbg.kernel.linux.task import PF_KTHREAD, PF_WQ_WORKER

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NAME_LIMIT = 256  # bytes; names of work queues and threads are shorter

KTHREAD: dict[str, Names] = {"data": "data", "full_name": ("full_name", None)}
WORKER: dict[str, Names] = {"pool": "pool", "current_work": "current_work", "desc": ("desc", None)}
RESCUER = "kworker/R-"


def read_name(kernel: Kernel, task: Record) -> str:
    """Return the name of a task; of a kernel thread with all that the kernel adds to `comm`, if it can be read.

    Raises:
        ReadError: `comm` itself cannot be read.
    """
    comm = task.text("comm")
    flags = task["flags"]
    if not flags & (PF_KTHREAD | PF_WQ_WORKER):
        return comm
    try:
        return _read_full_name(kernel, task, comm)
    except (ReadError, TypeNotFound, MemberNotFound):
        return comm


def _read_full_name(kernel: Kernel, task: Record, comm: str) -> str:
    address = task["worker_private"] if "worker_private" in task else task["set_child_tid"]
    if not address:
        return comm
    kthread = remembered(kernel, _make_kthread).read(kernel, address)
    is_worker = task["flags"] & PF_WQ_WORKER
    full_name = kthread.get("full_name")
    name = comm
    if full_name and (not is_worker or comm.startswith(RESCUER)):
        name = decode_text(read_string(kernel, full_name, NAME_LIMIT))
    if is_worker and kthread["data"]:
        worker = remembered(kernel, _make_worker).read(kernel, kthread["data"])
        description = worker.text("desc") if "desc" in worker else ""
        if worker["pool"] and description:
            name += ("+" if worker["current_work"] else "-") + description
    return name


def _make_kthread(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct kthread", KTHREAD, kernel.arch.byteorder)


def _make_worker(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct worker", WORKER, kernel.arch.byteorder)
