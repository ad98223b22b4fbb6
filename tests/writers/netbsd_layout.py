"""Structs of NetBSD 10, as far as they are read: members in the order of its headers, laid out as C does.

From sys/sys/proc.h 1.371 (2022: no p_nlwpid any more), sys/sys/lwp.h 1.217, sys/kern/kern_auth.c (struct kauth_cred),
sys/uvm/uvm_extern.h, sys/uvm/uvm_map.h, sys/arch/x86/include/pmap_private.h and cpu.h, sys/arch/amd64/include/pcb.h and
frame.h, sys/sys/exec.h. Where members between those are left out, what follows has another offset than there.
"""

from __future__ import annotations

from collections.abc import Mapping

SIZES = {"char": 1, "u_char": 1, "u_short": 2, "bool": 1, "uint64_t": 8, "time_t": 8, "u_quad_t": 8}
STRUCTS: dict[str, str] = {
    "bintime": "time_t sec; uint64_t frac",
    "timeval": "time_t tv_sec; int tv_usec",
    "sigset": "u_int bits[4]",
    "sigpend": "void *info; struct sigset sp_set",
    "sigctx": "int ps_info; int ps_lwp; int ps_faked; void *ps_sigcode; struct sigset ps_sigignore;"
    " struct sigset ps_sigcatch",
    "list": "void *first; void *second",
    "proc": "struct list p_list; void *p_lock; struct list p_waitcv; struct list p_lwpcv; void *p_cred; void"
    " *p_fd; void *p_cwdi; void *p_stats; void *p_limit; void *p_vmspace; void *p_sigacts; void *p_aio;"
    " u_int p_mqueue_cnt; void *p_specdataref; int p_exitsig; int p_flag; int p_sflag; int p_slflag; int"
    " p_lflag; int p_stflag; char p_stat; char p_trace_enabled; int p_pid; struct list p_pglist; void"
    " *p_pptr; struct list p_sibling; void *p_children; void *p_lwps; void *p_raslist; int p_nlwps; int"
    " p_nzlwps; int p_nrlwps; int p_nlwpwait; int p_ndlwps; u_int p_nstopchild; u_int p_waited; void"
    " *p_zomblwp; void *p_vforklwp; void *p_sched_info; u_int p_estcpu; u_int p_estcpu_inherited; u_int"
    " p_forktime; u_int p_pctcpu; void *p_opptr; void *p_timers; struct bintime p_rtime; u_quad_t"
    " p_uticks; u_quad_t p_sticks; u_quad_t p_iticks; uint64_t p_xutime; uint64_t p_xstime; int"
    " p_traceflag; void *p_tracep; void *p_textvp; struct sigpend p_sigpend; int p_ppid; int p_oppid; void"
    " *p_path; struct sigctx p_sigctx; u_char p_nice; char p_comm[17]; void *p_pgrp; u_long p_psstrp;"
    " u_int p_pax; int p_xexit; u_short p_xsig; u_short p_acflag",
    "lwp": "void *l_cpu; void *l_mutex; void *l_ts; int l_stat; int l__reserved; struct list l_runq; void"
    " *l_sched; void *l_addr; struct bintime l_rtime; struct bintime l_stime; int l_flag; u_int l_swtime;"
    " u_int l_rticks; int l_priority; u_int l_cpticks; u_int l_pctcpu; void *l_wchan; void *l_wmesg; u_int"
    " l_slptime; bool l_vforkwaiting; int l_lid; struct list l_list; void *l_proc; struct list l_sibling;"
    " void *l_name; int l_prflag; u_int l_refcnt; struct sigset l_sigmask; void *l_cred; int l_pflag",
    "kauth_cred": "u_int cr_refcnt; char cr_pad[60]; u_int cr_uid; u_int cr_euid; u_int cr_svuid; u_int cr_gid;"
    " u_int cr_egid; u_int cr_svgid; u_int cr_ngroups; u_int cr_groups[16]",
    "session": "int s_count; u_int s_flags; void *s_leader; void *s_ttyp; void *s_ttyvp; char s_login[16]; int s_sid",
    "pgrp": "void *pg_members; void *pg_session; int pg_id; int pg_jobc",
    "tty": "void *t_lock; uint64_t t_dev; void *t_pgrp; void *t_session",
    "pstats": "char p_ru[128]; struct timeval p_start",
    "vm_map": "void *pmap; u_long size; int nentries",
    "vmspace": "struct vm_map vm_map; u_int vm_tsize; u_int vm_dsize; u_int vm_ssize; u_int vm_issize",
    "pmap": "char pm_obj[96]; void *pm_pdir; PADDR pm_pdirpa[TOPS]; struct list pm_stats",
    "cpu_info": "void *ci_self; u_long ci_cpuid; void *ci_next; void *ci_curlwp; void *ci_onproc; void *ci_ddb_regs",
    "pcb": "int pcb_flags; u_long pcb_rsp0; u_long pcb_rsp; u_long pcb_rbp",
    "switchframe": "u_long sf_r15; u_long sf_r14; u_long sf_r13; u_long sf_r12; u_long sf_rbx; u_long sf_rip",
    "trapframe": "".join(
        f"u_long tf_{name};"
        for name in (
            "rdi", "rsi", "rdx", "r10", "r8", "r9", "arg6", "arg7", "arg8", "rcx", "r11", "r12", "r13", "r14", "r15",
            "rbp", "rbx", "rax", "gs", "fs", "es", "ds", "trapno", "err", "rip", "cs", "rflags", "rsp", "ss",
        )
    ),
    "ps_strings": "void *ps_argvstr; int ps_nargvstr; void *ps_envstr; int ps_nenvstr",
}  # fmt: skip
"""Tag -> members. u_long and pointers are as large as a pointer, PADDR is a physical address."""
NARROW = {
    "pcb": "int pcb_esp0; int pcb_esp; int pcb_ebp; int pcb_unused; int pcb_cr0; int pcb_cr2; int pcb_cr3",
    "switchframe": "int sf_edi; int sf_esi; int sf_ebx; int sf_eip",
    "trapframe": "".join(
        f"int tf_{name};"
        for name in (
            "gs", "fs", "es", "ds", "edi", "esi", "ebp", "ebx", "edx", "ecx", "eax", "trapno", "err", "eip", "cs",
            "eflags", "esp", "ss",
        )
    ),
}  # fmt: skip
"""Those that are of i386: sys/arch/i386/include/pcb.h and frame.h."""


