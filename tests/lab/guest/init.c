/*
 * PID 1 of the lab's guest.
 *
 * Loads the modules, starts the zoo, waits until the guest is quiet, and writes what the guest says about itself (the
 * truth) as a tar archive straight onto the block device /dev/vda.  It then says READY on the second serial port and
 * sleeps in read(2) there, so that the dump which the host takes next shows the same state as the truth.
 *
 * In a crash kernel (/proc/vmcore exists) it runs /crash.sh instead.
 *
 * Settings come as environment variables, which the kernel makes from unknown command-line words:
 *   lab_noise=N   put N extra records into the kernel log (long ones, multi-line ones, continuation lines)
 *   lab_kexec=1   load the crash kernel of /crash with kexec -p
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { SECOND_TRUTH = 128 << 20 };	/* byte offset on /dev/vda of the truth taken after the dump */

static int control = -1;		/* /dev/ttyS1 */
static int disk = -1;			/* /dev/vda */
static size_t archived;			/* bytes of the archive so far */
static char buffer[1 << 20];		/* archive bytes that are not yet on the disk */
static size_t buffered;

static void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (control >= 0)
		vdprintf(control, format, arguments);
	va_end(arguments);
}

static void die(const char *what)
{
	say("FAIL %s: %s\n", what, strerror(errno));
	for (;;)
		pause();
}

/* ---- the archive ---- */

static void flush(void)
{
	size_t done = 0;

	while (done < buffered) {
		ssize_t n = write(disk, buffer + done, buffered - done);

		if (n <= 0)
			die("write /dev/vda");
		done += n;
	}
	buffered = 0;
}

static void put(const void *data, size_t size)
{
	const char *from = data;

	archived += size;
	while (size) {
		size_t part = sizeof buffer - buffered;

		if (part > size)
			part = size;
		memcpy(buffer + buffered, from, part);
		buffered += part;
		from += part;
		size -= part;
		if (buffered == sizeof buffer)
			flush();
	}
}

static void put_file(const char *name, const void *data, size_t size)
{
	static const char zeros[512];
	char header[512] = "";
	unsigned sum = 0;

	snprintf(header, 100, "%s", name);
	memcpy(header + 100, "0000644\0000000000\0000000000", 24);
	snprintf(header + 124, 12, "%011zo", size);
	memcpy(header + 136, "00000000000", 12);
	memset(header + 148, ' ', 8);
	header[156] = '0';
	memcpy(header + 257, "ustar\00000", 8);
	for (size_t i = 0; i < sizeof header; i++)
		sum += (unsigned char)header[i];
	snprintf(header + 148, 8, "%06o", sum);
	put(header, sizeof header);
	put(data, size);
	put(zeros, -size % 512);
}

static void open_archive(off_t offset)
{
	if (lseek(disk, offset, SEEK_SET) != offset)
		die("seek /dev/vda");
	archived = buffered = 0;
}

static void close_archive(void)
{
	static const char zeros[512 * 20];

	put(zeros, 1024);
	put(zeros, -archived % 4096);
	flush();
	if (fsync(disk))
		die("fsync /dev/vda");
}

/* ---- what goes into it ---- */

static char *read_all(const char *path, int flags, size_t *size)
{
	static char *data;
	static size_t room;
	int fd = open(path, O_RDONLY | flags);
	size_t have = 0;

	if (fd < 0)
		return NULL;
	for (;;) {
		ssize_t n;

		if (room - have < 65536) {
			room = room ? room * 2 : 1 << 20;
			data = realloc(data, room);
			if (!data)
				die("memory");
		}
		n = read(fd, data + have, room - have);
		if (n < 0 && errno == EPIPE)	/* /dev/kmsg: overtaken by the writer */
			continue;
		if (n <= 0)
			break;
		have += n;
	}
	close(fd);
	*size = have;
	return data;
}

static void keep(const char *path, const char *name)
{
	size_t size;
	char *data = read_all(path, O_NONBLOCK, &size);

	if (data)
		put_file(name, data, size);
}

