// SPDX-License-Identifier: GPL-2.0-only
/*
 * tmem: the guest's side of transcendent memory for KVM.
 *
 * Loading and unloading, and the parameters. What the module speaks is
 * guest/abi/tmem_abi.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/moduleparam.h>

#include "tmem.h"

static bool selftest;
module_param(selftest, bool, 0444);
MODULE_PARM_DESC(selftest, "run the self-tests first, and do not load when one fails");

static int __init tmem_init(void)
{
	int err;

	if (selftest) {
		err = tmem_selftest_run();
		if (err)
			return err;
	}
	tmem_debugfs_init();
	return 0;
}

static void __exit tmem_exit(void)
{
	tmem_debugfs_exit();
}

module_init(tmem_init);
module_exit(tmem_exit);

MODULE_DESCRIPTION("Transcendent memory for guests of KVM");
MODULE_LICENSE("GPL");
MODULE_VERSION(TMEM_MODULE_VERSION);
