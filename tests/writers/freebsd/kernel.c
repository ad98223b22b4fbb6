/*
 * A little FreeBSD that was stopped in the middle of a crash: what a kernel's memory would hold, as initialisers.
 *
 * Values are made up; tests compare with what they mean by the definitions in FreeBSD's headers and manuals.
 * The memory of modules is outside of the kernel's: toy_text and plain_text are addresses that the linker is told.
 * KERNEL_ROOT, MAKE_ROOT, LOST_ROOT, EMPTY_ROOT: physical addresses of top page tables, by the writer of the image.
 */
#include "kernel.h"

#define PAGES(n) __attribute__((aligned(4096)))
#define CODE(name) extern char name[]; asm(".text\n.globl " #name "\n.type " #name ",@function\n" #name \
	":\npush %rbp\nmov %rsp,%rbp\n.fill 60,1,0x90\n.size " #name ",64\n");
#define AT(place, offset) ((uint64_t)(place) + (offset))

CODE(btext) CODE(kern_reboot) CODE(panic) CODE(trap) CODE(calltrap) CODE(sys_ioctl) CODE(amd64_syscall) CODE(fast_syscall_common)
CODE(cpustop_handler) CODE(Xcpustop) CODE(vm_fault) CODE(sched_switch) CODE(mi_switch) CODE(sleepq_wait) CODE(fork_exit)
CODE(fork_trampoline) CODE(rdtsc_ticker) CODE(tc_cpu_ticks)

char version[] = "FreeBSD " VERSION "-RELEASE (GENERIC) #0 releng/n1: Thu Jan  1 00:00:00 UTC 1970\n    root@made:/obj\n";
char osrelease[] = VERSION "-RELEASE";
char machine[] = "amd64";
char kern_ident[] = "GENERIC";
char *panicstr = "page fault in toy";
uint64_t KPML4phys = KERNEL_ROOT;
int osreldate = RELEASE * 100000, mp_ncpus = 2, hz = 100, ticks = 100000, nprocs = 9, dumptid = 100300, pcb_size = sizeof(struct pcb);
#if RELEASE >= 14
int panic_cpu = 0;
#endif
long physmem = 0x3f000;
volatile time_t time_second = 1700003600, time_uptime = 3600;
struct loadavg averunnable = { { 1024, 512, 4096 }, 2048 };
struct timecounter tsc = { .tc_frequency = 3000000000 };
#if RELEASE >= 12
struct timehands th0 = { .th_counter = &tsc, .th_boottime = { 1700000000, 1UL << 63 } };
#else
struct timehands th0 = { .th_counter = &tsc };
struct bintime boottimebin = { 1700000000, 1UL << 63 };
#endif
struct timehands *volatile timehands = &th0;
void *cpu_ticks = rdtsc_ticker;
uint64_t cpu_tick_frequency = 1000000000;
struct prison prison0 = { .pr_name = "0", .pr_hostname = "made.example.org" };
char logged[64] = "y line\n<118>Starting devd.\npanic: page fault in toy\n\0\0\0\0\0\0\0\0earl";
struct msgbuf msgbuf0 = { logged, 0x063062, sizeof(logged), 64 * 3 + 52, 0 };
struct msgbuf *msgbufp = &msgbuf0;

/* credentials, sessions, terminals */
#if RELEASE >= 15
#define CRED(name, flags, uid, ruid, svuid, gid, rgid, svgid, ...) struct ucred name = { .cr_flags = flags, .cr_uid = uid, .cr_ruid = ruid, \
	.cr_svuid = svuid, .cr_gid = gid, .cr_rgid = rgid, .cr_svgid = svgid, .cr_groups = name.cr_smallgroups, \
	.cr_ngroups = sizeof((gid_t[]){ __VA_ARGS__ }) / 4, .cr_smallgroups = { __VA_ARGS__ } }
