/*
 * The lab's zoo: one program, many animals.  The name that it was executed by (its comm) is the animal; the keeper
 * starts all the others (caller, ia32 and toiler have programs of their own), and everybody goes to sleep in a known
 * state.  See README.md for the list.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <pty.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char **arguments;

static void complain(const char *what)
{
	int fd = open("/dev/ttyS1", O_WRONLY | O_NOCTTY);

	dprintf(fd, "WARN zoo %s: %s\n", what, strerror(errno));
	close(fd);
}

static void sleep_forever(void)
{
	for (;;)
		pause();
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
}

/* ---- threads ---- */

static void *named_thread(void *name)
{
	prctl(PR_SET_NAME, name);
	sleep_forever();
	return NULL;
}

static void *futex_thread(void *lock)
{
	prctl(PR_SET_NAME, "waits on futex");
	pthread_mutex_lock(lock);
	return NULL;
}

static void threads(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static const char *const names[] = {"worker one", "worker/two", "fifteen-letters"};
	pthread_t thread;

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		pthread_create(&thread, NULL, named_thread, (void *)names[i]);
	pthread_mutex_lock(&lock);
	pthread_create(&thread, NULL, futex_thread, &lock);
	sleep_forever();
}

/* the main thread has gone: a zombie leader with living threads */
static void headless(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, named_thread, "heir");
	pthread_create(&thread, NULL, named_thread, "spare");
	pthread_exit(NULL);
}

static void manythreads(void)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (int i = 0; i < 40; i++) {
		static char names[40][16];

		snprintf(names[i], 16, "crowd-%d", i);
		pthread_create(&thread, &attributes, named_thread, names[i]);
	}
	sleep_forever();
}

/* ---- states ---- */

static void busy(void)
{
	if (nice(10) < 0)
		complain("nice");
	pin(0);
	for (volatile unsigned long i = 0;; i++)
		;
}

static void stopped(void)
{
	raise(SIGSTOP);
	sleep_forever();
}

static void tracer(void)
{
	pid_t child = fork();

	if (!child) {
		prctl(PR_SET_NAME, "traced");
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGUSR1);
		sleep_forever();
	}
	waitpid(child, NULL, 0);
	sleep_forever();
}

/* three dead children that nobody waits for */
static void undertaker(void)
{
	for (int i = 0; i < 3; i++)
		if (!fork()) {
			prctl(PR_SET_NAME, i == 0 ? "dead" : i == 1 ? "dead by signal" : "(dead) Z 1 (");
			if (i == 1)
				raise(SIGKILL);
			_exit(i);
		}
	sleep_forever();
}

/* the parent of vfork(2) sleeps uninterruptibly until the child lets go */
static void vforker(void)
{
	if (!vfork()) {
		prctl(PR_SET_NAME, "vforked");
		sleep_forever();
	}
}

static int fault_fd;

static void *fault(void *page)
{
	prctl(PR_SET_NAME, "in page fault");
	return (void *)(long)*(volatile char *)page;
}

static void faulter(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range;
	pthread_t thread;
	char *page = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	fault_fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	range.range.start = (unsigned long)page;
	range.range.len = 65536;
	range.mode = UFFDIO_REGISTER_MODE_MISSING;
	if (fault_fd < 0 || ioctl(fault_fd, UFFDIO_API, &api) || ioctl(fault_fd, UFFDIO_REGISTER, &range))
		complain("userfaultfd");
	else
		pthread_create(&thread, NULL, fault, page + 4096);
	sleep_forever();
}

static void pipereader(void)
{
	int ends[2];
	char byte;

	if (pipe(ends) || read(ends[0], &byte, 1) != 1)
		complain("pipe");
}

static void poller(void)
{
	int fd = epoll_create1(0);
	struct epoll_event event;

	epoll_wait(fd, &event, 1, -1);
}

static void realtime(void)
{
	struct sched_param parameter = {.sched_priority = 42};

	if (sched_setscheduler(0, SCHED_FIFO, &parameter))
		complain("SCHED_FIFO");
	sleep_forever();
}

static void batch(void)
{
	struct sched_param parameter = {0};

	sched_setscheduler(0, SCHED_BATCH, &parameter);
	setpriority(0, 0, -7);
	sleep_forever();
}

/* waits for a byte and then brings the kernel down, as root would */
static void crasher(void)
{
	char byte;
	int fd;

	mkfifo("/tmp/crash", 0600);
	fd = open("/tmp/crash", O_RDWR);
	if (read(fd, &byte, 1) != 1)
		complain("crash fifo");
	fd = open("/proc/sysrq-trigger", O_WRONLY);
	if (write(fd, "c", 1) != 1)
		complain("sysrq-trigger");
}

