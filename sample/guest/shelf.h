/* SPDX-License-Identifier: GPL-2.0 */
/* A shelf of books and the people who read them: what the demo's two modules share. */
#ifndef DEMO_SHELF_H
#define DEMO_SHELF_H

#include <linux/list.h>
#include <linux/seq_file.h>

struct reader {
	char name[24];
	unsigned int books;		/* lent to this reader now */
	struct list_head node;		/* in readers */
};

struct book {
	unsigned int number;
	char title[40];
	struct reader *reader;		/* who has it; NULL: it stands on the shelf */
	unsigned int loans;		/* how often it was lent, ever */
	struct list_head node;		/* in books */
};

int shelf_lend(unsigned int number, const char *name);
int shelf_give_back(unsigned int number);
void shelf_show(struct seq_file *file);

#endif