#else
#define CRED(name, flags, uid, ruid, svuid, gid, rgid, svgid, ...) struct ucred name = { .cr_flags = flags, .cr_uid = uid, .cr_ruid = ruid, \
	.cr_svuid = svuid, .cr_rgid = rgid, .cr_svgid = svgid, .cr_groups = name.cr_smallgroups, \
	.cr_ngroups = sizeof((gid_t[]){ gid, __VA_ARGS__ }) / 4, .cr_smallgroups = { gid, __VA_ARGS__ } }
#endif
CRED(cred_root, 0, 0, 0, 0, 0, 0, 0, 5);
CRED(cred_user, 0, 0, 1001, 0, 20, 1002, 21, 68, 44);
CRED(cred_boxed, 1, 65534, 65534, 65534, 65533, 65533, 65533, 65533);

extern struct proc p_kernel, p_init, p_intr, p_sh, p_make, p_stop, p_zombie, p_crash, p_dd;
extern struct pgrp g_make;
extern struct vnode v_pts;
struct cdev_priv pts0 = { .cdp_c = { .si_name = "pts/0" }, .cdp_inode = 0x71 };
struct tty tty_pts = { .t_pgrp = &g_make, .t_dev = &pts0.cdp_c };
struct session s_kernel = { .s_sid = 0, .s_login = "" };
struct session s_init = { .s_sid = 1, .s_leader = &p_init, .s_login = "root" };
struct session s_sh = { .s_sid = 700, .s_leader = &p_sh, .s_ttyvp = &v_pts, .s_ttydp = &pts0, .s_ttyp = &tty_pts, .s_login = "alice" };
struct pgrp g_kernel = { .pg_session = &s_kernel, .pg_id = 0 };
struct pgrp g_init = { .pg_session = &s_init, .pg_id = 1 };
struct pgrp g_sh = { .pg_session = &s_sh, .pg_id = 700 };
struct pgrp g_make = { .pg_session = &s_sh, .pg_id = 701 };

/* file systems */
extern struct vnode v_root, v_bin, v_sh, v_usr, v_home, v_notes, v_lost, v_dev;
struct mount m_root = { .mnt_stat = { .f_fstypename = "ufs", .f_mntonname = "/" } };
struct mount m_usr = { .mnt_stat = { .f_fstypename = "ufs", .f_mntonname = "/usr" } };
struct mount m_dev = { .mnt_stat = { .f_fstypename = "devfs", .f_mntonname = "/dev" } };
#define NAMED(n, parent, vnode, text, flags) struct namecache n = { .nc_dvp = &parent, .n_un = { .nu_vp = &vnode }, \
	.nc_flag = flags, .nc_nlen = sizeof(text) - 1, .nc_name = text }