/* ---- users, groups, sessions, terminals ---- */

static void users(uid_t ruid, uid_t euid, uid_t suid, gid_t rgid, gid_t egid, gid_t sgid)
{
	gid_t groups[] = {7, 8, 9, 100000};

	if (setgroups(4, groups) || setresgid(rgid, egid, sgid) || setresuid(ruid, euid, suid))
		complain("users");
	sleep_forever();
}

static void session(void)
{
	setsid();
	if (!fork()) {
		prctl(PR_SET_NAME, "own group");
		setpgid(0, 0);
		sleep_forever();
	}
	if (!fork()) {
		prctl(PR_SET_NAME, "same group");
		sleep_forever();
	}
	sleep_forever();
}

/* a shell-like leader on a pseudo-terminal, one job in the foreground, one in the background */
static void terminal(void)
{
	int master, slave;
	pid_t job;

	setsid();
	signal(SIGTTOU, SIG_IGN);
	if (openpty(&master, &slave, NULL, NULL, NULL) || ioctl(slave, TIOCSCTTY, 0)) {
		complain("pty");
		sleep_forever();
	}
	if (!fork()) {
		prctl(PR_SET_NAME, "background");
		setpgid(0, 0);
		sleep_forever();
	}
	job = fork();
	if (!job) {
		char byte;

		prctl(PR_SET_NAME, "foreground");
		setpgid(0, 0);
		tcsetpgrp(slave, getpid());
		if (read(slave, &byte, 1) != 1)
			complain("tty read");
	}
	setpgid(job, job);
	sleep_forever();
}

static void console(const char *path)
{
	int fd;

	setsid();
	fd = open(path, O_RDWR | O_NOCTTY);
	if (fd < 0 || ioctl(fd, TIOCSCTTY, 0))
		complain(path);
	sleep_forever();
}

/* process 1 of its own PID name space, inside its own user name space */
static void container(void)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC))
		complain("unshare");
	if (!fork()) {
		prctl(PR_SET_NAME, "contained init");
		if (sethostname("contained", 9))
			complain("sethostname");
		if (!fork()) {
			prctl(PR_SET_NAME, "contained");
			sleep_forever();
		}
		sleep_forever();
	}
	sleep_forever();
}

/* ---- arguments and names ---- */

/* overwrite the arguments in place, as setproctitle(3) of old does */
static void title(void)
{
	size_t room = strlen(arguments[0]) + 1 + strlen(arguments[1]) + 1 + strlen(arguments[2]) + 1;

	memset(arguments[0], 0, room);
	snprintf(arguments[0], room, "title: idle");
	sleep_forever();
}

/* write over the end of the arguments into the environment: the kernel then shows it up to the first NUL */
static void longtitle(void)
{
	size_t room = strlen(arguments[0]) + 1 + strlen(arguments[1]) + 1;

	memset(arguments[0], 'T', room + 8);
	arguments[0][room + 8] = 0;
	sleep_forever();
}

static void names(void)
{
	static const char *const odd[] = {"a b", ") R 1 (", "line\nbreak", "caf\xc3\xa9 \xe2\x98\x95", "bad\xff\xfe", "\x1b[31mred",
					  "quote\"back\\", "", "123456789012345"};

	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
		if (!fork()) {
			prctl(PR_SET_NAME, odd[i]);
			sleep_forever();
		}
	sleep_forever();
}

/* ---- files ---- */

static int unix_listener(const char *path, int abstract)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(address.sun_path + abstract, path);
	if (bind(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + abstract + strlen(path)) || listen(fd, 5))
		complain("unix listener");
	return fd;
}

static void tcp(int family)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(6666), .sin6_addr = in6addr_loopback};
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(4444), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr *address = family == AF_INET ? (struct sockaddr *)&four : (struct sockaddr *)&six;
	socklen_t size = family == AF_INET ? sizeof four : sizeof six;
	int listener = socket(family, SOCK_STREAM, 0), client = socket(family, SOCK_STREAM, 0);

	if (bind(listener, address, size) || listen(listener, 7) || connect(client, address, size) || accept(listener, NULL, NULL) < 0)
		complain("tcp");
}