class Struct:
    """One struct: `size`, and `members`, name -> (offset, size, type)."""

    def __init__(self, text: str, known: Mapping[str, Struct], *, word: int, paddr: int, tops: int) -> None:
        self.members: dict[str, tuple[int, int, str]] = {}
        self.size, self.align, place = 0, 1, 0
        for line in filter(None, map(str.strip, text.split(";"))):
            kind, name = line.rsplit(" ", 1)
            kind = kind + " *" if name.startswith("*") else kind
            name, _, length = name.lstrip("*").partition("[")
            count = tops if length == "TOPS]" else int(length[:-1]) if length else 1
            if kind.startswith("struct ") and "*" not in kind:
                size, align = known[kind.split()[1]].size, known[kind.split()[1]].align
            else:
                size = word if "*" in kind or kind == "u_long" else paddr if kind == "PADDR" else SIZES.get(kind, 4)
                align = min(size, word)
            kind = {"PADDR": f"uint{8 * paddr}_t"}.get(kind, kind) + (f" [{count}]" if length else "")
            place += -place % align
            self.members[name] = (place, size * count, kind)
            place += size * count
            self.align = max(self.align, align)
        self.size = place + -place % self.align


def make_structs(*, wide: bool, pae: bool = False) -> dict[str, Struct]:
    """Return all structs of a processor of 64 or 32 bits."""
    structs: dict[str, Struct] = {}
    for tag, text in (STRUCTS if wide else STRUCTS | NARROW).items():
        structs[tag] = Struct(text, structs, word=8 if wide else 4, paddr=8 if wide or pae else 4, tops=4 if pae else 1)
    return structs


def write_layout(structs: Mapping[str, Struct]) -> dict[str, object]:
    """Return a layout file's object."""
    return {
        tag: {
            "size": struct.size,
            "members": {
                name: {"offset": offset, "size": size, "type": kind}
                for name, (offset, size, kind) in struct.members.items()
            },
        }
        for tag, struct in structs.items()
    }
