"""The records that kvm(3) returns, with the manual's field names; None where the system in the image has no such thing.

Source: NetBSD sys/sys/sysctl.h (struct kinfo_proc, kinfo_proc2, kinfo_lwp, kinfo_file), include/nlist.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvm_dbg.kernel.base import Lwp, OpenFile, Process
from kvm_dbg.kvm.constant import EPROC_CTTY, EPROC_SLEADER, KERN_PROC_TTY_NODEV, LSONPROC, LSRUN, P_SYSTEM, STATES


@dataclass(slots=True)
class Nlist:
    """struct nlist: `kvm_nlist` looks `n_name` up and fills in the rest (all zero if it is not found)."""

    n_name: str | None
    n_value: int = 0
    n_type: int = 0
    n_other: int = 0
    n_desc: int = 0


@dataclass(frozen=True, slots=True)
class KinfoProc2:
    """struct kinfo_proc2. Sizes p_vm_* are in pages, times in seconds and microseconds, p_paddr is an address."""

    p_paddr: int
    p_pid: int
    p_ppid: int | None
    p_sid: int | None
    p__pgid: int | None
    p_tpgid: int | None
    p_uid: int | None
    p_ruid: int | None
    p_svuid: int | None
    p_gid: int | None
    p_rgid: int | None
    p_svgid: int | None
    p_groups: tuple[int, ...]
    p_ngroups: int
    p_tdev: int
    p_eflag: int
    p_flag: int
    p_stat: int
    p_realstat: int
    p_priority: int | None
    p_nice: int | None
    p_comm: str
    p_cpuid: int | None
    p_nlwps: int
    p_vm_rssize: int | None
    p_vm_vsize: int | None
    p_rtime_sec: int | None
    p_rtime_usec: int | None
    p_uutime_sec: int | None
    p_uutime_usec: int | None
    p_ustime_sec: int | None
    p_ustime_usec: int | None
    p_ustart_sec: int | None
    p_ustart_usec: int | None
    p_uvalid: int


@dataclass(frozen=True, slots=True)
class KpProc:
    """The part `kp_proc` of struct kinfo_proc: fields of struct proc."""

    p_pid: int
    p_flag: int
    p_stat: int
    p_nice: int | None
    p_comm: str
    p_nlwps: int


@dataclass(frozen=True, slots=True)
class Pcred:
    """The part `e_pcred` of struct eproc: real and saved ids."""

    p_ruid: int | None
    p_svuid: int | None
    p_rgid: int | None
    p_svgid: int | None


@dataclass(frozen=True, slots=True)
class Ucred:
    """The part `e_ucred` of struct eproc: effective ids."""

    cr_uid: int | None
    cr_gid: int | None
    cr_ngroups: int
    cr_groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KpEproc:
    """The part `kp_eproc` of struct kinfo_proc: what is not in struct proc itself."""

    e_paddr: int
    e_ppid: int | None
    e_pgid: int | None
    e_sid: int | None
    e_tdev: int
    e_tpgid: int | None
    e_flag: int
    e_pcred: Pcred
    e_ucred: Ucred


@dataclass(frozen=True, slots=True)
class KinfoProc:
    """struct kinfo_proc."""

    kp_proc: KpProc
    kp_eproc: KpEproc


@dataclass(frozen=True, slots=True)
class KinfoLwp:
    """struct kinfo_lwp."""

    l_laddr: int
    l_lid: int
    l_pid: int
    l_stat: int
    l_priority: int | None
    l_cpuid: int | None
    l_rtime_sec: int | None
    l_rtime_usec: int | None
    l_wmesg: str | None
    l_name: str


@dataclass(frozen=True, slots=True)
class KinfoFile:
    """struct kinfo_file, and the path, which the C structure has no room for."""

    ki_fileaddr: int
    ki_pid: int
    ki_fd: int
    ki_flag: int | None
    ki_ftype: str
    ki_foffset: int | None
    ki_fileid: int | None
    ki_path: str | None


def split_seconds(seconds: float | None) -> tuple[int | None, int | None]:
    """Return (whole seconds, microseconds)."""
    if seconds is None:
        return None, None
    total = round(seconds * 1_000_000)
    return total // 1_000_000, total % 1_000_000


def sum_times(user: float | None, system: float | None) -> float | None:
    """Return the sum of the times that are known, None if neither is."""
    times = [time for time in (user, system) if time is not None]
    return sum(times) if times else None


def state_code(letter: str, *, on_cpu: bool = False) -> int:
    """Return l_stat for a state letter."""
    code = STATES.get(letter, 0)
    return LSONPROC if on_cpu and code == LSRUN else code


def proc2_of(process: Process, page_size: int) -> KinfoProc2:
    """Return a process as struct kinfo_proc2."""
    run_time = split_seconds(sum_times(process.user_time, process.system_time))
    user, system, start = map(split_seconds, (process.user_time, process.system_time, process.start_time))
    return KinfoProc2(
        p_paddr=process.address,
        p_pid=process.pid,
        p_ppid=process.ppid,
        p_sid=process.sid,
        p__pgid=process.pgid,
        p_tpgid=process.tty_pgid,
        p_uid=process.uid,
        p_ruid=process.ruid,
        p_svuid=process.svuid,
        p_gid=process.gid,
        p_rgid=process.rgid,
        p_svgid=process.svgid,
        p_groups=process.groups,
        p_ngroups=len(process.groups),
        p_tdev=terminal_of(process),
        p_eflag=flags_of(process),
        p_flag=P_SYSTEM if process.kernel_thread else 0,
        p_stat=state_code(process.state),
        p_realstat=state_code(process.state),
        p_priority=process.priority,
        p_nice=process.nice,
        p_comm=process.command,
        p_cpuid=process.cpu,
        p_nlwps=process.threads,
        p_vm_rssize=None if process.rss is None else process.rss // page_size,
        p_vm_vsize=None if process.vsize is None else process.vsize // page_size,
        p_rtime_sec=run_time[0],
        p_rtime_usec=run_time[1],
        p_uutime_sec=user[0],
        p_uutime_usec=user[1],
        p_ustime_sec=system[0],
        p_ustime_usec=system[1],
        p_ustart_sec=start[0],
        p_ustart_usec=start[1],
        p_uvalid=int(process.state not in "ZX" and user[0] is not None),
    )


def proc_of(process: Process) -> KinfoProc:
    """Return a process as struct kinfo_proc."""
    return KinfoProc(
        kp_proc=KpProc(
            p_pid=process.pid,
            p_flag=P_SYSTEM if process.kernel_thread else 0,
            p_stat=state_code(process.state),
            p_nice=process.nice,
            p_comm=process.command,
            p_nlwps=process.threads,
        ),
        kp_eproc=KpEproc(
            e_paddr=process.address,
            e_ppid=process.ppid,
            e_pgid=process.pgid,
            e_sid=process.sid,
            e_tdev=terminal_of(process),
            e_tpgid=process.tty_pgid,
            e_flag=flags_of(process),
            e_pcred=Pcred(process.ruid, process.svuid, process.rgid, process.svgid),
            e_ucred=Ucred(process.uid, process.gid, len(process.groups), process.groups),
        ),
    )


def terminal_of(process: Process) -> int:
    """Return the device number of the controlling terminal, NODEV without one."""
    return KERN_PROC_TTY_NODEV if process.tty_device is None else process.tty_device


def flags_of(process: Process) -> int:
    """Return p_eflag."""
    leader = process.sid is not None and process.sid == process.pid
    return (EPROC_CTTY if process.tty_device is not None else 0) | (EPROC_SLEADER if leader else 0)


def lwp_of(lwp: Lwp) -> KinfoLwp:
    """Return a thread as struct kinfo_lwp."""
    seconds, microseconds = split_seconds(sum_times(lwp.user_time, lwp.system_time))
    return KinfoLwp(
        l_laddr=lwp.address,
        l_lid=lwp.lid,
        l_pid=lwp.pid,
        l_stat=state_code(lwp.state, on_cpu=lwp.on_cpu),
        l_priority=lwp.priority,
        l_cpuid=lwp.cpu,
        l_rtime_sec=seconds,
        l_rtime_usec=microseconds,
        l_wmesg=lwp.wait_channel,
        l_name=lwp.name,
    )


def file_of(file: OpenFile) -> KinfoFile:
    """Return an open file as struct kinfo_file."""
    return KinfoFile(
        ki_fileaddr=file.address,
        ki_pid=file.pid,
        ki_fd=file.fd,
        ki_flag=file.flags,
        ki_ftype=file.kind,
        ki_foffset=file.offset,
        ki_fileid=file.inode,
        ki_path=file.path,
    )