NAMED(n_bin, v_root, v_bin, "bin", 0);
NAMED(n_sh, v_bin, v_sh, "sh", 0);
NAMED(n_home, v_usr, v_home, "home", 0);
#if RELEASE >= 12
#define TIMED namecache
#else
#define TIMED namecache_ts
#endif
extern struct TIMED n_notes;
struct namecache n_updir = { .nc_dst = { .tqe_next = (struct namecache *)&n_notes }, .nc_dvp = &v_home, .nc_flag = 2, .nc_nlen = 2, .nc_name = ".." };
struct TIMED n_notes = { .nc_dvp = &v_home, .n_un = { .nu_vp = &v_notes }, .nc_flag = 4, .nc_nlen = 5, .nc_name = "notes" };
struct inode i_sh = { .i_size = 170000, .i_number = 4242, .i_mode = 0100555 };
struct inode i_notes = { .i_size = 99, .i_number = 777, .i_mode = 0100640 };
struct inode i_home = { .i_size = 512, .i_number = 3, .i_mode = 040755 };
struct devfs_dirent d_pts = { .de_cdp = &pts0, .de_inode = 0x71, .de_mode = 0620 };
#define DATA(x) .v_data = x
struct vnode v_root = { .v_type = VDIR, .v_mount = &m_root, .v_vflag = 1 };
struct vnode v_bin = { .v_type = VDIR, .v_mount = &m_root, .v_cache_dst = { &n_bin } };
struct vnode v_sh = { .v_type = VREG, .v_mount = &m_root, .v_cache_dst = { &n_sh }, DATA(&i_sh) };
struct vnode v_usr = { .v_type = VDIR, .v_mount = &m_usr, .v_vflag = 1 };
struct vnode v_home = { .v_type = VDIR, .v_mount = &m_usr, .v_cache_dst = { &n_home }, DATA(&i_home) };
struct vnode v_notes = { .v_type = VREG, .v_mount = &m_usr, .v_cache_dst = { &n_updir }, DATA(&i_notes) };
struct vnode v_lost = { .v_type = VREG, .v_mount = &m_usr, DATA(&i_notes) };
struct vnode v_pts = { .v_type = VCHR, .v_mount = &m_dev, .v_rdev = &pts0.cdp_c, DATA(&d_pts) };
char a_socket[64], a_pipe[64];
struct file f_pts = { .f_flag = 3, .f_count = 3, .f_data = &v_pts, .f_vnode = &v_pts, .f_type = 1, .f_offset = 5 };
struct file f_notes = { .f_flag = 11, .f_data = &v_notes, .f_vnode = &v_notes, .f_type = 1, .f_offset = 42 };
struct file f_home = { .f_flag = 1, .f_data = &v_home, .f_vnode = &v_home, .f_type = 1 };
struct file f_lost = { .f_flag = 1, .f_data = &v_lost, .f_vnode = &v_lost, .f_type = 1 };
struct file f_socket = { .f_flag = 7, .f_data = a_socket, .f_type = 2 };
struct file f_pipe = { .f_flag = 1, .f_data = a_pipe, .f_type = 3 };
struct file f_kqueue = { .f_flag = 3, .f_data = a_pipe, .f_type = 5 };
struct file f_odd = { .f_flag = 3, .f_type = 99 };
union { struct file f; char page[4096]; } far_page PAGES(1) = { { .f_flag = 1, .f_data = &v_home, .f_vnode = &v_home, .f_type = 1,
	.f_offset = 1 } };
char lonely_page[4096] PAGES(1) = { 1 };
struct fdescenttbl t_sh = { 20, { { &f_pts }, { &f_pts }, { &f_pts }, { &f_notes }, { &f_home }, { &f_socket }, { &f_pipe }, { &f_kqueue },
	{ 0 }, { &f_lost }, { &f_odd }, { &far_page.f }, [19] = { 0 } } };
struct fdescenttbl t_make = { 3, { { &f_pts }, { &f_pts }, { &f_pts } } };
#if RELEASE >= 13
struct pwd w_sh = { 1, &v_home, &v_root, &v_root };
struct pwddesc pd_sh = { .pd_pwd = { &w_sh } };
#define IN_HOME
#define DIRECTORIES(pd) .p_pd = pd,
#else
#define IN_HOME , .fd_cdir = &v_home, .fd_rdir = &v_root, .fd_jdir = &v_root
#define DIRECTORIES(pd)
#endif
struct filedesc fd_sh = { .fd_files = &t_sh IN_HOME }, fd_make = { .fd_files = &t_make };

/* memory of processes */
#define USER_TOP 0x7ffffffff000
extern struct vmspace vm_sh;
struct vm_object o_sh = { .handle = &v_sh, .type = OBJT_VNODE };
struct vm_object o_data = { .backing_object = &o_sh, .backing_object_offset = 0x10000, .type = OBJT_SWAP };
struct vm_object o_shared = { .type = OBJT_SWAP }, o_stack = { .type = OBJT_SWAP };
extern union entry_page { struct vm_map_entry e; char page[4096]; } text_page;
extern struct vm_map_entry e_data, e_shared, e_guard, e_stack;
#define e_text text_page.e
#define HEAD &vm_sh.vm_map.header
#if RELEASE < 13
#define TREE(p, n, l, r) .prev = p, .next = n
#else
#define TREE(p, n, l, r) .left = l, .right = r
#endif
union entry_page text_page PAGES(1) = { { TREE(HEAD, &e_data, HEAD, &e_data), .start = 0x400000, .end = 0x410000,
	.object = { &o_sh }, .eflags = 4 | 8, .protection = 5, .max_protection = 7, .inheritance = 1 } };
