// SPDX-License-Identifier: GPL-2.0-only
/*
 * The gendisk around a pool. Everything is done before submit_bio returns, and the kernel is told
 * so: it then reads a page in without readahead and without a second look at the swap cache
 * (SWP_SYNCHRONOUS_IO).
 *
 * Before 6.3 that flag is set for whatever has rw_page (3222d8c2a7f8, "block: remove ->rw_page");
 * since 6.11 for BLK_FEAT_SYNCHRONOUS. In between there is a queue flag, which no kernel this
 * module is for has.
 */
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 17, 0) /* 322cbb50de71: genhd.h is part of blkdev.h */
#include <linux/genhd.h>
#endif

#include "tmem.h"

#define TMEM_SECTORS_SHIFT	(PAGE_SHIFT - SECTOR_SHIFT)

struct tmem_disk {
	struct gendisk *gendisk;
	struct tmem_pool *pool;
	u32 pages;
	int major;
	unsigned int flags;		/* TMEM_DISK_* */
	const void *owner;		/* compared only */
	struct mutex header_lock;	/* guards header's content */
	struct page *header;		/* page 0 */
};

/* ---- pages ----------------------------------------------------------------------------------- */

static void copy_header(struct tmem_disk *disk, struct page *page, bool write)
{
	mutex_lock(&disk->header_lock);
	if (write)
		copy_highpage(disk->header, page);
	else
		copy_highpage(page, disk->header);
	mutex_unlock(&disk->header_lock);
}

static int page_io(struct tmem_disk *disk, u64 index, struct page *page, bool write)
{
	if (index >= disk->pages)
		return -EIO;
	if (!index) {
		copy_header(disk, page, write);
		return 0;
	}
	if (disk->flags & TMEM_DISK_HEADER_ONLY)
		return -EIO;
	return write ? tmem_pool_put(disk->pool, index, page) :
		       tmem_pool_get(disk->pool, index, page);
}

static void discard(struct tmem_disk *disk, struct bio *bio)
{
	u64 first = DIV_ROUND_UP_ULL(bio->bi_iter.bi_sector, 1 << TMEM_SECTORS_SHIFT);
	u64 end = bio_end_sector(bio) >> TMEM_SECTORS_SHIFT;

	/* page 0 is no page of the pool: what mkswap wrote stays until it is written again */
	for (first = max_t(u64, first, 1); first < min_t(u64, end, disk->pages); first++) {
		tmem_pool_flush(disk->pool, first);
		if (!(first % 4096))
			cond_resched();
	}
}

static int transfer(struct tmem_disk *disk, struct bio *bio)
{
	bool write = op_is_write(bio_op(bio));
	sector_t sector = bio->bi_iter.bi_sector;
	struct bvec_iter iter;
	struct bio_vec part;
	int err;

	bio_for_each_segment(part, bio, iter) {
		if (part.bv_len != PAGE_SIZE || part.bv_offset ||
		    sector % (1 << TMEM_SECTORS_SHIFT))
			return -EIO;
		err = page_io(disk, sector >> TMEM_SECTORS_SHIFT, part.bv_page, write);
		if (err)
			return err;
		if (!write)
			flush_dcache_page(part.bv_page);
		sector += 1 << TMEM_SECTORS_SHIFT;
	}
	return 0;
}

static void handle_bio(struct tmem_disk *disk, struct bio *bio)
{
	switch (bio_op(bio)) {
	case REQ_OP_READ:
	case REQ_OP_WRITE:
		if (transfer(disk, bio)) {
			bio_io_error(bio);
			return;
		}
		break;
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		/* what is flushed reads as zeroes */
		discard(disk, bio);
		break;
	case REQ_OP_FLUSH:
		break;
	default:
		bio->bi_status = BLK_STS_NOTSUPP;
	}
	bio_endio(bio);
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 16, 0) /* 3e08773c3841: polling cookies are gone */
static blk_qc_t disk_submit_bio(struct bio *bio)
{
	handle_bio(bio->bi_disk->private_data, bio);
	return BLK_QC_T_NONE;
}
#else
static void disk_submit_bio(struct bio *bio)
{
	handle_bio(bio->bi_bdev->bd_disk->private_data, bio);
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0) /* 3222d8c2a7f8: rw_page is gone */
/*
 * After an error the kernel tries again with a bio, and its end_io does what this function could
 * not do right: a failed write dirties the page again; a failed read must not free the slot
 * (swap_slot_free_notify() in 5.10's mm/page_io.c).
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 0, 0) /* 86947df3a923: enum req_op */
static int disk_rw_page(struct block_device *bdev, sector_t sector, struct page *page,
			unsigned int op)
