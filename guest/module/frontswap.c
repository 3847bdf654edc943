// SPDX-License-Identifier: GPL-2.0-only
/*
 * Source "frontswap": the kernel offers each page to be swapped out here, before the swap device.
 * 5.10 only: frontswap_register_ops() is not exported since 5.17 (360be5daa33f), and has been gone
 * since 6.6.
 *
 * A load that fails makes the kernel read the swap device instead. So this source has one of its
 * own, /dev/tmemf0, on which only the header can be read: a lost page is then an error for one
 * process, never an older page. Pages of other swap devices are left alone.
 */
#include <linux/err.h>
#include <linux/frontswap.h>
#include <linux/module.h>
#include <linux/sched.h>

#include "tmem.h"

static unsigned int frontswap_mib;
module_param(frontswap_mib, uint, 0444);
MODULE_PARM_DESC(frontswap_mib, "MiB of /dev/tmemf0, frontswap's swap device (0: no frontswap)");

static struct tmem_stats stats = { .name = "frontswap" };
static struct tmem_pool *pool;
static struct tmem_disk *disk;
/* The kernel's number of our swap device while it is on. */
static int our_type = -1;

/*
 * In swapon(2), between the opening of the device and the first page: by the task that has it open.
 */
static void source_init(unsigned int type)
{
	if (tmem_disk_owner(disk) == current)
		WRITE_ONCE(our_type, type);
	else if (READ_ONCE(our_type) == type)
		WRITE_ONCE(our_type, -1);
}

static bool ours(unsigned int type)
{
	return READ_ONCE(our_type) == type;
}

static int source_store(unsigned int type, pgoff_t offset, struct page *page)
{
	if (!ours(type) || offset >= pool->count)
		return -1;
	return tmem_pool_put(pool, offset, page) ? -1 : 0;
}

static int source_load(unsigned int type, pgoff_t offset, struct page *page)
{
	if (!ours(type) || offset >= pool->count)
		return -1;
	return tmem_pool_get(pool, offset, page) ? -1 : 0;
}

/* Under a spin lock of the swap device. */
static void source_invalidate_page(unsigned int type, pgoff_t offset)
{
	if (ours(type) && offset < pool->count)
		tmem_pool_flush(pool, offset);
}

/* In swapoff(2); all pages are back. */
static void source_invalidate_area(unsigned int type)
{
	if (!ours(type))
		return;
	tmem_pool_flush_all(pool);
	WRITE_ONCE(our_type, -1);
}

static struct frontswap_ops operations = {
	.init = source_init,
	.store = source_store,
	.load = source_load,
	.invalidate_page = source_invalidate_page,
	.invalidate_area = source_invalidate_area,
};

int tmem_frontswap_init(struct tmem_channel *channel)
{
	/* "tmem-frs" */
	static const u64 uuid[2] = { 0x7372662d6d656d74ULL, 0 };
	u32 pages = frontswap_mib << (20 - PAGE_SHIFT);

	if (!frontswap_mib)
		return 0;
	if (frontswap_mib > U32_MAX >> (20 - PAGE_SHIFT))
		return -EINVAL;
	pool = tmem_pool_create(channel, &stats, uuid, pages);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	disk = tmem_disk_create("tmemf0", pages, pool, TMEM_DISK_HEADER_ONLY);
	if (IS_ERR(disk)) {
		tmem_pool_destroy(pool);
		return PTR_ERR(disk);
	}
	tmem_debugfs_add(&stats);
	return 0;
}

/* Only before registration. */
void tmem_frontswap_exit(void)
{
	if (IS_ERR_OR_NULL(disk))
		return;
	tmem_disk_destroy(disk);
	tmem_pool_destroy(pool);
}

void tmem_frontswap_register(void)
{
	if (IS_ERR_OR_NULL(disk))
		return;
	__module_get(THIS_MODULE);
	frontswap_register_ops(&operations);
}