static void files(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(5353)};
	struct itimerspec never = {.it_value.tv_sec = 1000000};
	sigset_t signals;
	int pair[2], fd;

	open("/dev/null", O_RDWR);
	open("/tmp", O_RDONLY | O_DIRECTORY);
	fd = open("/tmp/regular file", O_RDWR | O_CREAT | O_APPEND, 0644);
	if (write(fd, "0123456789", 10) != 10)
		complain("regular file");
	flock(fd, LOCK_EX);
	fd = open("/tmp/deleted", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	unlink("/tmp/deleted");
	open("/tmp/caf\xc3\xa9\nnew line", O_RDWR | O_CREAT, 0600);
	mkdir("/tmp/gone", 0700);
	open("/tmp/gone", O_RDONLY | O_DIRECTORY);
	rmdir("/tmp/gone");
	if (pipe(pair) || pipe2(pair, O_NONBLOCK) || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		complain("pairs");
	unix_listener("/tmp/unix.socket", 0);
	unix_listener("abstract name", 1);
	tcp(AF_INET);
	tcp(AF_INET6);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (bind(fd, (struct sockaddr *)&address, sizeof address))
		complain("udp");
	socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	eventfd(7, 0);
	fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 99};
	epoll_ctl(fd, EPOLL_CTL_ADD, pair[0], &event);
	fd = timerfd_create(CLOCK_MONOTONIC, 0);
	timerfd_settime(fd, 0, &never, NULL);
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR2);
	signalfd(-1, &signals, 0);
	fd = inotify_init();
	inotify_add_watch(fd, "/tmp", IN_CREATE);
	fd = memfd_create("a memfd", 0);
	if (ftruncate(fd, 12345))
		complain("memfd");
	open("/proc/self/status", O_RDONLY);
	open("/bin", O_PATH);
	syscall(SYS_pidfd_open, getpid(), 0);
	open("/dev/ptmx", O_RDWR | O_NOCTTY);
	open("/dev/kmsg", O_RDONLY);
	open("/proc/self/ns/mnt", O_RDONLY);
	dup2(0, 300);		/* grows the table of descriptors */
	if (chdir("/tmp") || chroot("/tmp"))
		complain("chroot");
	sleep_forever();
}

/* ---- memory ---- */

/* a sixteenth of the RAM, at most 64 MiB, in pages that compress like real ones, and a mapping of each kind */
static void hog(void)
{
	size_t share = sysconf(_SC_PHYS_PAGES) / 16 * 4096, limit = 64 << 20;
	size_t size = share < limit ? share : limit;
	unsigned *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned random = 12345;
	int fd = open("/tmp/mapped", O_RDWR | O_CREAT, 0600);
	int segment;

	for (size_t page = 0; page < size / 4096; page++) {
		unsigned entropy = page % 16;		/* words out of 16 that are random */

		for (size_t word = 0; word < 1024; word++) {
			random = random * 1664525 + 1013904223;
			memory[page * 1024 + word] = word % 16 < entropy ? random : (unsigned)(page << 8 | word % 16);
		}
	}
	if (ftruncate(fd, 1 << 20))
		complain("mapped");
	memset(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), 'M', 1 << 20);
	*(int *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) = 1;
	mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mlock(memory, 65536);
	mprotect(memory + 1024, 4096, PROT_NONE);	/* a page that is there and that nobody may read */
	segment = shmget(4711, 65536, IPC_CREAT | 0600);
	memset(shmat(segment, NULL, 0), 'S', 65536);
	msgget(4712, IPC_CREAT | 0600);
	sleep_forever();
}

/* ---- the keeper ---- */

static void spawn(const char *animal, char *const argv[], char *const environment[])
{
	static char *const usual[] = {"PATH=/bin:/usr/bin", "HOME=/root", "LANG=C.UTF-8", NULL};
	char path[64];
	pid_t pid = fork();

	if (pid < 0)
		complain("fork");
	if (pid)
		return;
	for (int fd = 3; fd < 16; fd++)
		close(fd);
	snprintf(path, sizeof path, "/zoo/%s", animal);
	execve(path, argv, environment ? environment : usual);
	complain(path);
	_exit(127);
}

static void keep(const char *animal)
{
	char *argv[] = {(char *)animal, NULL};

	spawn(animal, argv, NULL);
}

static char *repeated(char letter, size_t size)
{
	char *text = malloc(size + 1);

	for (size_t i = 0; i < size; i++)
		text[i] = letter + i % 26;
	text[size] = 0;
	return text;
}

