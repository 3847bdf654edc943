// SPDX-License-Identifier: GPL-2.0-only
/* Files in /sys/kernel/debug/tmem. */
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "tmem.h"
#include "tmem_abi.h"

static struct dentry *root;

static int version_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "module %s\nabi %u\n", TMEM_MODULE_VERSION,
		   TMEM_ABI_VERSION);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(version);

void tmem_debugfs_init(void)
{
	root = debugfs_create_dir("tmem", NULL);
	debugfs_create_file("version", 0444, root, NULL, &version_fops);
}

void tmem_debugfs_exit(void)
{
	debugfs_remove_recursive(root);
}
