/*
 * The structures of a FreeBSD/amd64 kernel as far as its processes, files, memory and modules are found by them.
 *
 * Members stand in the order and with the types of FreeBSD's headers; what nothing here needs is left out or is a
 * blank. RELEASE is 10, 12, 13, 14 or 15, and chooses what changed:
 *   10 -> 12  td_oncpu and td_lastcpu are ints, and no unsigned chars; the time of the boot is a part of the timehands;
 *             pm_cr3 has the address of a process's top page table; names of files with times begin where all names do.
 *   12 -> 13  zombies are on allproc (no zombproc); map entries form a threaded tree (no prev and next, the list's ends
 *             are in left and right); v_type is a bit-field; fd_lastfile is gone; pm_pml4 is called pm_pmltop.
 *   13 -> 14  v_type is an enum of one byte; the address of ps_strings is counted from the stack's top
 *             (vm_stacktop, sv_psstringssz), not kept in the system vector (sv_psstrings).
 *   14 -> 15  credentials have cr_gid, which the groups do not repeat; processes are never swapped out.
 * Sources: sys/sys/{proc,ucred,filedesc,file,vnode,tty,conf,mount,linker,sysent,imgact,exec,msgbuf,resource,timetc}.h,
 * sys/vm/{vm_map,vm_object,pmap}.h, sys/amd64/include/pmap.h, sys/kern/{vfs_cache,link_elf_obj,kern_tc}.c,
 * sys/ufs/ufs/inode.h.
 */
typedef unsigned char u_char, uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int u_int, uint32_t, uid_t, gid_t, fixpt_t;
typedef unsigned long u_long, uint64_t, size_t, vm_offset_t, vm_size_t, ino_t;
typedef long int64_t, off_t, time_t;
typedef int pid_t, lwpid_t;
typedef char *caddr_t;

#define LIST_HEAD(name, type) struct name { struct type *lh_first; }
#define LIST_ENTRY(type) struct { struct type *le_next; struct type **le_prev; }
#define TAILQ_HEAD(name, type) struct name { struct type *tqh_first; struct type **tqh_last; }
#define TAILQ_ENTRY(type) struct { struct type *tqe_next; struct type **tqe_prev; }

struct timeval { time_t tv_sec; long tv_usec; };
struct bintime { time_t sec; uint64_t frac; };
struct loadavg { fixpt_t ldavg[3]; long fscale; };
struct msgbuf { char *msg_ptr; u_int msg_magic; u_int msg_size; u_int msg_wseq; u_int msg_rseq; };
struct timecounter { void *tc_get_timecount; void *tc_poll_pps; u_int tc_counter_mask; uint64_t tc_frequency; };
struct timehands {
	struct timecounter *th_counter; int64_t th_adjustment;
#if RELEASE >= 12
	struct bintime th_boottime;
#endif
};

struct pargs { u_int ar_ref; u_int ar_length; u_char ar_args[1]; };
struct ps_strings { char **ps_argvstr; u_int ps_nargvstr; char **ps_envstr; u_int ps_nenvstr; };

struct ucred {
	long cr_ref;
	u_int cr_users, cr_flags;
#if RELEASE >= 15
	int cr_ngroups;
#endif
	uid_t cr_uid, cr_ruid, cr_svuid;
#if RELEASE >= 15
	gid_t cr_gid;
#else
	int cr_ngroups;
#endif
	gid_t cr_rgid, cr_svgid;
	void *cr_uidinfo, *cr_prison;
	gid_t *cr_groups;
	int cr_agroups;
	gid_t cr_smallgroups[16];
};

struct prison { char blank[32]; char pr_name[64]; char pr_hostname[256]; };

struct cdev { u_int si_flags; int si_refcount; char si_name[64]; };
struct cdev_priv { struct cdev cdp_c; ino_t cdp_inode; u_int cdp_flags; };
struct tty { void *t_mtx; u_int t_flags; struct pgrp *t_pgrp; struct session *t_session; struct cdev *t_dev; };
struct session {
	u_int s_count; struct proc *s_leader; struct vnode *s_ttyvp; struct cdev_priv *s_ttydp; struct tty *s_ttyp;
	pid_t s_sid; char s_login[40];
};
struct pgrp { LIST_ENTRY(pgrp) pg_hash; LIST_HEAD(, proc) pg_members; struct session *pg_session; pid_t pg_id; };