struct vm_map_entry e_data = { TREE(&e_text, &e_shared, &e_text, &e_shared), .start = 0x610000, .end = 0x612000,
	.object = { &o_data }, .offset = 0x1000, .eflags = 4, .protection = 3, .max_protection = 7, .inheritance = 1 };
struct vm_map_entry e_shared = { TREE(&e_data, &e_guard, &e_data, &e_stack), .start = 0x800000, .end = 0x801000,
	.object = { &o_shared }, .protection = 3, .max_protection = 7, .inheritance = 0 };
struct vm_map_entry e_guard = { TREE(&e_shared, &e_stack, &e_shared, &e_stack), .start = 0x7fffdffff000, .end = 0x7fffffffd000,
	.eflags = 0x10000, .inheritance = 1 };
struct vm_map_entry e_stack = { TREE(&e_guard, HEAD, &e_guard, HEAD), .start = 0x7fffffffd000, .end = USER_TOP,
	.object = { &o_stack }, .eflags = 0x1000, .protection = 3, .max_protection = 7, .inheritance = 1 };
#if RELEASE >= 14
#define TOP .vm_stacktop = USER_TOP,
#else
#define TOP
#endif
#if RELEASE >= 12
#define ROOT(paddr) .pm_cr3 = paddr
#else
#define ROOT(paddr) .pm_pml4 = (uint64_t *)(0xfffff80000000000 + paddr)
#endif
struct vmspace vm_sh = { .vm_map = { .header = { TREE(&e_stack, &e_text, &e_stack, &e_text), .start = USER_TOP, .end = 0x1000 },
	.nentries = 5, .size = 0x600000, .root = &e_shared, .pmap = &vm_sh.vm_pmap },
	TOP .vm_pmap = { ROOT(LOST_ROOT), .pm_stats = { .resident_count = 345 } } };
#define MADE(name, root) struct vmspace name = { .vm_map = { .header = { TREE(&name.vm_map.header, &name.vm_map.header, &name.vm_map.header, \
	&name.vm_map.header) }, .size = 0x4000, .pmap = &name.vm_pmap }, TOP .vm_pmap = { ROOT(root), .pm_stats = { .resident_count = 2 } } }
MADE(vm_make, MAKE_ROOT);
MADE(vm_init, EMPTY_ROOT);
struct sysentvec elf64_freebsd_sysvec = { .sv_psstringssz = sizeof(struct ps_strings), .sv_flags = 0x200,
#if RELEASE < 14
	.sv_psstrings = USER_TOP - sizeof(struct ps_strings),
#endif
};
struct ps_strings *strings_of_processes; /* a kernel has the type, too */