#else
static int disk_rw_page(struct block_device *bdev, sector_t sector, struct page *page,
			enum req_op op)
#endif
{
	bool write = op_is_write(op);
	int err;

	if (PageTransHuge(page))
		return -EOPNOTSUPP;
	err = page_io(bdev->bd_disk->private_data, sector >> TMEM_SECTORS_SHIFT, page, write);
	if (err)
		return err;
	page_endio(page, write, 0);
	return 0;
}
#endif

/* Under a spin lock of the swap device. */
static void disk_slot_free(struct block_device *bdev, unsigned long offset)
{
	struct tmem_disk *disk = bdev->bd_disk->private_data;

	if (offset)
		tmem_pool_flush(disk->pool, offset);
}

/* ---- open ------------------------------------------------------------------------------------ */

/* No pool or channel, no swap device: else each page that is swapped out would be a write error. */
static int opened(struct tmem_disk *disk, bool exclusive)
{
	if (!READ_ONCE(disk->pool->attached) || !tmem_channel_is_up(disk->pool->channel))
		return -ENXIO;
	if (exclusive)
		WRITE_ONCE(disk->owner, current);
	return 0;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0) /* d32e2bf83791: open() gets a gendisk */
static int disk_open(struct block_device *bdev, fmode_t mode)
{
	return opened(bdev->bd_disk->private_data, mode & FMODE_EXCL);
}
#else
static int disk_open(struct gendisk *gendisk, blk_mode_t mode)
{
	return opened(gendisk->private_data, false);
}
#endif

const void *tmem_disk_owner(struct tmem_disk *disk)
{
	return READ_ONCE(disk->owner);
}

/* Its readable page says where the swap is, all others that they are lost. */
static const struct block_device_operations header_operations = {
	.owner = THIS_MODULE,
	.open = disk_open,
	.submit_bio = disk_submit_bio,
};

static const struct block_device_operations page_operations = {
	.owner = THIS_MODULE,
	.open = disk_open,
	.submit_bio = disk_submit_bio,
	.swap_slot_free_notify = disk_slot_free,
};

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static const struct block_device_operations synchronous_operations = {
	.owner = THIS_MODULE,
	.open = disk_open,
	.submit_bio = disk_submit_bio,
	.rw_page = disk_rw_page,
	.swap_slot_free_notify = disk_slot_free,
};
#endif

static const struct block_device_operations *choose_operations(unsigned int flags)
{
	if (flags & TMEM_DISK_HEADER_ONLY)
		return &header_operations;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
	if (flags & TMEM_DISK_SYNCHRONOUS)
		return &synchronous_operations;
#endif
	return &page_operations;
}

/* ---- life ------------------------------------------------------------------------------------ */

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 9, 0) /* 74fa8f9c553f: limits at allocation */
static void set_limits(struct request_queue *queue, bool discards)
{
	blk_queue_logical_block_size(queue, PAGE_SIZE);
	blk_queue_physical_block_size(queue, PAGE_SIZE);
	blk_queue_dma_alignment(queue, PAGE_SIZE - 1);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, queue);
	blk_queue_flag_clear(QUEUE_FLAG_ADD_RANDOM, queue);
	/* the host reads a page in place: it must not change meanwhile */
	blk_queue_flag_set(QUEUE_FLAG_STABLE_WRITES, queue);
	if (discards) {
		queue->limits.discard_granularity = PAGE_SIZE;
		blk_queue_max_discard_sectors(queue, UINT_MAX);
		blk_queue_max_write_zeroes_sectors(queue, UINT_MAX);
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 19, 0) /* 70200574cc22: the flag is gone */
		blk_queue_flag_set(QUEUE_FLAG_DISCARD, queue);
#endif
	}
}
#endif