/* open files */
struct filedescent { struct file *fde_file; void *fde_caps[4]; uint8_t fde_flags; u_int fde_seqc; };
struct fdescenttbl { int fdt_nfiles; struct filedescent fdt_ofiles[]; };
struct filedesc {
	struct fdescenttbl *fd_files; u_long *fd_map;
#if RELEASE < 13
	struct vnode *fd_cdir, *fd_rdir, *fd_jdir; int fd_lastfile;
#endif
	int fd_freefile, fd_refcnt, fd_holdcnt;
};
#if RELEASE >= 13
struct pwd { u_int pwd_refcount; struct vnode *pwd_cdir, *pwd_rdir, *pwd_jdir; };
typedef struct { struct pwd *__ptr; } smrpwd_t;
struct pwddesc { char pd_lock[32]; smrpwd_t pd_pwd; u_int pd_refcount; unsigned short pd_cmask; };
#endif
struct file {
	volatile u_int f_flag, f_count; void *f_data; void *f_ops; struct vnode *f_vnode; struct ucred *f_cred;
	short f_type; short f_vnread_flags; void *f_vnun; off_t f_offset;
};
enum vtype { VNON, VREG, VDIR, VBLK, VCHR, VLNK, VSOCK, VFIFO, VBAD, VMARKER };
struct namecache {
	LIST_ENTRY(namecache) nc_src; TAILQ_ENTRY(namecache) nc_dst; struct namecache *nc_hash; struct vnode *nc_dvp;
	union { struct vnode *nu_vp; u_int nu_neghits; } n_un;
	u_char nc_flag, nc_nlen; char nc_name[];
};
#if RELEASE < 12
struct namecache_ts {
	LIST_ENTRY(namecache) nc_src; TAILQ_ENTRY(namecache) nc_dst; struct namecache *nc_hash; struct vnode *nc_dvp;
	union { struct vnode *nu_vp; u_int nu_neghits; } n_un;
	u_char nc_flag, nc_nlen; struct bintime nc_time, nc_dotdottime; int nc_ticks; char nc_name[];
};
#endif
struct vnode {
#if RELEASE >= 14
	uint8_t v_type;	/* an enum whose type is uint8_t */
	short v_irflag;
#elif RELEASE == 13
	enum vtype v_type:8; short v_irflag;
#else
	const char *v_tag; enum vtype v_type;
#endif
	u_int v_seqc; void *v_op; void *v_data; struct mount *v_mount;
	union { struct mount *v_mountedhere; void *v_unpcb; struct cdev *v_rdev; void *v_fifoinfo; };
	LIST_HEAD(, namecache) v_cache_src; TAILQ_HEAD(, namecache) v_cache_dst; struct namecache *v_cache_dd;
	u_int v_iflag, v_vflag;
};
struct statfs { uint32_t f_version, f_type; int f_fsid[2]; char f_fstypename[16]; char f_mntfromname[1024]; char f_mntonname[1024]; };
struct mount { int mnt_ref; struct vnode *mnt_vnodecovered; struct statfs mnt_stat; };
struct inode { void *i_ump; uint64_t i_size; ino_t i_number; uint16_t i_mode; short i_nlink; uint32_t i_uid; };
struct devfs_dirent { struct cdev_priv *de_cdp; int de_inode, de_flags; uint16_t de_mode; };

/* memory */
enum obj_type {
#if RELEASE < 14
	OBJT_DEFAULT,
#else
	OBJT_RESERVED,
#endif
	OBJT_SWAP, OBJT_VNODE, OBJT_DEVICE, OBJT_PHYS, OBJT_DEAD
};
struct vm_object {
	char lock[32]; struct vm_object *backing_object; uint64_t backing_object_offset; void *handle; uint64_t size;
	int ref_count; u_char type;
};
struct vm_map_entry {
#if RELEASE < 13
	struct vm_map_entry *prev, *next;
#endif
	struct vm_map_entry *left, *right;
	vm_offset_t start, end, next_read; vm_size_t max_free;
	union { struct vm_object *vm_object; struct vm_map *sub_map; } object;
	int64_t offset; u_int eflags; u_char protection, max_protection; signed char inheritance; uint8_t read_ahead;
	int wired_count;
};
struct vm_map {
	struct vm_map_entry header; int nentries; vm_size_t size; u_int timestamp; u_char needs_wakeup, system_map;
	u_int flags; struct vm_map_entry *root; struct pmap *pmap;
};
struct pmap_statistics { long resident_count, wired_count; };
struct pmap {
	char pm_mtx[32];
#if RELEASE >= 13
	uint64_t *pm_pmltop, *pm_pmltopu;
#else
	uint64_t *pm_pml4, *pm_pml4u;
#endif
#if RELEASE >= 12
	uint64_t pm_cr3, pm_ucr3;
#endif
	struct pmap_statistics pm_stats;
};
struct vmspace {
	struct vm_map vm_map; void *vm_shm; long vm_swrss, vm_tsize, vm_dsize, vm_ssize; caddr_t vm_taddr, vm_daddr, vm_maxsaddr;
	u_int vm_refcnt;
#if RELEASE >= 14
	vm_offset_t vm_stacktop;
#endif
	struct pmap vm_pmap;
};