/* stacks: a frame is the caller's frame pointer and the return address */
#define FRAME(stack, n, fp, to) [n] = AT(fp, 0), [n + 1] = AT(to, 9)
#define TRAPFRAME(n, rip, cs, rbp, rsp) [n + 8] = rbp, [n + 19] = rip, [n + 20] = cs, [n + 21] = 0x202, [n + 22] = rsp, [n + 23] = 0x28
extern char toy_text[];
uint64_t stack_crash[512] PAGES(4) = {
	FRAME(stack_crash, 100, &stack_crash[104], panic),
	FRAME(stack_crash, 104, &stack_crash[108], trap),
	FRAME(stack_crash, 108, &stack_crash[140], calltrap),
	TRAPFRAME(110, AT(toy_text, 0x2c), 0x20, AT(&stack_crash[140], 0), AT(&stack_crash[136], 0)),
	FRAME(stack_crash, 140, &stack_crash[144], sys_ioctl),
	FRAME(stack_crash, 144, 0x7fffffffe900, fast_syscall_common),
	TRAPFRAME(146, 0x401234, 0x43, 0x7fffffffe900, 0x7fffffffe8f0),
};
uint64_t stack_make[512] PAGES(4) = {
	FRAME(stack_make, 100, &stack_make[140], Xcpustop),
	TRAPFRAME(102, AT(vm_fault, 5), 0x20, AT(&stack_make[140], 0), AT(&stack_make[130], 0)),
	FRAME(stack_make, 140, 0x7fffffffe800, calltrap),
	TRAPFRAME(142, 0x405678, 0x43, 0x7fffffffe800, 0x7fffffffe7f0),
};
uint64_t stack_sleep[512] PAGES(4) = {
	FRAME(stack_sleep, 100, &stack_sleep[104], mi_switch),
	FRAME(stack_sleep, 104, &stack_sleep[108], sleepq_wait),
	FRAME(stack_sleep, 108, &stack_sleep[112], fork_exit),
	[112] = 0, [113] = AT(fork_trampoline, 14),
};
struct pcb dumppcb = { .pcb_rip = AT(kern_reboot, 30), .pcb_rsp = AT(&stack_crash[96], 0), .pcb_rbp = AT(&stack_crash[100], 0) };
struct pcb stopped[2] = { { 0 }, { .pcb_rip = AT(cpustop_handler, 12), .pcb_rsp = AT(&stack_make[90], 0), .pcb_rbp = AT(&stack_make[100], 0) } };
struct pcb *stoppcbs = stopped;
struct pcb pcb_sleep = { .pcb_rip = AT(sched_switch, 20), .pcb_rsp = AT(&stack_sleep[90], 0), .pcb_rbp = AT(&stack_sleep[100], 0) };

/* threads */
#define THREAD(name, next, proc, ...) struct thread name = { .td_proc = &proc, .td_plist = { .tqe_next = next }, .td_oncpu = -1, .td_lastcpu = 1, \
	.td_pcb = &pcb_sleep, .td_pri_class = 3, __VA_ARGS__ }
#define SLEEPS(flags, message, since) .td_state = TDS_INHIBITED, .td_inhibitors = 2, .td_flags = flags, .td_wmesg = message, \
	.td_wchan = &version, .td_slptick = since
extern struct thread td_softirq, td_make2;
THREAD(td_swapper, &td_softirq, p_kernel, .td_tid = 100000, .td_name = "swapper", SLEEPS(0, "swapin", 99900), .td_priority = 84,
	.td_kstack_pages = 1);
THREAD(td_softirq, 0, p_kernel, .td_tid = 100007, .td_name = "softirq_0", .td_state = TDS_INHIBITED, .td_inhibitors = 8,
	.td_lockname = "Giant", .td_priority = 24);
THREAD(td_init, 0, p_init, .td_tid = 100002, .td_name = "init", SLEEPS(8, "wait", 99500), .td_priority = 112);
THREAD(td_intr, 0, p_intr, .td_tid = 100010, .td_name = "irq1: atkbd0", .td_state = TDS_INHIBITED, .td_inhibitors = 0x10, .td_priority = 16);
THREAD(td_sh, 0, p_sh, .td_tid = 100100, .td_name = "sh", SLEEPS(8, "ttyin", 97900), .td_priority = 120);
THREAD(td_make, &td_make2, p_make, .td_tid = 100201, .td_name = "make", .td_oncpu = 1, .td_state = TDS_RUNNING, .td_priority = 130,
	.td_runtime = 1500000000, .td_incruntime = 500000000, .td_uticks = 10, .td_rux = { .rux_runtime = 1000000000, .rux_uticks = 5, .rux_sticks = 5 });
