// SPDX-License-Identifier: GPL-2.0-only
/*
 * Channel "virtio": requests over virtqueues, to vhost-user-tmem and to the inline virtio-tmem
 * device alike.
 *
 * A request's chain is its header, listed keys, the page that is sent; then the reply and the page
 * that is fetched. Pages go in place. Headers and replies lie in slots that are made with the
 * device; indirect descriptors are not negotiated, as the ring allocates one for each request. So
 * nothing on the way of a page allocates.
 *
 * Who waits polls the used ring first: an inline device has answered when the kick returns. Then it
 * sleeps until the interrupt, as long as it takes: the device may be reading or writing the page,
 * so nobody gives up before a reset. With vhost-user a host agent that died is waited for in the
 * same way; QEMU repeats what was under way.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio.h"

/* Descriptors of the longest chain: request, items, page, reply. */
#define CHAIN_MAX	4u

static unsigned int poll_us = 20;
module_param(poll_us, uint, 0644);
MODULE_PARM_DESC(poll_us, "Microseconds to poll for an answer before sleeping (20)");

/* ---- answers --------------------------------------------------------------------------------- */

static void finish(struct tmem_queue *queue, struct tmem_slot *slot, int err)
{
	struct tmem_call *call = slot->call;

	lockdep_assert_held(&queue->lock);
	if (!err)
		call->reply = slot->reply;
	call->error = err;
	if (slot->sleeping)
		queue->sleepers--;
	slot->call = NULL;
	list_add(&slot->link, &queue->free);
	/* the last access: the call lies on the stack of who waits */
	complete(&call->done);
}

static void reap(struct tmem_queue *queue)
{
	struct tmem_slot *slot;
	unsigned int length;

	lockdep_assert_held(&queue->lock);
	while ((slot = virtqueue_get_buf(queue->vq, &length))) {
		/* a device that wrote less than a reply wrote none */
		finish(queue, slot, length < sizeof(slot->reply) ? -EPROTO : 0);
		if (wq_has_sleeper(&queue->freed))
			wake_up(&queue->freed);
	}
	if (unlikely(virtqueue_is_broken(queue->vq)))
		queue->broken = true;
}