static struct gendisk *make_gendisk(struct tmem_disk *disk)
{
	struct gendisk *gendisk;

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 14, 0) /* f525464a8000: blk_alloc_disk() */
	gendisk = alloc_disk(1);
	if (!gendisk)
		return ERR_PTR(-ENOMEM);
	gendisk->queue = blk_alloc_queue(NUMA_NO_NODE);
	if (!gendisk->queue) {
		put_disk(gendisk);
		return ERR_PTR(-ENOMEM);
	}
	set_limits(gendisk->queue, !(disk->flags & TMEM_DISK_HEADER_ONLY));
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 9, 0)
	gendisk = blk_alloc_disk(NUMA_NO_NODE);
	if (!gendisk)
		return ERR_PTR(-ENOMEM);
	set_limits(gendisk->queue, !(disk->flags & TMEM_DISK_HEADER_ONLY));
#else
	struct queue_limits limits = {
		.logical_block_size = PAGE_SIZE,
		.physical_block_size = PAGE_SIZE,
		.dma_alignment = PAGE_SIZE - 1,
		/* the host reads a page in place: it must not change meanwhile */
		.features = BLK_FEAT_STABLE_WRITES |
			    (disk->flags & TMEM_DISK_SYNCHRONOUS ? BLK_FEAT_SYNCHRONOUS : 0),
	};

	if (!(disk->flags & TMEM_DISK_HEADER_ONLY)) {
		limits.discard_granularity = PAGE_SIZE;
		limits.max_hw_discard_sectors = UINT_MAX;
		limits.max_write_zeroes_sectors = UINT_MAX;
	}
	gendisk = blk_alloc_disk(&limits, NUMA_NO_NODE);
#endif
	return gendisk;
}

static void drop_gendisk(struct gendisk *gendisk)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 14, 0)
	blk_cleanup_queue(gendisk->queue);
#endif
	put_disk(gendisk);
}

static int add_gendisk(struct gendisk *gendisk)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 15, 0) /* 83cbce957446: add_disk() can fail */
	add_disk(gendisk);
	return 0;
#else
	return add_disk(gendisk);
#endif
}

struct tmem_disk *tmem_disk_create(const char *name, u32 pages, struct tmem_pool *pool,
				   unsigned int flags)
{
	struct tmem_disk *disk;
	int err = -ENOMEM;

	disk = kzalloc(sizeof(*disk), GFP_KERNEL);
	if (!disk)
		return ERR_PTR(-ENOMEM);
	disk->pages = pages;
	disk->pool = pool;
	disk->flags = flags;
	mutex_init(&disk->header_lock);
	disk->header = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!disk->header)
		goto err_free;
	disk->major = register_blkdev(0, KBUILD_MODNAME);
	if (disk->major < 0) {
		err = disk->major;
		goto err_header;
	}
	disk->gendisk = make_gendisk(disk);
	if (IS_ERR(disk->gendisk)) {
		err = PTR_ERR(disk->gendisk);
		goto err_major;
	}
	disk->gendisk->major = disk->major;
	disk->gendisk->first_minor = 0;
	disk->gendisk->minors = 1;
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 17, 0) /* 1ebe2e5f9d68, 46e7eac647b3: renamed */
	disk->gendisk->flags |= GENHD_FL_NO_PART_SCAN;
#else
	disk->gendisk->flags |= GENHD_FL_NO_PART;
#endif
	disk->gendisk->fops = choose_operations(flags);
	disk->gendisk->private_data = disk;
	strscpy(disk->gendisk->disk_name, name, sizeof(disk->gendisk->disk_name));
	set_capacity(disk->gendisk, (sector_t)pages << TMEM_SECTORS_SHIFT);
	err = add_gendisk(disk->gendisk);
	if (err)
		goto err_disk;
	return disk;

err_disk:
	drop_gendisk(disk->gendisk);
err_major:
	unregister_blkdev(disk->major, KBUILD_MODNAME);
err_header:
	__free_page(disk->header);
err_free:
	kfree(disk);
	return ERR_PTR(err);
}

void tmem_disk_destroy(struct tmem_disk *disk)
{
	del_gendisk(disk->gendisk);
	drop_gendisk(disk->gendisk);
	unregister_blkdev(disk->major, KBUILD_MODNAME);
	__free_page(disk->header);
	kfree(disk);
}
