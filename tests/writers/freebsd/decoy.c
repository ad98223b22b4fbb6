/* The other `struct elf_file`, of sys/kern/link_elf.c: for files that are not relocatable. Debug information has both. */
struct elf_file { char lf[144]; int preloaded; char *address; void *dynamic; unsigned nbuckets; };
struct elf_file *link_elf_first;
