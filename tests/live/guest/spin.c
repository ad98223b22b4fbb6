/* Keeps a CPU busy in one instruction, with a known value in r12. Prints the instruction's address before. */
#include <stdio.h>

extern char place[];

int main(void)
{
    printf("%p\n", (void *)place);
    fflush(stdout);
    __asm__ volatile("movabs $0x1122334455667788, %%r12\n place: jmp place" ::: "r12");
}