THREAD(td_make2, 0, p_make, .td_tid = 100202, .td_name = "worker", .td_state = TDS_RUNQ, .td_priority = 131, .td_runtime = 250000000, .td_rux = { .rux_runtime = 250000000 });
THREAD(td_stop, 0, p_stop, .td_tid = 100203, .td_name = "stopped", .td_state = TDS_INHIBITED, .td_inhibitors = 1, .td_priority = 120);
THREAD(td_zombie, 0, p_zombie, .td_tid = 100204, .td_name = "gone", .td_state = TDS_INACTIVE);
THREAD(td_crash, 0, p_crash, .td_tid = 100300, .td_name = "crashme", .td_oncpu = 0, .td_kstack = (vm_offset_t)stack_crash, .td_kstack_pages = 1, .td_state = TDS_RUNNING, .td_priority = 120);
THREAD(td_dd, 0, p_dd, .td_tid = 100301, .td_name = "dd", SLEEPS(0, "biord", 99990), .td_priority = 84);

/* processes, the youngest first; pid hash of four chains */
union arguments { struct pargs pargs; struct { u_int a, b; char text[64]; } raw; };
union arguments a_sh = { .raw = { 1, 6, "sh\0-i" } }, a_init = { .raw = { 1, 11, "/sbin/init" } }, a_bad = { .raw = { 1, 0x7fffffff, "" } };
struct pstats st_sh = { .p_start = { 100, 250000 } }, st_make = { .p_start = { 200, 0 } };
#define PROC(p, next, nhash, parent, ...) struct proc p = { .p_list = { .le_next = next }, .p_hash = { .le_next = nhash }, .p_pptr = parent, \
	.p_state = PRS_NORMAL, .p_sysent = &elf64_freebsd_sysvec, .p_numthreads = 1, __VA_ARGS__ }
#define INMEM (RELEASE < 15 ? 0x10000000 : 0)
#if RELEASE < 13
#define UNDEAD &p_stop
#else
#define UNDEAD &p_zombie
#endif
PROC(p_dd, &p_crash, &p_make, &p_sh, .p_pid = 705, .p_oppid = 700, .p_comm = "dd", .p_flag = INMEM | 0x2000 | 2, .p_ucred = &cred_root,
	.p_threads = { &td_dd }, .p_pgrp = &g_sh, .p_vmspace = &vm_init, .p_args = &a_bad.pargs);
PROC(p_crash, UNDEAD, &p_sh, &p_sh, .p_pid = 704, .p_oppid = 700, .p_comm = "crashme", .p_flag = INMEM | 2, .p_ucred = &cred_root,
	.p_threads = { &td_crash }, .p_pgrp = &g_make, .p_vmspace = &vm_make);
PROC(p_zombie, RELEASE < 13 ? 0 : &p_stop, 0, &p_make, .p_pid = 703, .p_oppid = 701, .p_comm = "gone", .p_flag = INMEM | 0x2000, .p_ucred = &cred_user,
	.p_threads = { &td_zombie }, .p_pgrp = &g_make, .p_state = PRS_ZOMBIE);
PROC(p_stop, &p_make, 0, &p_make, .p_pid = 702, .p_oppid = 701, .p_comm = "stopped", .p_flag = INMEM | 0x20000 | 0x10 | 0x1000000, .p_nice = -3,
	.p_ucred = &cred_boxed, .p_threads = { &td_stop }, .p_pgrp = &g_make, .p_vmspace = &vm_init);
PROC(p_make, &p_sh, &p_init, &p_sh, .p_pid = 701, .p_oppid = 700, .p_comm = "make", .p_flag = INMEM | 2 | 0x800, .p_nice = 5, .p_ucred = &cred_user,
	.p_threads = { &td_make }, .p_numthreads = 2, .p_pgrp = &g_make, .p_vmspace = &vm_make, .p_fd = &fd_make, .p_stats = &st_make,
	.p_rux = { 3000000000, 20, 8, 2 });
PROC(p_sh, &p_intr, &p_intr, &p_init, .p_pid = 700, .p_oppid = 1, .p_comm = "sh", .p_flag = INMEM | 2, .p_ucred = &cred_user,
	.p_threads = { &td_sh }, .p_pgrp = &g_sh, .p_vmspace = &vm_sh, .p_args = &a_sh.pargs, DIRECTORIES(&pd_sh) .p_fd = &fd_sh, .p_stats = &st_sh);
