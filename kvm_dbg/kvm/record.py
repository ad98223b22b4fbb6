"""The records that kvm(3) returns, with the fields of NetBSD's structures, in their order.

A field is None where the system in the image has no such thing, where nothing reads it yet, or where its memory is
not in the image. Addresses are the image's kernel addresses, p_vm_* sizes are in pages, times in seconds and
microseconds.

Source: NetBSD sys/sys/sysctl.h (struct kinfo_proc, kinfo_proc2, kinfo_lwp, kinfo_file), include/nlist.h.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Nlist:
    """struct nlist: `kvm_nlist` looks `n_name` up and fills in the rest (all zero if it is not found)."""

    n_name: str | None
    n_value: int = 0
    n_type: int = 0
    n_other: int = 0
    n_desc: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KinfoProc2:
    """struct kinfo_proc2: one process.

    Unlike in C, p_comm and p_groups have no length limit, and p_nice is the value that ps shows, -20 to 19.
    """

    p_forw: int | None = None
    p_back: int | None = None
    p_paddr: int
    p_addr: int | None = None
    p_fd: int | None = None
    p_cwdi: int | None = None
    p_stats: int | None = None
    p_limit: int | None = None
    p_vmspace: int | None = None
    p_sigacts: int | None = None
    p_sess: int | None = None
    p_tsess: int | None = None
    p_ru: int | None = None
    p_eflag: int
    p_exitsig: int | None = None
    p_flag: int
    p_pid: int
    p_ppid: int | None
    p_sid: int | None
    p__pgid: int | None
    p_tpgid: int | None
    p_uid: int | None
    p_ruid: int | None
    p_gid: int | None
    p_rgid: int | None
    p_groups: tuple[int, ...] | None
    p_ngroups: int | None
    p_jobc: int | None = None
    p_tdev: int | None
    p_estcpu: int | None = None
    p_rtime_sec: int | None
    p_rtime_usec: int | None
    p_cpticks: int | None = None
    p_pctcpu: int | None = None
    p_swtime: int | None = None
    p_slptime: int | None = None
    p_schedflags: int | None = None
    p_uticks: int | None = None
    p_sticks: int | None = None
    p_iticks: int | None = None
    p_tracep: int | None = None
    p_traceflag: int | None = None
    p_holdcnt: int | None = None
    p_siglist: int | None = None
    p_sigmask: int | None = None
    p_sigignore: int | None = None
    p_sigcatch: int | None = None
    p_stat: int
    p_priority: int | None
    p_usrpri: int | None
    p_nice: int | None
    p_xstat: int | None = None
    p_acflag: int | None = None
    p_comm: str
    p_wmesg: str | None = None
    p_wchan: int | None = None
    p_login: str | None = None
    p_vm_rssize: int | None
    p_vm_tsize: int | None = None
    p_vm_dsize: int | None = None
    p_vm_ssize: int | None = None
    p_uvalid: int
    p_ustart_sec: int | None
    p_ustart_usec: int | None
    p_uutime_sec: int | None
    p_uutime_usec: int | None
    p_ustime_sec: int | None
    p_ustime_usec: int | None
    p_uru_maxrss: int | None = None
    p_uru_ixrss: int | None = None
    p_uru_idrss: int | None = None
    p_uru_isrss: int | None = None
    p_uru_minflt: int | None = None
    p_uru_majflt: int | None = None
    p_uru_nswap: int | None = None
    p_uru_inblock: int | None = None
    p_uru_oublock: int | None = None
    p_uru_msgsnd: int | None = None
    p_uru_msgrcv: int | None = None
    p_uru_nsignals: int | None = None
    p_uru_nvcsw: int | None = None
    p_uru_nivcsw: int | None = None
    p_uctime_sec: int | None = None
    p_uctime_usec: int | None = None
    p_cpuid: int | None
    p_realflag: int
    p_nlwps: int | None
    p_nrlwps: int | None = None
    p_realstat: int
    p_svuid: int | None
    p_svgid: int | None
    p_ename: str | None = None
    p_vm_vsize: int | None
    p_vm_msize: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KpProc:
    """The part `kp_proc` of struct kinfo_proc: fields of struct proc."""

    p_pid: int
    p_flag: int
    p_stat: int
    p_nice: int | None
    p_comm: str
    p_nlwps: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pcred:
    """The part `e_pcred` of struct eproc: real and saved ids."""

    p_ruid: int | None
    p_svuid: int | None
    p_rgid: int | None
    p_svgid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ucred:
    """The part `e_ucred` of struct eproc: effective ids."""

    cr_uid: int | None
    cr_gid: int | None
    cr_ngroups: int | None
    cr_groups: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KpEproc:
    """The part `kp_eproc` of struct kinfo_proc: what is not in struct proc itself."""

    e_paddr: int
    e_sess: int | None = None
    e_pcred: Pcred
    e_ucred: Ucred
    e_ppid: int | None
    e_pgid: int | None
    e_jobc: int | None = None
    e_tdev: int | None
    e_tpgid: int | None
    e_tsess: int | None = None
    e_wmesg: str | None = None
    e_xsize: int | None = None
    e_xrssize: int | None = None
    e_xccount: int | None = None
    e_xswrss: int | None = None
    e_flag: int
    e_login: str | None = None
    e_sid: int | None


@dataclass(frozen=True, slots=True)
class KinfoProc:
    """struct kinfo_proc: one process."""

    kp_proc: KpProc
    kp_eproc: KpEproc


@dataclass(frozen=True, slots=True, kw_only=True)
class KinfoLwp:
    """struct kinfo_lwp: one thread. l_wmesg is the name of the kernel function that it sleeps in."""

    l_forw: int | None = None
    l_back: int | None = None
    l_laddr: int
    l_addr: int | None = None
    l_lid: int
    l_flag: int
    l_swtime: int | None = None
    l_slptime: int | None = None
    l_schedflags: int | None = None
    l_holdcnt: int | None = None
    l_priority: int | None
    l_usrpri: int | None
    l_stat: int
    l_wmesg: str | None
    l_wchan: int | None = None
    l_cpuid: int | None
    l_rtime_sec: int | None
    l_rtime_usec: int | None
    l_cpticks: int | None = None
    l_pctcpu: int | None = None
    l_pid: int
    l_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KinfoFile:
    """struct kinfo_file: one open file; and `ki_path`, for which the C structure has no room.

    ki_flag is as the image's own system defines open(2)'s flags. ki_pid and ki_fd are None where files were asked
    for, not descriptors. ki_fileid is the inode number.
    """

    ki_fileaddr: int
    ki_flag: int | None
    ki_iflags: int | None = None
    ki_ftype: int
    ki_count: int | None = None
    ki_msgcount: int | None = None
    ki_usecount: int | None = None
    ki_fucred: int | None = None
    ki_fuid: int | None = None
    ki_fgid: int | None = None
    ki_fops: int | None = None
    ki_foffset: int | None
    ki_fdata: int | None = None
    ki_vun: int | None = None
    ki_vsize: int | None = None
    ki_vtype: int
    ki_vtag: int | None = None
    ki_vdata: int | None = None
    ki_pid: int | None
    ki_fd: int | None
    ki_ofileflags: int | None = None
    ki_fileid: int | None
    ki_path: str | None
