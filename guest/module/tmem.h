/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the module share. */
#ifndef TMEM_H
#define TMEM_H

#include <linux/types.h>

#define TMEM_MODULE_VERSION "0.1.0"

/* debugfs.c: /sys/kernel/debug/tmem. Where there is no debugfs, nothing else is missing. */
void tmem_debugfs_init(void);
void tmem_debugfs_exit(void);

/* selftest.c: 0, or the error of the first test that failed. */
int tmem_selftest_run(void);

#endif
