/*
 * The zoo's toiler: sleeps until a byte comes through /tmp/toil, and then keeps CPU 0 busy in the kernel: page faults,
 * datagrams to itself (which are received in a softirq), long system calls for the timer to interrupt.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE = 1 << 20 };

static void wait_for_work(void)
{
	char byte;
	int fd;

	mkfifo("/tmp/toil", 0600);
	fd = open("/tmp/toil", O_RDWR);
	if (read(fd, &byte, 1) != 1)
		exit(1);
	close(fd);
}

__attribute__((noinline)) static void touch(volatile char *pages)
{
	for (size_t offset = 0; offset < SIZE; offset += PAGE)
		pages[offset] = 1;
}

__attribute__((noinline)) static void send_to_self(int fd)
{
	char word[8] = "toil";

	if (send(fd, word, sizeof word, 0) != sizeof word || recv(fd, word, sizeof word, 0) != sizeof word)
		exit(2);
}

int main(void)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(7777), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	cpu_set_t first;
	int fd, zero;

	signal(SIGHUP, SIG_IGN);
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	wait_for_work();
	sched_setaffinity(0, sizeof first, &first);
	zero = open("/dev/zero", O_RDONLY);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (bind(fd, (struct sockaddr *)&here, sizeof here) || connect(fd, (struct sockaddr *)&here, sizeof here))
		exit(3);
	for (;;) {
		char *pages = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		touch(pages);
		for (int i = 0; i < 4; i++) {
			send_to_self(fd);
			if (read(zero, pages, SIZE) != SIZE)
				exit(4);
		}
		munmap(pages, SIZE);
	}
}
