// SPDX-License-Identifier: BSD-2-Clause
/*
 * The demo guest's processes. One static program, many names: the name it is started by says what it does.
 *
 *	librarian LINE		opens /proc/shelf, waits for SIGUSR1, writes LINE into it; on CPU 1
 *	catalogue		four threads, three of them with names of their own
 *	counter			computes all the time, at nice 5, on CPU 0
 *	doorman PATH		listens on a Unix socket and holds both ends of one connection
 *	parent			has a child that is dead and not waited for, and one that is stopped
 *	clerk ...		sleeps; what matters are its arguments and environment
 *	painter TITLE		sleeps after it wrote TITLE over its own arguments
 *	notes			holds a pipe, an epoll instance and a deleted file
 *	as UID PROGRAM ARGUMENTS...	becomes that user, then that program
 *	load-crash-kernel KERNEL INITRD COMMAND-LINE
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <linux/kexec.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(1);
}

static void stay_on_cpu(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
}

static _Noreturn void sleep_for_ever(void)
{
	for (;;)
		pause();
}

static int librarian(const char *line)
{
	sigset_t signals;
	int number, fd = open("/proc/shelf", O_WRONLY);

	if (fd < 0)
		die("/proc/shelf");
	stay_on_cpu(1);
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	sigwait(&signals, &number);
	if (write(fd, line, strlen(line)) < 0)
		die("write");
	return 0;
}

static void *thread(void *name)
{
	prctl(PR_SET_NAME, name);
	sleep_for_ever();
}

static int catalogue(void)
{
	static char *names[] = {"indexer", "sorter", "card printer"};
	pthread_t id;

	for (int i = 0; i < 3; i++)
		if (pthread_create(&id, NULL, thread, names[i]))
			die("pthread_create");
	sleep_for_ever();
}

static _Noreturn void counter(void)
{
	volatile unsigned long count = 0;

	stay_on_cpu(0);
	nice(5);
	for (;;)
		count++;
}

static int doorman(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), caller = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 4))
		die(path);
	if (connect(caller, (struct sockaddr *)&address, sizeof(address)))
		die("connect");
	accept(listener, NULL, NULL);
	accept(listener, NULL, NULL);		/* nobody comes: waits for ever */
	return 0;
}

static int parent(void)
{
	pid_t child;

	if (!fork()) {
		prctl(PR_SET_NAME, "ghost");
		_exit(3);
	}
	child = fork();
	if (!child) {
		prctl(PR_SET_NAME, "statue");
		sleep_for_ever();
	}
	usleep(100000);
	kill(child, SIGSTOP);
	sleep_for_ever();
}

static int painter(char **argv)
{
	size_t room = strlen(argv[0]) + 1 + strlen(argv[1]);
	char *title = strdup(argv[1]);

	memset(argv[0], 0, room);
	strncpy(argv[0], title, room);
	sleep_for_ever();
}

static int notes(void)
{
	int ends[2], fd = open("/tmp/draft", O_CREAT | O_RDWR, 0600);
	struct epoll_event event = {.events = EPOLLIN};

	if (fd < 0 || pipe(ends))
		die("/tmp/draft");
	unlink("/tmp/draft");
	if (write(fd, "to be written\n", 14) != 14)
		die("write");
	fd = epoll_create1(0);
	epoll_ctl(fd, EPOLL_CTL_ADD, ends[0], &event);
	epoll_wait(fd, &event, 1, -1);
	return 0;
}

static int as(char **argv)
{
	uid_t uid = atoi(argv[1]);

	if (setgroups(1, &uid) || setgid(uid) || setuid(uid))
		die("setuid");
	execvp(argv[2], argv + 2);
	die(argv[2]);
}

static int load_crash_kernel(char **argv)
{
	int kernel = open(argv[1], O_RDONLY), initrd = open(argv[2], O_RDONLY);

	if (kernel < 0 || initrd < 0)
		die("open");
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], KEXEC_FILE_ON_CRASH))
		die("kexec_file_load");
	return 0;
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];

	if (!strcmp(name, "librarian") && argc == 2)
		return librarian(argv[1]);
	if (!strcmp(name, "catalogue"))
		return catalogue();
	if (!strcmp(name, "counter"))
		counter();
	if (!strcmp(name, "doorman") && argc == 2)
		return doorman(argv[1]);
	if (!strcmp(name, "parent"))
		return parent();
	if (!strcmp(name, "painter") && argc == 2)
		return painter(argv);
	if (!strcmp(name, "notes"))
		return notes();
	if (!strcmp(name, "as") && argc > 2)
		return as(argv);
	if (!strcmp(name, "load-crash-kernel") && argc == 4)
		return load_crash_kernel(argv);
	if (!strcmp(name, "clerk"))
		sleep_for_ever();
	fprintf(stderr, "%s: not an animal of this zoo, or wrong arguments\n", name);
	return 2;
}