PROC(p_intr, &p_init, &p_kernel, &p_kernel, .p_pid = 12, .p_comm = "intr", .p_flag = INMEM | 0x204, .p_ucred = &cred_root, .p_threads = { &td_intr },
	.p_pgrp = &g_kernel);
PROC(p_init, &p_kernel, 0, &p_kernel, .p_pid = 1, .p_comm = "init", .p_flag = INMEM | 0x200, .p_ucred = &cred_root, .p_threads = { &td_init },
	.p_pgrp = &g_init, .p_vmspace = &vm_init, .p_args = &a_init.pargs);
PROC(p_kernel, 0, 0, 0, .p_comm = "kernel", .p_flag = INMEM | 0x204, .p_ucred = &cred_root, .p_threads = { &td_swapper }, .p_numthreads = 2,
	.p_pgrp = &g_kernel);
LIST_HEAD(proclist, proc) allproc = { &p_dd };
#if RELEASE < 13
struct proclist zombproc = { &p_zombie };
struct proclist pids[4] = { { &p_crash }, { &p_dd }, { &p_stop }, { 0 } };
#else
struct proclist pids[4] = { { &p_crash }, { &p_dd }, { &p_stop }, { &p_zombie } };
#endif
struct proclist *pidhashtbl = pids;
u_long pidhash = 3;

/* modules: toy has a table of sections and symbols, as those of relocatable files have; plain has none that can be right */
extern struct elf_file toy, plain;
extern char plain_text[];
#define toy_data (toy_text + 0x1000)
Elf_progent toy_sections[] = { { toy_text, 256, 0, 1, ".text" }, { toy_data, 64, 0, 3, ".data" } };
Elf_Sym toy_symbols[] = { { 0 }, { 1, 0x12, 0, 1, (uint64_t)toy_text + 0x10, 0x40 }, { 11, 0x11, 0, 3, (uint64_t)toy_data + 8, 8 },
	{ 21, 0x10, 0, 0, 0, 0 } };
char toy_strings[] = "\0toy_ioctl\0toy_count\0elsewhere";
struct linker_file kernel_file = { .refs = 1, .link = { .tqe_next = &toy.lf }, .filename = "kernel", .pathname = "/boot/kernel/kernel", .id = 1,
	.address = btext, .size = 0x100000 };
struct linker_file *toy_deps[] = { &kernel_file };
struct elf_file toy = { .lf = { .refs = 2, .link = { .tqe_next = &plain.lf }, .filename = "toy.ko", .pathname = "/boot/modules/toy.ko", .id = 2,
	.address = toy_text, .size = 8192, .ndeps = 1, .deps = toy_deps }, .address = toy_text, .progtab = toy_sections, .nprogtab = 2,
	.ddbsymtab = toy_symbols, .ddbsymcnt = 4, .ddbstrtab = toy_strings, .ddbstrcnt = sizeof(toy_strings) };
struct linker_file *plain_deps[] = { &kernel_file, &toy.lf };
struct elf_file plain = { .lf = { .refs = 1, .filename = "plain.ko", .id = 3, .address = plain_text, .size = 256, .ndeps = 2, .deps = plain_deps },
	.address = 0 };
TAILQ_HEAD(files, linker_file) linker_files = { &kernel_file };

/* what the kernel tells debuggers */
#define TELL(prefix, type, member) const int prefix##member = __builtin_offsetof(struct type, member)
TELL(proc_off_, proc, p_pid); TELL(proc_off_, proc, p_comm); TELL(proc_off_, proc, p_list); TELL(proc_off_, proc, p_hash);
TELL(proc_off_, proc, p_threads); TELL(thread_off_, thread, td_tid); TELL(thread_off_, thread, td_name);
TELL(thread_off_, thread, td_oncpu); TELL(thread_off_, thread, td_pcb); TELL(thread_off_, thread, td_plist);
