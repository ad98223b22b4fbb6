// SPDX-License-Identifier: GPL-2.0
/*
 * The demo's door: /proc/shelf. Reading lists the books; it understands two lines written to it:
 *
 *	lend NUMBER NAME
 *	return NUMBER
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/uaccess.h>

#include "shelf.h"

struct order {
	char verb[8];
	unsigned int number;
	char name[24];
};

static unsigned int orders_done, orders_refused;

static noinline int carry_out(struct order *order)
{
	int status = -EINVAL;

	if (!strcmp(order->verb, "lend") && order->name[0])
		status = shelf_lend(order->number, order->name);
	else if (!strcmp(order->verb, "return"))
		status = shelf_give_back(order->number);
	if (status)
		orders_refused++;
	else
		orders_done++;
	return status;
}

static ssize_t shelf_proc_write(struct file *file, const char __user *buffer, size_t size, loff_t *offset)
{
	struct order order = {};
	char line[64];
	int status;

	if (size >= sizeof(line))
		return -E2BIG;
	if (copy_from_user(line, buffer, size))
		return -EFAULT;
	line[size] = '\0';
	if (sscanf(line, "%7s %u %23s", order.verb, &order.number, order.name) < 2)
		return -EINVAL;
	status = carry_out(&order);
	return status ? status : size;
}

static int shelf_proc_show(struct seq_file *file, void *unused)
{
	shelf_show(file);
	return 0;
}

static int shelf_proc_open(struct inode *inode, struct file *file)
{
	return single_open(file, shelf_proc_show, NULL);
}

static const struct proc_ops shelf_proc_ops = {
	.proc_open = shelf_proc_open,
	.proc_read = seq_read,
	.proc_write = shelf_proc_write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static int __init shelf_proc_init(void)
{
	return proc_create("shelf", 0666, NULL, &shelf_proc_ops) ? 0 : -ENOMEM;
}

static void __exit shelf_proc_exit(void)
{
	remove_proc_entry("shelf", NULL);
}

module_init(shelf_proc_init);
module_exit(shelf_proc_exit);
MODULE_DESCRIPTION("/proc/shelf (kvm_dbg demo)");
MODULE_LICENSE("GPL");