/* processes and threads */
struct sysentvec {
	int sv_size; void *sv_table; vm_offset_t sv_minuser, sv_maxuser, sv_usrstack;
#if RELEASE < 14
	vm_offset_t sv_psstrings;
#endif
	size_t sv_psstringssz; u_int sv_flags;
};
struct pstats { char p_cru[64]; struct timeval p_start; };
struct rusage_ext { uint64_t rux_runtime, rux_uticks, rux_sticks, rux_iticks, rux_uu, rux_su, rux_tu; };
struct pcb { uint64_t pcb_r15, pcb_r14, pcb_r13, pcb_r12, pcb_rbp, pcb_rsp, pcb_rbx, pcb_rip; char blank[256]; };
struct trapframe {
	uint64_t tf_rdi, tf_rsi, tf_rdx, tf_rcx, tf_r8, tf_r9, tf_rax, tf_rbx, tf_rbp, tf_r10, tf_r11, tf_r12, tf_r13, tf_r14,
	    tf_r15;
	uint32_t tf_trapno; uint16_t tf_fs, tf_gs; uint64_t tf_addr; uint32_t tf_flags; uint16_t tf_es, tf_ds;
	uint64_t tf_err, tf_rip, tf_cs, tf_rflags, tf_rsp, tf_ss;
};
enum td_states { TDS_INACTIVE, TDS_INHIBITED, TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING };
struct thread {
	void *volatile td_lock; struct proc *td_proc; TAILQ_ENTRY(thread) td_plist, td_runq; lwpid_t td_tid;
	int td_flags, td_inhibitors, td_pflags; const void *td_wchan; const char *td_wmesg;
#if RELEASE >= 12
	int td_oncpu, td_lastcpu;
#else
	u_char td_lastcpu, td_oncpu;
#endif
	const char *td_lockname; int td_slptick;
	u_int td_uticks, td_sticks, td_iticks; uint64_t td_runtime, td_incruntime; struct rusage_ext td_rux;
	char td_name[20]; u_char td_pri_class, td_priority; enum td_states td_state;
	struct pcb *td_pcb; vm_offset_t td_kstack; int td_kstack_pages; struct trapframe *td_frame;
};
struct proc {
	LIST_ENTRY(proc) p_list; TAILQ_HEAD(, thread) p_threads; struct ucred *p_ucred; struct filedesc *p_fd;
#if RELEASE >= 13
	void *p_fdtol; struct pwddesc *p_pd;
#endif
	struct pstats *p_stats; int p_flag, p_flag2; enum p_states { PRS_NEW, PRS_NORMAL, PRS_ZOMBIE } p_state;
	pid_t p_pid; LIST_ENTRY(proc) p_hash, p_pglist; struct proc *p_pptr; pid_t p_oppid; struct vmspace *p_vmspace;
	struct rusage_ext p_rux;
	u_char p_lock; struct vnode *p_textvp; int p_numthreads; char p_comm[20]; struct sysentvec *p_sysent;
	struct pargs *p_args; signed char p_nice; struct pgrp *p_pgrp;
};

/* modules */
struct linker_file {
	void *ops; int refs, userrefs, flags; TAILQ_ENTRY(linker_file) link; char *filename, *pathname; int id; caddr_t address;
	size_t size; int ndeps; struct linker_file **deps;
};
typedef struct { uint32_t st_name; u_char st_info, st_other; uint16_t st_shndx; uint64_t st_value, st_size; } Elf_Sym;
typedef struct { void *addr; size_t size; int flags, sec; char *name; } Elf_progent;
struct elf_file {
	struct linker_file lf; int preloaded; caddr_t address; struct vm_object *object; void *e_shdr; Elf_progent *progtab;
	u_int nprogtab; void *relatab; u_int nrelatab; void *reltab; int nreltab; Elf_Sym *ddbsymtab; long ddbsymcnt;
	caddr_t ddbstrtab; long ddbstrcnt; caddr_t shstrtab; long shstrcnt;
};
