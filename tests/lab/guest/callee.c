/*
 * The library of the zoo's caller, compiled with -g -O0: where its threads go to sleep.  README.md lists the values.
 */
#include <unistd.h>

struct place {
	int x, y;
	const char *name;
};

int callees = 4711;

/* how: 1 sleeps in pause(2), anything else in clock_nanosleep(2) */
int b(int how, const struct place *place)
{
	char label[8] = "callee";
	long sum = place->x + place->y;

	callees++;
	for (;;) {
		if (how == 1)
			pause();
		else
			sleep(1000000);
		sum += label[0];
	}
	return sum;
}