static void keeper(void)
{
	static const char *const animals[] = {"threads", "headless", "manythreads", "stopped", "tracer", "undertaker",
		"vforker", "faulter", "pipereader", "poller", "realtime", "batch", "crasher", "user1000", "setuid", "nobody",
		"bigids", "session", "terminal", "console1", "serial", "container", "names", "files", "hog", "busy", "caller", "ia32",
		"toiler"};
	static char *const nothing[] = {NULL};
	static char *const odd_environment[] = {"EMPTY=", "SPACE=a b  c", "NEWLINE=one\ntwo", "UTF8=caf\xc3\xa9 \xe2\x98\x95",
		"BAD=\xff\xfe\x80", "no equals sign", "", "=starts with equals", "TAB=\t\x01\x1b[0m", NULL};
	static char *const twice_environment[] = {"SECRET=1", "LAST=environment", NULL};
	char *many[2002];
	char *large_environment[3] = {repeated('A', 50000), "AFTER=large", NULL};

	setsid();
	for (size_t i = 0; i < sizeof animals / sizeof *animals; i++)
		keep(animals[i]);
	spawn("spaces", (char *[]){"spaces", "one two", " leading", "trailing ", "  ", "tab\there", NULL}, NULL);
	spawn("newlines", (char *[]){"newlines", "line one\nline two", "\n", NULL}, NULL);
	spawn("utf8", (char *[]){"utf8", "caf\xc3\xa9", "\xe2\x98\x95", "\xf0\x9f\x90\xa7", "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82", NULL}, NULL);
	spawn("badutf8", (char *[]){"badutf8", "\xff\xfe", "\xc3", "\x80 \xed\xa0\x80", "\x1b[31m", NULL}, NULL);
	spawn("emptyarg", (char *[]){"emptyarg", "", "after empty", "", NULL}, NULL);
	spawn("noargs", nothing, NULL);
	spawn("noenv", (char *[]){"noenv", "nothing in my environment", NULL}, nothing);
	spawn("oddenv", (char *[]){"oddenv", NULL}, odd_environment);
	spawn("longarg", (char *[]){"longarg", repeated('a', 100 * 1024), "after", NULL}, NULL);
	many[0] = "manyargs";
	for (int i = 1; i < 2001; i++) {
		many[i] = malloc(16);
		snprintf(many[i], 16, "argument%d", i);
	}
	many[2001] = NULL;
	spawn("manyargs", many, NULL);
	spawn("longenv", (char *[]){"longenv", NULL}, large_environment);
	spawn("title", (char *[]){"title", "first argument", "second argument", NULL}, twice_environment);
	spawn("longtitle", (char *[]){"longtitle", "argument", NULL}, twice_environment);
	spawn("this-name-is-longer-than-fifteen", (char *[]){"a lie about the name", "x", NULL}, NULL);
	sleep(1);
	if (write(3, "!", 1) != 1)
		complain("ready");
	close(3);
	sleep_forever();
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*live)(void);
	} animals[] = {
		{"keeper", keeper}, {"threads", threads}, {"headless", headless}, {"manythreads", manythreads}, {"busy", busy},
		{"stopped", stopped}, {"tracer", tracer}, {"undertaker", undertaker}, {"vforker", vforker}, {"faulter", faulter},
		{"pipereader", pipereader}, {"poller", poller}, {"realtime", realtime}, {"batch", batch}, {"crasher", crasher},
		{"session", session}, {"terminal", terminal}, {"container", container}, {"title", title}, {"longtitle", longtitle},
		{"names", names}, {"files", files}, {"hog", hog},
	};
	char name[16] = "";

	(void)argc;
	arguments = argv;
	prctl(PR_GET_NAME, name);
	signal(SIGHUP, SIG_IGN);
	for (size_t i = 0; i < sizeof animals / sizeof *animals; i++)
		if (!strcmp(name, animals[i].name))
			animals[i].live();
	if (!strcmp(name, "user1000"))
		users(1000, 1000, 1000, 1000, 1000, 1000);
	if (!strcmp(name, "setuid"))
		users(1001, 0, 1002, 2001, 2002, 2003);
	if (!strcmp(name, "nobody"))
		users(65534, 65534, 65534, 65534, 65534, 65534);
	if (!strcmp(name, "bigids"))
		users(4294967290u, 4294967291u, 4294967292u, 3000000000u, 3000000001u, 3000000002u);
	if (!strcmp(name, "console1"))
		console("/dev/tty1");
	if (!strcmp(name, "serial"))
		console("/dev/ttyS0");
	sleep_forever();
}