static void keep_link(const char *path, const char *name)
{
	char target[4097];
	ssize_t size = readlink(path, target, sizeof target);

	if (size >= 0)
		put_file(name, target, size);
}

static int is_number(const char *text)
{
	for (const char *c = text; *c; c++)
		if (!isdigit((unsigned char)*c))
			return 0;
	return *text != 0;
}

static void for_each_entry(const char *directory, void (*visit)(const char *, const char *))
{
	DIR *dir = opendir(directory);
	struct dirent *entry;

	if (!dir)
		return;
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			visit(directory, entry->d_name);
	closedir(dir);
}

static void keep_entry(const char *directory, const char *name)
{
	char path[4096];

	snprintf(path, sizeof path, "%s/%s", directory, name);
	keep(path, path + 1);
}

static void keep_entry_link(const char *directory, const char *name)
{
	char path[4096];

	snprintf(path, sizeof path, "%s/%s", directory, name);
	keep_link(path, path + 1);
}

static void keep_thread(const char *directory, const char *tid)
{
	static const char *const names[] = {"stat", "status", "comm", "wchan", "stack", "syscall", "children", "schedstat"};
	char path[4096];

	if (!is_number(tid))
		return;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", directory, tid, names[i]);
		keep(path, path + 1);
	}
}

static void keep_process(const char *directory, const char *pid)
{
	static const char *const names[] = {"stat", "status", "statm", "cmdline", "environ", "maps", "comm", "wchan",
		"stack", "syscall", "cgroup", "loginuid", "oom_score_adj", "limits", "auxv", "timerslack_ns", "uid_map"};
	static const char *const links[] = {"exe", "cwd", "root"};
	char path[4096];

	if (!is_number(pid))
		return;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", directory, pid, names[i]);
		keep(path, path + 1);
	}
	for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", directory, pid, links[i]);
		keep_link(path, path + 1);
	}
	snprintf(path, sizeof path, "%s/%s/fd", directory, pid);
	for_each_entry(path, keep_entry_link);
	snprintf(path, sizeof path, "%s/%s/fdinfo", directory, pid);
	for_each_entry(path, keep_entry);
	snprintf(path, sizeof path, "%s/%s/ns", directory, pid);
	for_each_entry(path, keep_entry_link);
	snprintf(path, sizeof path, "%s/%s/task", directory, pid);
	for_each_entry(path, keep_thread);
}

static void keep_module(const char *directory, const char *module)
{
	static const char *const names[] = {"coresize", "initsize", "initstate", "refcnt", "taint"};
	char path[4096];

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", directory, module, names[i]);
		keep(path, path + 1);
	}
	snprintf(path, sizeof path, "%s/%s/sections", directory, module);
	/* section names begin with a dot: for_each_entry would skip them */
	DIR *dir = opendir(path);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			keep_entry(path, entry->d_name);
	if (dir)
		closedir(dir);
	snprintf(path, sizeof path, "%s/%s/notes", directory, module);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			keep_entry(path, entry->d_name);
	if (dir)
		closedir(dir);
}

/* /dev/kmsg gives one record per read: keep each followed by a NUL byte */
static void keep_kmsg(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	char record[16384];
	char *all = malloc(64 << 20);
	size_t size = 0;

	while (fd >= 0 && all) {
		ssize_t n = read(fd, record, sizeof record);

		if (n < 0 && errno == EPIPE)
			continue;
		if (n <= 0 || size + n + 1 > 64 << 20)
			break;
		memcpy(all + size, record, n);
		size += n;
		all[size++] = 0;
	}
	if (fd >= 0)
		close(fd);
	if (all)
		put_file("kmsg", all, size);
	free(all);
}

static void keep_log(void)
{
	int room = klogctl(10 /* SYSLOG_ACTION_SIZE_BUFFER */, NULL, 0) * 2;
	char *text = malloc(room);
	int size = text ? klogctl(3 /* SYSLOG_ACTION_READ_ALL */, text, room) : -1;

	if (size >= 0)
		put_file("dmesg.raw", text, size);
	free(text);
	keep_kmsg();
}

