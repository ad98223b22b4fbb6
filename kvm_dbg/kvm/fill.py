"""From what an operating system's room says to the records of kvm(3)."""

from __future__ import annotations

from dataclasses import replace

from kvm_dbg.kernel.base import Lwp, Process
from kvm_dbg.kernel.usage import OpenFile
from kvm_dbg.kvm import constant
from kvm_dbg.kvm.record import KinfoFile, KinfoLwp, KinfoProc, KinfoProc2, KpEproc, KpProc, Pcred, Ucred


def fill_proc2(process: Process, page_size: int) -> KinfoProc2:
    """Return a process as struct kinfo_proc2; sizes in pages of `page_size` bytes."""
    run_time, user, system, start = map(
        split_seconds,
        (
            process.time,
            process.user_time,
            process.system_time,
            process.start_time,
        ),
    )
    groups = known_groups(process)
    record = KinfoProc2(
        p_paddr=process.address,
        p_eflag=extra_flags(process),
        p_flag=flags(process),
        p_pid=process.pid,
        p_ppid=process.ppid,
        p_sid=process.sid,
        p__pgid=process.pgid,
        p_tpgid=process.tty_pgid,
        p_uid=process.uid,
        p_ruid=process.ruid,
        p_gid=process.gid,
        p_rgid=process.rgid,
        p_groups=groups,
        p_ngroups=None if groups is None else len(groups),
        p_tdev=terminal(process),
        p_rtime_sec=run_time[0],
        p_rtime_usec=run_time[1],
        p_stat=thread_state(process.state),
        p_priority=process.priority,
        p_usrpri=process.priority,
        p_nice=process.nice,
        p_comm=process.command,
        p_vm_rssize=None if process.rss is None else process.rss // page_size,
        p_uvalid=int(process.state not in "ZX" and user[0] is not None),
        p_ustart_sec=start[0],
        p_ustart_usec=start[1],
        p_uutime_sec=user[0],
        p_uutime_usec=user[1],
        p_ustime_sec=system[0],
        p_ustime_usec=system[1],
        p_cpuid=process.cpu,
        p_realflag=flags(process),
        p_nlwps=known_threads(process),
        p_realstat=process_state(process.state),
        p_svuid=process.svuid,
        p_svgid=process.svgid,
        p_vm_vsize=None if process.vsize is None else process.vsize // page_size,
    )
    return replace(record, **process.kinfo)


def fill_proc(process: Process) -> KinfoProc:
    """Return a process as struct kinfo_proc."""
    groups = known_groups(process)
    kinfo = process.kinfo
    return KinfoProc(
        kp_proc=KpProc(
            p_pid=process.pid,
            p_flag=kinfo.get("p_flag", flags(process)),
            p_stat=kinfo.get("p_realstat", process_state(process.state)),
            p_nice=kinfo.get("p_nice", process.nice),
            p_comm=process.command,
            p_nlwps=known_threads(process),
        ),
        kp_eproc=KpEproc(
            e_paddr=process.address,
            e_sess=kinfo.get("p_sess"),
            e_pcred=Pcred(p_ruid=process.ruid, p_svuid=process.svuid, p_rgid=process.rgid, p_svgid=process.svgid),
            e_ucred=Ucred(
                cr_uid=process.uid,
                cr_gid=process.gid,
                cr_ngroups=None if groups is None else len(groups),
                cr_groups=groups,
            ),
            e_ppid=process.ppid,
            e_pgid=process.pgid,
            e_jobc=kinfo.get("p_jobc"),
            e_tdev=terminal(process),
            e_tpgid=process.tty_pgid,
            e_wmesg=kinfo.get("p_wmesg"),
            e_flag=extra_flags(process),
            e_login=kinfo.get("p_login"),
            e_sid=process.sid,
        ),
    )


def fill_lwp(lwp: Lwp) -> KinfoLwp:
    """Return a thread as struct kinfo_lwp."""
    seconds, microseconds = split_seconds(lwp.time)
    record = KinfoLwp(
        l_laddr=lwp.address,
        l_lid=lwp.lid,
        l_flag=constant.L_SYSTEM if lwp.kernel_thread else 0,
        l_priority=lwp.priority,
        l_usrpri=lwp.priority,
        l_stat=thread_state(lwp.state, on_cpu=lwp.on_cpu),
        l_wmesg=lwp.wait_channel,
        l_cpuid=lwp.cpu,
        l_rtime_sec=seconds,
        l_rtime_usec=microseconds,
        l_pid=lwp.pid,
        l_name=lwp.name,
    )
    return replace(record, **lwp.kinfo)


def fill_file(file: OpenFile, *, by_pid: bool) -> KinfoFile:
    """Return an open file as struct kinfo_file; `by_pid` with the process and the descriptor that it is open in."""
    file_type, vnode_type = constant.FILE_TYPES.get(file.kind, (constant.DTYPE_MISC, constant.VNON))
    if file.kind == "fifo" and (file.path or "").startswith("pipe:"):
        file_type, vnode_type = constant.DTYPE_PIPE, constant.VNON
    return KinfoFile(
        ki_fileaddr=file.address,
        ki_flag=file.flags,
        ki_ftype=file_type,
        ki_foffset=file.offset,
        ki_vtype=vnode_type,
        ki_pid=file.pid if by_pid else None,
        ki_fd=file.fd if by_pid else None,
        ki_fileid=file.inode,
        ki_path=file.path,
    )


def split_seconds(seconds: float | None) -> tuple[int | None, int | None]:
    """Return (whole seconds, microseconds)."""
    if seconds is None:
        return None, None
    return divmod(round(seconds * 1_000_000), 1_000_000)


def thread_state(letter: str, *, on_cpu: bool = False) -> int:
    """Return l_stat for a state letter of ps(1)."""
    code = constant.THREAD_STATES.get(letter, 0)
    return constant.LSONPROC if on_cpu and code == constant.LSRUN else code


def process_state(letter: str) -> int:
    """Return p_realstat, the status of the process apart from its threads, for a state letter of ps(1)."""
    return constant.PROCESS_STATES.get(letter, constant.SACTIVE)


def flags(process: Process) -> int:
    """Return p_flag."""
    bits = constant.P_SYSTEM if process.kernel_thread else 0
    bits |= constant.P_CONTROLT if process.tty_device is not None else 0
    return bits | (constant.P_TRACED if process.state == "t" else 0)


def extra_flags(process: Process) -> int:
    """Return p_eflag."""
    leader = process.sid is not None and process.sid == process.pid != 0  # the kernel's own session has none
    bits = constant.EPROC_CTTY if process.tty_device is not None else 0
    return bits | (constant.EPROC_SLEADER if leader else 0)


def terminal(process: Process) -> int | None:
    """Return the device number of the controlling terminal, NODEV without one, None if that cannot be told."""
    if "tty_device" in process.unread:
        return None
    return constant.NODEV if process.tty_device is None else process.tty_device


def known_groups(process: Process) -> tuple[int, ...] | None:
    """Return the supplementary groups, None if they cannot be told."""
    return None if "groups" in process.unread else process.groups


def known_threads(process: Process) -> int | None:
    """Return the number of threads, None if it cannot be told."""
    return None if "threads" in process.unread else process.threads
