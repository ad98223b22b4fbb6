/* The last page of a process's stack: its arguments and environment, and at its end what leads to them. */
#include "kernel.h"

struct user_page { char *argv[4], *envp[4]; char words[8][32]; char blank[4096 - 64 - 256 - sizeof(struct ps_strings)]; struct ps_strings strings; };
struct user_page user_page = {
	.argv = { user_page.words[0], user_page.words[1], user_page.words[2] },
	.envp = { user_page.words[3], user_page.words[4] },
	.words = { "make", "-j", "all the \xff", "HOME=/usr/home", "EMPTY=" },
	.strings = { user_page.argv, 3, user_page.envp, 2 } };
