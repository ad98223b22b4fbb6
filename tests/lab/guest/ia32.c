/* The zoo's 32-bit process: no library, asleep in pause(2) by int $0x80. */

__attribute__((noinline)) static int system_call(int number)
{
	int result;

	__asm__ volatile("int $0x80" : "=a"(result) : "0"(number) : "memory");
	return result;
}

void _start(void)
{
	for (;;)
		system_call(29);	/* pause, arch/x86/entry/syscalls/syscall_32.tbl */
}
