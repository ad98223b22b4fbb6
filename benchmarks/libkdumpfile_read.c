/*
 * The peer of image_read.py: read pages by address through libkdumpfile's C interface, and tell the CPU time.
 *
 * usage: libkdumpfile_read FILE SIZE [linux] < ADDRESSES
 * One hexadecimal address a line; SIZE bytes are read at each. They are physical, with `linux` the kernel's virtual ones.
 * prints: CPU nanoseconds of the reads, number of reads that gave all bytes, sum of the first byte of every page
 *
 * Only the few declarations that are needed stand here, so that the library is enough and its headers are not needed.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct kdump_ctx kdump_ctx_t;
kdump_ctx_t *kdump_new(void);
int kdump_open_fdset(kdump_ctx_t *ctx, unsigned count, const int *descriptors);
int kdump_read(kdump_ctx_t *ctx, int address_space, unsigned long address, void *buffer, size_t *size);
const char *kdump_get_err(kdump_ctx_t *ctx);

enum { MACHINE_PHYSICAL = 1, KERNEL_VIRTUAL = 2, STRING = 4, PAGE = 4096 };

struct attribute {
	int type;
	union {
		unsigned long number;
		const char *string;
	} value;
};
int kdump_set_attr(kdump_ctx_t *ctx, const char *key, const struct attribute *value);

static long long now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int argc, char **argv)
{
	size_t count = 0, room = 1 << 16, size, good = 0;
	unsigned long *addresses = malloc(room * sizeof *addresses), sum = 0;
	unsigned char *buffer;
	kdump_ctx_t *ctx = kdump_new();
	long long began;
	int descriptor, space = argc == 4 ? KERNEL_VIRTUAL : MACHINE_PHYSICAL;

	if (argc < 3 || argc > 4 || !ctx || !addresses)
		return 2;
	size = strtoul(argv[2], NULL, 0);
	buffer = malloc(size);
	descriptor = open(argv[1], O_RDONLY);
	if (!buffer || descriptor < 0 || kdump_open_fdset(ctx, 1, &descriptor)) {
		fprintf(stderr, "%s: %s\n", argv[1], kdump_get_err(ctx));
		return 1;
	}
	if (argc == 4) {
		struct attribute system = { STRING, { .string = argv[3] } };

		if (kdump_set_attr(ctx, "addrxlat.ostype", &system)) {
			fprintf(stderr, "%s: %s\n", argv[1], kdump_get_err(ctx));
			return 1;
		}
	}
	while (scanf("%lx", &addresses[count]) == 1)
		if (++count == room && !(addresses = realloc(addresses, (room *= 2) * sizeof *addresses)))
			return 2;
	began = now();
	for (size_t i = 0; i < count; i++) {
		size_t length = size;

		if (kdump_read(ctx, space, addresses[i], buffer, &length) == 0 && length == size)
			good++;
		for (size_t at = 0; at < size; at += PAGE)
			sum += buffer[at];
	}
	printf("%lld %zu %lu\n", now() - began, good, sum);
	return 0;
}
