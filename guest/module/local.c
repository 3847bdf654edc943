// SPDX-License-Identifier: GPL-2.0-only
/*
 * Channel "local": answers in this guest, for self-tests and to see the sources without a host.
 * Pages are kept in this guest's own memory, which frees nothing, or in the BAR of an ivshmem
 * device, which is host memory reached without an exit.
 *
 * One swap pool at a time. It keeps the rules of tmem_abi.h, so what passes here is no weaker than
 * with a host.
 */
#include <linux/bitmap.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "tmem.h"

#define POOL	1u

static unsigned int local_mib;
module_param(local_mib, uint, 0444);
MODULE_PARM_DESC(local_mib, "Channel local: MiB of this guest's memory (0: an ivshmem device's)");

struct local {
	u8 *data;
	u32 pages;
	unsigned long *held;		/* pages that are there */
	struct pci_dev *ivshmem;
	bool greeted;
	bool pool;
};

static u32 one(struct local *local, u16 op, u32 index, struct page *page)
{
	u8 *kept = local->data + (size_t)index * PAGE_SIZE;
	void *mapped;

	if (index >= local->pages)
		return TMEM_BAD_LENGTH;
	switch (op) {
	case TMEM_OP_PUT:
		mapped = kmap_atomic(page);
		memcpy(kept, mapped, PAGE_SIZE);
		kunmap_atomic(mapped);
		set_bit(index, local->held);
		return TMEM_OK;
	case TMEM_OP_GET:
		if (!test_bit(index, local->held))
			return TMEM_MISS;
		mapped = kmap_atomic(page);
		memcpy(mapped, kept, PAGE_SIZE);
		kunmap_atomic(mapped);
		return TMEM_OK;
	default:
		clear_bit(index, local->held);
		return TMEM_OK;
	}
}

static u32 pages(struct local *local, struct tmem_call *call)
{
	const struct tmem_request *request = &call->request;
	u32 count = le32_to_cpu(request->count);
	u32 status = TMEM_OK;
	u32 i;

	if (!count || count > TMEM_BATCH_MAX)
		return TMEM_BAD_LENGTH;
	for (i = 0; i < count; i++) {
		u32 index, this;

		index = call->items ? le32_to_cpu(call->items[i].index) :
				      le32_to_cpu(request->index) + i;
		this = one(local, le16_to_cpu(request->op), index, call->page);

		if (this == TMEM_OK)
			call->reply.done[i / 64] |= cpu_to_le64(1ULL << (i % 64));
		else if (status == TMEM_OK)
			status = this;
	}
	return status;
}

static u32 new_pool(struct local *local, const struct tmem_request *request)
{
	u64 flags = le64_to_cpu(request->argument);

	if (flags != (TMEM_POOL_PERSISTENT | TMEM_POOL_ATTACH))
		return TMEM_BAD_FLAGS;
	if (le32_to_cpu(request->count) > local->pages)
		return TMEM_NO_ROOM;
	local->pool = true;
	return TMEM_OK;
}

static int local_submit(struct tmem_channel *channel, struct tmem_call *call)
{
	struct local *local = channel->private;
	const struct tmem_request *request = &call->request;
	u16 op = le16_to_cpu(request->op);
	u32 status;
	int err;

	err = tmem_call_stamp(channel, call);
	if (err)
		return err;
	memset(&call->reply, 0, sizeof(call->reply));
	call->reply.cookie = request->cookie;
	if (op == TMEM_OP_HELLO) {
		local->greeted = true;
		call->reply.value = request->argument &
				    cpu_to_le64(TMEM_FEATURE_BATCH | TMEM_FEATURE_LIST);
		status = TMEM_OK;
	} else if (!local->greeted) {
		status = TMEM_NOT_NEGOTIATED;
	} else if (op == TMEM_OP_NEW_POOL) {
		status = new_pool(local, request);
		call->reply.value = cpu_to_le64(POOL);
	} else if (!local->pool || request->pool != cpu_to_le32(POOL)) {
		status = TMEM_BAD_POOL;
	} else if (op == TMEM_OP_PUT || op == TMEM_OP_GET || op == TMEM_OP_FLUSH_PAGE) {
		status = pages(local, call);
	} else if (op == TMEM_OP_FLUSH_OBJECT || op == TMEM_OP_DESTROY_POOL) {
		bitmap_zero(local->held, local->pages);
		local->pool = op == TMEM_OP_FLUSH_OBJECT;
		status = TMEM_OK;
	} else {
		status = TMEM_BAD_OP;
	}
	call->reply.status = cpu_to_le32(status);
	return 0;
}

static void local_abort(struct tmem_channel *channel)
{
}

static const struct tmem_channel_ops local_ops = {
	.name = "local",
	.submit = local_submit,
	.execute = local_submit,
	.abort = local_abort,
};

/* The memory of the first ivshmem device, as much as there is. */
static int map_ivshmem(struct local *local)
{
	int err;

	/* ids and BAR: QEMU's docs/specs/ivshmem-spec.rst */
	local->ivshmem = pci_get_device(0x1af4, 0x1110, NULL);
	if (!local->ivshmem)
		return -ENODEV;
	err = pci_enable_device(local->ivshmem);
	if (err)
		goto err_put;
	local->pages = min_t(u64, pci_resource_len(local->ivshmem, 2) >> PAGE_SHIFT, U32_MAX);
	local->data = memremap(pci_resource_start(local->ivshmem, 2),
			       (size_t)local->pages << PAGE_SHIFT, MEMREMAP_WB);
	if (local->data)
		return 0;
	err = -ENOMEM;
	pci_disable_device(local->ivshmem);
err_put:
	pci_dev_put(local->ivshmem);
	return err;
}

static void unmap(struct local *local)
{
	if (!local->ivshmem) {
		vfree(local->data);
		return;
	}
	memunmap(local->data);
	pci_disable_device(local->ivshmem);
	pci_dev_put(local->ivshmem);
}

int tmem_local_open(struct tmem_channel *channel, u32 pages, bool shared_memory)
{
	struct local *local;
	int err = -ENOMEM;

	local = kzalloc(sizeof(*local), GFP_KERNEL);
	if (!local)
		return -ENOMEM;
	if (shared_memory) {
		err = map_ivshmem(local);
		if (err)
			goto err_free;
	} else {
		local->pages = pages;
		local->data = vmalloc((size_t)pages << PAGE_SHIFT);
		if (!local->data)
			goto err_free;
	}
	err = -ENOMEM;
	local->held = kvcalloc(BITS_TO_LONGS(local->pages), sizeof(unsigned long), GFP_KERNEL);
	if (!local->held)
		goto err_unmap;
	channel->ops = &local_ops;
	channel->private = local;
	err = tmem_channel_start(channel);
	if (err)
		goto err_held;
	return 0;

err_held:
	kvfree(local->held);
err_unmap:
	unmap(local);
err_free:
	kfree(local);
	return err;
}

void tmem_local_close(struct tmem_channel *channel)
{
	struct local *local = channel->private;

	tmem_channel_stop(channel);
	kvfree(local->held);
	unmap(local);
	kfree(local);
}

static struct tmem_channel *opened;

int tmem_local_init(struct tmem_channel *channel)
{
	int err = tmem_local_open(channel, local_mib << (20 - PAGE_SHIFT), !local_mib);

	if (!err)
		opened = channel;
	return err;
}

void tmem_local_exit(void)
{
	if (opened)
		tmem_local_close(opened);
	opened = NULL;
}