void tmem_virtio_answered(struct virtqueue *vq)
{
	struct tmem_virtio *device = vq->vdev->priv;
	struct tmem_queue *queue = &device->queues[vq->index];
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	/* interrupts are wanted only while somebody sleeps */
	do {
		virtqueue_disable_cb(vq);
		reap(queue);
	} while (!queue->broken && queue->sleepers && !virtqueue_enable_cb(vq));
	spin_unlock_irqrestore(&queue->lock, flags);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* -EAGAIN: no slot or no room in the ring. */
static int add(struct tmem_queue *queue, struct tmem_call *call, struct tmem_slot **added)
{
	struct scatterlist request, items, sent, reply, fetched;
	struct scatterlist *chain[5];
	unsigned int out = 0, in = 0;
	struct tmem_slot *slot;
	int err;

	lockdep_assert_held(&queue->lock);
	if (queue->broken)
		return -EIO;
	slot = list_first_entry_or_null(&queue->free, struct tmem_slot, link);
	if (!slot)
		return -EAGAIN;
	slot->request = call->request;
	slot->sleeping = false;
	sg_init_one(&request, &slot->request, sizeof(slot->request));
	chain[out++] = &request;
	if (call->items) {
		sg_init_one(&items, call->items, tmem_call_items_length(call));
		chain[out++] = &items;
	}
	if (tmem_call_sends(call)) {
		sg_init_table(&sent, 1);
		sg_set_page(&sent, call->page, PAGE_SIZE, 0);
		chain[out++] = &sent;
	}
	sg_init_one(&reply, &slot->reply, sizeof(slot->reply));
	chain[out + in++] = &reply;
	if (tmem_call_fetches(call)) {
		sg_init_table(&fetched, 1);
		sg_set_page(&fetched, call->page, PAGE_SIZE, 0);
		chain[out + in++] = &fetched;
	}
	/* without indirect descriptors nothing is allocated, whatever the flags say */
	err = virtqueue_add_sgs(queue->vq, chain, out, in, slot, GFP_NOWAIT);
	if (err == -ENOSPC)
		return -EAGAIN;
	if (err)
		return err;
	list_del(&slot->link);
	slot->call = call;
	*added = slot;
	return 0;
}

static int send(struct tmem_virtio *device, struct tmem_queue *queue, struct tmem_call *call,
		struct tmem_slot **slot)
{
	bool kick;
	int err;

	for (;;) {
		spin_lock_irq(&queue->lock);
		err = add(queue, call, slot);
		if (err == -EAGAIN) {
			/* answers may be there that nobody has looked at */
			reap(queue);
			err = add(queue, call, slot);
		}
		kick = !err && virtqueue_kick_prepare(queue->vq);
		spin_unlock_irq(&queue->lock);
		if (err != -EAGAIN)
			break;
		tmem_channel_count(device->channel, TMEM_C_FULL);
		/*
		 * every slot belongs to a call that is waited for and reaped; the time bounds a
		 * wake-up that was missed
		 */
		wait_event_timeout(queue->freed, READ_ONCE(queue->broken) ||
				   !list_empty_careful(&queue->free), HZ / 100 + 1);
	}
	if (kick) {
		tmem_channel_count(device->channel, TMEM_C_KICKS);
		virtqueue_notify(queue->vq);
	}
	return err;
}

static bool poll(struct tmem_virtio *device, struct tmem_queue *queue, struct tmem_call *call)
{
	u64 budget = (u64)READ_ONCE(poll_us) * NSEC_PER_USEC;
	u64 end;

	/* an answer that is being made on another vCPU takes about as long as one made here */
	if (device->inline_done)
		budget = max_t(u64, budget, 200 * NSEC_PER_USEC);
	end = ktime_get_ns() + budget;
	do {
		/* only who finds something takes the lock for long */
		spin_lock_irq(&queue->lock);
		reap(queue);
		spin_unlock_irq(&queue->lock);
		if (completion_done(&call->done))
			return true;
		cpu_relax();
	} while (ktime_get_ns() < end);
	return false;
}

/* Asks for the interrupt, and looks once more. */
static void prepare_sleep(struct tmem_queue *queue, struct tmem_call *call, struct tmem_slot *slot)
{
	spin_lock_irq(&queue->lock);
	/* while the call is not done the slot is its own */
	if (!completion_done(&call->done)) {
		slot->sleeping = true;
		queue->sleepers++;
		while (!queue->broken && queue->sleepers && !virtqueue_enable_cb(queue->vq)) {
			virtqueue_disable_cb(queue->vq);
			reap(queue);
		}
	}
	spin_unlock_irq(&queue->lock);
}

static int virtio_submit(struct tmem_channel *channel, struct tmem_call *call)
{
	struct tmem_virtio *device = channel->private;
	struct tmem_queue *queue = &device->queues[raw_smp_processor_id() % device->count];
	struct tmem_slot *slot;
	int err;

	err = tmem_call_stamp(channel, call);
	if (err)
		return err;
	err = send(device, queue, call, &slot);
	if (err)
		return err;
	if (poll(device, queue, call)) {
		tmem_channel_count(channel, TMEM_C_POLLED);
	} else {
		tmem_channel_count(channel, TMEM_C_SLEPT);
		prepare_sleep(queue, call, slot);
	}
	/* Also after polling: complete() may still be at work on the other side. */
	wait_for_completion(&call->done);
	return call->error;
}

/* After the reset the device touches nothing. */
static void virtio_abort(struct tmem_channel *channel)
{
	struct tmem_virtio *device = channel->private;
	unsigned int i;

	for (i = 0; i < device->count; i++) {
		struct tmem_queue *queue = &device->queues[i];

		spin_lock_irq(&queue->lock);
		queue->broken = true;
		spin_unlock_irq(&queue->lock);
		wake_up_all(&queue->freed);
	}
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 17, 0) /* d9679d0013a6: virtio_reset_device() */
	device->vdev->config->reset(device->vdev);
#else
	virtio_reset_device(device->vdev);
#endif
	for (i = 0; i < device->count; i++) {
		struct tmem_queue *queue = &device->queues[i];
		struct tmem_slot *slot;

		spin_lock_irq(&queue->lock);
		/* what was answered before the reset is an answer */
		reap(queue);
		while ((slot = virtqueue_detach_unused_buf(queue->vq)))
			finish(queue, slot, -EIO);
		spin_unlock_irq(&queue->lock);
	}
}

const struct tmem_channel_ops tmem_virtio_ops = {
	.name = "virtio",
	.submit = virtio_submit,
	.execute = virtio_submit,
	.abort = virtio_abort,
};

/* ---- slots ----------------------------------------------------------------------------------- */

int tmem_queue_make_slots(struct tmem_queue *queue)
{
	unsigned int count = max(virtqueue_get_vring_size(queue->vq) / 3, 1u);
	unsigned int i;

	if (virtqueue_get_vring_size(queue->vq) < CHAIN_MAX)
		return -EINVAL;
	queue->slots = kcalloc(count, sizeof(*queue->slots), GFP_KERNEL);
	if (!queue->slots)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		list_add_tail(&queue->slots[i].link, &queue->free);
	return 0;
}

void tmem_queue_free_slots(struct tmem_queue *queue)
{
	kfree(queue->slots);
}
