// SPDX-License-Identifier: GPL-2.0-only
/*
 * Puts the module together: self-tests, sources, then the channel, which attaches the sources'
 * pools.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>

#include "tmem.h"

static char *channel = "virtio";
module_param(channel, charp, 0444);
MODULE_PARM_DESC(channel, "How requests reach the host: virtio, serial, or local (tests) (virtio)");

static bool selftest;
module_param(selftest, bool, 0444);
MODULE_PARM_DESC(selftest, "Run the self-tests; loading fails if one does (false)");

static struct tmem_channel the_channel;

static const struct {
	const char *name;
	int (*init)(struct tmem_channel *channel);
	void (*exit)(void);
} channels[] = {
	{ "virtio", tmem_virtio_init, tmem_virtio_exit },
	{ "serial", tmem_serial_init, tmem_serial_exit },
	{ "local", tmem_local_init, tmem_local_exit },
};

static int chosen = -1;

static int choose(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(channels); i++)
		if (!strcmp(channel, channels[i].name)) {
			chosen = i;
			return 0;
		}
	pr_err("there is no channel %s\n", channel);
	return -EINVAL;
}

static int __init tmem_init(void)
{
	int err;

	err = choose();
	if (err)
		return err;
	err = tmem_pools_init();
	if (err)
		return err;
	if (selftest) {
		err = tmem_selftest_run();
		if (err)
			goto err_pools;
	}
	tmem_debugfs_init();
	tmem_channel_init(&the_channel, NULL);
	err = tmem_blkdev_init(&the_channel);
	if (err)
		goto err_debugfs;
	err = tmem_frontswap_init(&the_channel);
	if (err)
		goto err_blkdev;
	err = tmem_cleancache_init(&the_channel);
	if (err)
		goto err_frontswap;
	err = channels[chosen].init(&the_channel);
	if (err)
		goto err_cleancache;
	tmem_debugfs_add_channel(&the_channel);
	/* nothing may fail from here on: the kernel does not let go of hooks */
	tmem_frontswap_register();
	tmem_cleancache_register();
	return 0;

err_cleancache:
	tmem_cleancache_exit();
err_frontswap:
	tmem_frontswap_exit();
err_blkdev:
	tmem_blkdev_exit();
err_debugfs:
	tmem_debugfs_exit();
err_pools:
	tmem_pools_exit();
	return err;
}

/* Never with hooks: they hold a reference. */
static void __exit tmem_exit(void)
{
	/* first what asks, then what carries */
	tmem_blkdev_exit();
	channels[chosen].exit();
	tmem_debugfs_exit();
	tmem_pools_exit();
}

module_init(tmem_init);
module_exit(tmem_exit);
MODULE_DESCRIPTION("Transcendent memory for KVM guests");
MODULE_AUTHOR("The kvm-tmem developers");
MODULE_LICENSE("GPL");
MODULE_VERSION(TMEM_MODULE_VERSION);
