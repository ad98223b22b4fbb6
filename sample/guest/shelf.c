// SPDX-License-Identifier: GPL-2.0
/*
 * The demo's library: a list of books, a list of readers, lend and give back.
 *
 * It has the bug that the demo is about: a book that nobody has can be given back. take_back() then follows the
 * book's reader, which is NULL.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "shelf.h"

static LIST_HEAD(books);
static LIST_HEAD(readers);

static const char *const titles[] = {
	"The Design of the UNIX Operating System", "Computer Networks", "The C Programming Language",
	"Structure and Interpretation", "The Art of Computer Programming", "A Commentary on UNIX",
	"The Mythical Man-Month", "Programming Pearls",
};

static struct book *find_book(unsigned int number)
{
	struct book *book;

	list_for_each_entry(book, &books, node)
		if (book->number == number)
			return book;
	return NULL;
}

static struct reader *find_or_add_reader(const char *name)
{
	struct reader *reader;

	list_for_each_entry(reader, &readers, node)
		if (!strcmp(reader->name, name))
			return reader;
	reader = kzalloc(sizeof(*reader), GFP_KERNEL);
	if (!reader)
		return NULL;
	strscpy(reader->name, name, sizeof(reader->name));
	list_add_tail(&reader->node, &readers);
	return reader;
}

int shelf_lend(unsigned int number, const char *name)
{
	struct book *book = find_book(number);
	struct reader *reader;

	if (!book)
		return -ENOENT;
	if (book->reader)
		return -EBUSY;
	reader = find_or_add_reader(name);
	if (!reader)
		return -ENOMEM;
	book->reader = reader;
	book->loans++;
	reader->books++;
	pr_info("shelf: '%s' goes to %s\n", book->title, reader->name);
	return 0;
}
EXPORT_SYMBOL_GPL(shelf_lend);

static noinline void take_back(struct book *book)
{
	struct reader *reader = book->reader;

	reader->books--;		/* the bug: nobody asked whether there is a reader */
	book->reader = NULL;
	pr_info("shelf: '%s' comes back from %s\n", book->title, reader->name);
}

int shelf_give_back(unsigned int number)
{
	struct book *book = find_book(number);

	if (!book)
		return -ENOENT;
	take_back(book);
	return 0;
}
EXPORT_SYMBOL_GPL(shelf_give_back);

void shelf_show(struct seq_file *file)
{
	struct book *book;

	list_for_each_entry(book, &books, node)
		seq_printf(file, "%u\t%s\t%s\t%u\n", book->number, book->title,
			   book->reader ? book->reader->name : "-", book->loans);
}
EXPORT_SYMBOL_GPL(shelf_show);

static void free_lists(void)
{
	struct book *book, *next_book;
	struct reader *reader, *next_reader;

	list_for_each_entry_safe(book, next_book, &books, node)
		kfree(book);
	list_for_each_entry_safe(reader, next_reader, &readers, node)
		kfree(reader);
}

static int __init shelf_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(titles); i++) {
		struct book *book = kzalloc(sizeof(*book), GFP_KERNEL);

		if (!book) {
			free_lists();
			return -ENOMEM;
		}
		book->number = i + 1;
		strscpy(book->title, titles[i], sizeof(book->title));
		list_add_tail(&book->node, &books);
	}
	pr_info("shelf: %zu books\n", ARRAY_SIZE(titles));
	return 0;
}

static void __exit shelf_exit(void)
{
	free_lists();
}

module_init(shelf_init);
module_exit(shelf_exit);
MODULE_DESCRIPTION("Books and readers, with a bug (kvm_dbg demo)");
MODULE_LICENSE("GPL");
