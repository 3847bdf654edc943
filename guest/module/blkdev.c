// SPDX-License-Identifier: GPL-2.0-only
/* Source "blkdev": a swap disk whose pages are a swap pool of the host. */
#include <linux/err.h>
#include <linux/module.h>

#include "tmem.h"

static char *blkdev = "tmem0";
module_param(blkdev, charp, 0444);
MODULE_PARM_DESC(blkdev, "Name of the swap disk (tmem0)");

static unsigned int blkdev_mib;
module_param(blkdev_mib, uint, 0444);
MODULE_PARM_DESC(blkdev_mib, "MiB of the swap disk, all of it promised by the host (0: none)");

static bool blkdev_sync = true;
module_param(blkdev_sync, bool, 0444);
MODULE_PARM_DESC(blkdev_sync, "Tell the kernel that the disk is synchronous (true)");

static struct tmem_stats stats = { .name = "blkdev" };
static struct tmem_pool *pool;
static struct tmem_disk *disk;

int tmem_blkdev_init(struct tmem_channel *channel)
{
	/* "tmem-blk": found again when the guest comes back, so that no pool is left behind */
	static const u64 uuid[2] = { 0x6b6c622d6d656d74ULL, 0 };
	u32 pages = blkdev_mib << (20 - PAGE_SHIFT);

	if (!blkdev_mib)
		return 0;
	if (blkdev_mib > U32_MAX >> (20 - PAGE_SHIFT))
		return -EINVAL;
	pool = tmem_pool_create(channel, &stats, uuid, pages);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	disk = tmem_disk_create(blkdev, pages, pool, blkdev_sync ? TMEM_DISK_SYNCHRONOUS : 0);
	if (IS_ERR(disk)) {
		tmem_pool_destroy(pool);
		return PTR_ERR(disk);
	}
	tmem_debugfs_add(&stats);
	return 0;
}

void tmem_blkdev_exit(void)
{
	if (IS_ERR_OR_NULL(disk))
		return;
	tmem_disk_destroy(disk);
	tmem_pool_destroy(pool);
}
