/*
 * The zoo's program with debug information, compiled with -g -O0 as a dynamic, position-independent executable.  Two
 * threads call main() or second(), a(), and b() of libcallee.so, and sleep there.  README.md lists the values.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>

struct place {
	int x, y;
	const char *name;
};

extern int callees;
int b(int how, const struct place *place);

static int a(int how, const char *name)
{
	struct place place = {.x = how * 3, .y = -4, .name = name};
	long long large = 12345678901;
	int result = b(how, &place);

	return result + (int)large;
}

static void *second(void *argument)
{
	double half = 0.5;

	prctl(PR_SET_NAME, "second caller");
	a(2, argument);
	return half > callees ? argument : NULL;
}

int main(int argc, char **argv)
{
	unsigned char bytes[4] = {1, 2, 3, 254};
	pthread_t thread;

	signal(SIGHUP, SIG_IGN);
	if (pthread_create(&thread, NULL, second, "the second thread"))
		return 1;
	return a(1, argc ? argv[0] : "nobody") + bytes[3];
}