static int run(char *const argv[], const char *output)
{
	static char *const environment[] = {"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "COLUMNS=1000", "LANG=C", NULL};
	pid_t pid = fork();
	int status = -1;

	if (!pid) {
		int fd = open(output ? output : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC, 0600);

		dup2(fd, 1);
		dup2(fd, 2);
		execve(argv[0], argv, environment);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	return status;
}

static void keep_output(char *const argv[], const char *name)
{
	run(argv, "/tmp/output");
	keep("/tmp/output", name);
	unlink("/tmp/output");
}

static void keep_slow_things(void)
{
	static const char *const names[] = {"version", "cmdline", "modules", "kallsyms", "iomem", "cpuinfo", "mounts",
		"devices", "tty/drivers", "consoles", "swaps", "filesystems", "partitions", "slabinfo", "vmallocinfo",
		"net/tcp", "net/tcp6", "net/udp", "net/unix", "net/dev", "net/netlink", "net/packet", "config.gz", "sys/kernel/pid_max"};
	static char *const ps[] = {"/bin/ps", "-ww", "-eo",
		"pid,ppid,pgid,sid,uid,ruid,suid,gid,rgid,stat,psr,rss,nlwp,tty,comm", NULL};
	static char *const threads[] = {"/bin/ps", "-ww", "-eLo", "pid,lwp,stat,psr,pri,ni,rtprio,policy,comm", NULL};
	static char *const arguments[] = {"/bin/ps", "-ww", "-eo", "pid,args", NULL};
	static char *const dmesg[] = {"/bin/dmesg", NULL};
	static char *const uname_a[] = {"/bin/busybox", "uname", "-a", NULL};
	char path[4096];

	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		snprintf(path, sizeof path, "/proc/%s", names[i]);
		keep(path, path + 1);
	}
	keep("/sys/kernel/vmcoreinfo", "sys/kernel/vmcoreinfo");
	keep("/sys/kernel/notes", "sys/kernel/notes");
	keep("/sys/kernel/kexec_crash_size", "sys/kernel/kexec_crash_size");
	keep("/sys/devices/system/cpu/online", "sys/devices/system/cpu/online");
	for_each_entry("/sys/module", keep_module);
	keep_output(uname_a, "uname");
	keep_output(dmesg, "dmesg");
	keep_output(ps, "ps");
	keep_output(threads, "ps-threads");
	keep_output(arguments, "ps-args");
}

/* Wait until the load averages have just been recomputed: they then stay for five seconds. */
static void wait_for_load_tick(void)
{
	struct timespec nap = {0, 20000000};
	char first[64] = "", now[64] = "";

	for (int i = 0; i < 600; i++) {
		size_t size;
		char *text = read_all("/proc/loadavg", 0, &size);

		snprintf(now, sizeof now, "%.*s", 14, text ? text : "");
		if (!i)
			strcpy(first, now);
		if (strcmp(first, now))
			return;
		nanosleep(&nap, NULL);
	}
}

static void keep_truth(off_t offset, int second)
{
	open_archive(offset);
	if (!second) {
		keep_slow_things();
		sleep(1);
		wait_for_load_tick();
	}
	keep("/proc/uptime", "proc/uptime.start");
	for_each_entry("/proc", keep_process);
	keep("/proc/meminfo", "proc/meminfo");
	keep("/proc/vmstat", "proc/vmstat");
	keep("/proc/zoneinfo", "proc/zoneinfo");
	keep("/proc/stat", "proc/stat");
	keep("/proc/interrupts", "proc/interrupts");
	keep_log();
	keep("/proc/uptime", "proc/uptime");
	keep("/proc/loadavg", "proc/loadavg");
	close_archive();
}

/* ---- getting there ---- */

static void load_modules(const char *list)
{
	FILE *file = fopen(list, "r");
	char path[4096];

	while (file && fgets(path, sizeof path, file)) {
		int fd;

		path[strcspn(path, "\n")] = 0;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			say("WARN module %s: %s\n", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (file)
		fclose(file);
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	request.ifr_flags = IFF_UP;
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		say("WARN lo: %s\n", strerror(errno));
	close(fd);
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		say("WARN %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void make_noise(int records)
{
	char line[900];

	memset(line, 'x', sizeof line);
	for (int i = 0; i < records; i++) {
		char text[1100];
		int width = i % 97 == 0 ? 890 : i % 7 * 11;

		snprintf(text, sizeof text, "<%d>lab: record %d %.*s%s\n", i % 8, i, width, line,
			 i % 13 == 0 ? "\nsecond line\n\tthird \x01 \xff \xc3\xa9 line" : " end");
		write_text("/dev/kmsg", text);
		if (i % 50 == 0)
			write_text("/proc/sysrq-trigger", "h");	/* a line that the kernel continues with pr_cont() */
	}
}

static void wait_for(const char *path)
{
	struct timespec nap = {0, 50000000};

	for (int i = 0; i < 400 && access(path, F_OK); i++)
		nanosleep(&nap, NULL);
}

static void start_zoo(void)
{
	static char *const argv[] = {"/zoo/keeper", NULL};
	static char *const environment[] = {"PATH=/bin", "HOME=/", NULL};
	int ready[2];
	char byte;

	if (pipe(ready))
		die("pipe");
	if (!fork()) {
		dup2(ready[1], 3);
		execve(argv[0], argv, environment);
		_exit(127);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		die("zoo");
	close(ready[0]);
}

static void crash_kernel(void)
{
	static char *const script[] = {"/bin/busybox", "sh", "/crash.sh", NULL};
	int status;

	wait_for("/dev/vdb");
	status = run(script, "/dev/ttyS0");
	sync();
	say("DUMPED %d\n", status);
	for (;;)
		pause();
}

static void load_crash_kernel(void)
{
	static char *const kexec[] = {"/bin/kexec", "-p", "/crash/vmlinuz", "--initrd=/crash/initrd",
		"--command-line=console=ttyS0 ignore_loglevel irqpoll nr_cpus=1 reset_devices", NULL};
	int status = run(kexec, "/dev/ttyS0");

	if (status)
		say("FAIL kexec -p: status %d\n", status);
}

int main(void)
{
	struct termios raw;
	char line[64];
	int crashed;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/tmp", 01777);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	mkdir("/dev/pts", 0755);
	mkdir("/dev/shm", 01777);
	mount("devpts", "/dev/pts", "devpts", 0, NULL);
	control = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (control >= 0 && !tcgetattr(control, &raw)) {
		cfmakeraw(&raw);
		tcsetattr(control, TCSANOW, &raw);
	}
	say("HELLO\n");
	crashed = !access("/proc/vmcore", F_OK);
	load_modules("/modules/list");
	wait_for("/dev/vda");
	if (crashed)
		crash_kernel();
	disk = open("/dev/vda", O_RDWR | O_CLOEXEC);
	if (disk < 0)
		die("open /dev/vda");
	loopback_up();
	if (getenv("lab_kexec"))
		load_crash_kernel();
	if (getenv("lab_noise"))
		make_noise(atoi(getenv("lab_noise")));
	start_zoo();
	say("ZOO\n");
	sleep(2);
	keep_truth(0, 0);
	say("READY\n");
	for (;;) {
		ssize_t n = read(control, line, sizeof line - 1);

		if (n <= 0)
			continue;
		line[n] = 0;
		if (strstr(line, "again")) {
			keep_truth(SECOND_TRUTH, 1);
			say("READY\n");
		}
		if (strstr(line, "toil")) {
			write_text("/tmp/toil", "t");
			say("TOILING\n");
		}
		if (strstr(line, "panic"))
			write_text("/tmp/crash", "c");
		if (strstr(line, "off"))
			reboot(RB_POWER_OFF);
	}
}
