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

#include <linux/delay.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "tmem.h"

#define QUEUES_MAX	16u
/* Descriptors of the longest chain: request, items, page, reply. */
#define CHAIN_MAX	4u

static unsigned int poll_us = 20;
module_param(poll_us, uint, 0644);
MODULE_PARM_DESC(poll_us, "Microseconds to poll for an answer before sleeping (20)");

/*
 * A request that the device may read and its reply that the device may write, each in cache lines
 * of its own.
 */
struct slot {
	struct tmem_request request;
	struct tmem_reply reply ____cacheline_aligned;
	struct list_head link ____cacheline_aligned;	/* in the queue's list of free slots */
	struct tmem_call *call;
	bool sleeping;
};

struct queue {
	spinlock_t lock;		/* guards all of this and the ring */
	struct virtqueue *vq;
	bool broken;			/* reset, or an error of the ring: nobody may add */
	unsigned int sleepers;		/* calls that wait for the interrupt */
	struct list_head free;
	wait_queue_head_t freed;
	struct slot *slots;
	char name[16];
};

struct tmem_virtio {
	struct virtio_device *vdev;
	struct tmem_channel *channel;
	bool inline_done;		/* VIRTIO_TMEM_F_INLINE */
	unsigned int count;
	struct queue queues[];
};

/* ---- answers --------------------------------------------------------------------------------- */

static void finish(struct queue *queue, struct slot *slot, int err)
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

static void reap(struct queue *queue)
{
	struct slot *slot;
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

static void answered(struct virtqueue *vq)
{
	struct tmem_virtio *device = vq->vdev->priv;
	struct queue *queue = &device->queues[vq->index];
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
static int add(struct queue *queue, struct tmem_call *call, struct slot **added)
{
	struct scatterlist request, items, sent, reply, fetched;
	struct scatterlist *chain[5];
	unsigned int out = 0, in = 0;
	struct slot *slot;
	int err;

	lockdep_assert_held(&queue->lock);
	if (queue->broken)
		return -EIO;
	slot = list_first_entry_or_null(&queue->free, struct slot, link);
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

static int send(struct tmem_virtio *device, struct queue *queue, struct tmem_call *call,
		struct slot **slot)
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

static bool poll(struct tmem_virtio *device, struct queue *queue, struct tmem_call *call)
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
static void prepare_sleep(struct queue *queue, struct tmem_call *call, struct slot *slot)
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
	struct queue *queue = &device->queues[raw_smp_processor_id() % device->count];
	struct slot *slot;
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
		struct queue *queue = &device->queues[i];

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
		struct queue *queue = &device->queues[i];
		struct slot *slot;

		spin_lock_irq(&queue->lock);
		/* what was answered before the reset is an answer */
		reap(queue);
		while ((slot = virtqueue_detach_unused_buf(queue->vq)))
			finish(queue, slot, -EIO);
		spin_unlock_irq(&queue->lock);
	}
}

static const struct tmem_channel_ops virtio_ops = {
	.name = "virtio",
	.submit = virtio_submit,
	.execute = virtio_submit,
	.abort = virtio_abort,
};

/* ---- the device ------------------------------------------------------------------------------ */

static struct tmem_channel *the_channel;
/* One device is one too few for a second. */
static atomic_t taken = ATOMIC_INIT(0);

static int find_queues(struct tmem_virtio *device)
{
	struct virtqueue *found[QUEUES_MAX];
	unsigned int i;
	int err;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0) /* virtqueue_info takes over from two arrays */
	vq_callback_t *callbacks[QUEUES_MAX];
	const char *names[QUEUES_MAX];

	for (i = 0; i < device->count; i++) {
		snprintf(device->queues[i].name, sizeof(device->queues[i].name), "requests.%u", i);
		callbacks[i] = answered;
		names[i] = device->queues[i].name;
	}
	err = virtio_find_vqs(device->vdev, device->count, found, callbacks, names, NULL);
#else
	struct virtqueue_info info[QUEUES_MAX] = { };

	for (i = 0; i < device->count; i++) {
		snprintf(device->queues[i].name, sizeof(device->queues[i].name), "requests.%u", i);
		info[i].name = device->queues[i].name;
		info[i].callback = answered;
	}
	err = virtio_find_vqs(device->vdev, device->count, found, info, NULL);
#endif
	if (err)
		return err;
	for (i = 0; i < device->count; i++) {
		device->queues[i].vq = found[i];
		virtqueue_disable_cb(found[i]);
	}
	return 0;
}

static int make_slots(struct queue *queue)
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

static void free_slots(struct tmem_virtio *device)
{
	unsigned int i;

	for (i = 0; i < device->count; i++)
		kfree(device->queues[i].slots);
}

static unsigned int count_queues(struct virtio_device *vdev)
{
	u32 offered = 1;

	if (virtio_has_feature(vdev, VIRTIO_TMEM_F_MQ))
		virtio_cread_le(vdev, struct virtio_tmem_config, queues, &offered);
	return clamp(min(offered, num_possible_cpus()), 1u, QUEUES_MAX);
}

static int probe(struct virtio_device *vdev)
{
	unsigned int count = count_queues(vdev);
	struct tmem_virtio *device;
	unsigned int i;
	int err;

	if (atomic_cmpxchg(&taken, 0, 1)) {
		dev_err(&vdev->dev, "there is a tmem device already\n");
		return -EBUSY;
	}
	err = -ENOMEM;
	device = kzalloc(struct_size(device, queues, count), GFP_KERNEL);
	if (!device)
		goto err_taken;
	device->vdev = vdev;
	device->channel = the_channel;
	device->count = count;
	device->inline_done = virtio_has_feature(vdev, VIRTIO_TMEM_F_INLINE);
	vdev->priv = device;
	for (i = 0; i < count; i++) {
		spin_lock_init(&device->queues[i].lock);
		INIT_LIST_HEAD(&device->queues[i].free);
		init_waitqueue_head(&device->queues[i].freed);
	}
	err = find_queues(device);
	if (err && device->count > 1) {
		/* a monitor that has fewer queues than its backend says */
		device->count = 1;
		err = find_queues(device);
	}
	if (err)
		goto err_free;
	for (i = 0; i < device->count; i++) {
		err = make_slots(&device->queues[i]);
		if (err)
			goto err_slots;
	}
	virtio_device_ready(vdev);
	the_channel->private = device;
	err = tmem_channel_start(the_channel);
	if (err)
		goto err_stop;
	dev_info(&vdev->dev, "%u queue%s%s\n", device->count, device->count > 1 ? "s" : "",
		 device->inline_done ? ", answered inline" : "");
	return 0;

err_stop:
	tmem_channel_stop(the_channel);
err_slots:
	vdev->config->del_vqs(vdev);
	free_slots(device);
err_free:
	vdev->priv = NULL;
	kfree(device);
err_taken:
	atomic_set(&taken, 0);
	return err;
}

/* Pages that the host has are out of reach from here on: I/O errors, never anything else. */
static void remove(struct virtio_device *vdev)
{
	struct tmem_virtio *device = vdev->priv;

	tmem_channel_stop(device->channel);
	vdev->config->del_vqs(vdev);
	free_slots(device);
	kfree(device);
	atomic_set(&taken, 0);
}

/* Before features are agreed on. */
static int validate(struct virtio_device *vdev)
{
	/* the ring would allocate a table for each request */
	__virtio_clear_bit(vdev, VIRTIO_RING_F_INDIRECT_DESC);
	return 0;
}

#ifdef CONFIG_PM_SLEEP
/*
 * The pages are the host's; a guest that sleeps through its host's restart would wake up without
 * them.
 */
static int freeze(struct virtio_device *vdev)
{
	return -EBUSY;
}

static int restore(struct virtio_device *vdev)
{
	return -EIO;
}
#endif

static const unsigned int features[] = { VIRTIO_TMEM_F_MQ, VIRTIO_TMEM_F_INLINE };

static const struct virtio_device_id ids[] = {
	{ VIRTIO_ID_TMEM, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, ids);

static struct virtio_driver driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = ids,
	.feature_table = features,
	.feature_table_size = ARRAY_SIZE(features),
	.validate = validate,
	.probe = probe,
	.remove = remove,
#ifdef CONFIG_PM_SLEEP
	.freeze = freeze,
	.restore = restore,
#endif
};

int tmem_virtio_init(struct tmem_channel *channel)
{
	int err;

	channel->ops = &virtio_ops;
	the_channel = channel;
	err = register_virtio_driver(&driver);
	if (err)
		return err;
	if (tmem_channel_is_up(channel))
		return 0;
	/* not an error: the device may be plugged later */
	pr_info("no tmem device yet\n");
	return 0;
}

void tmem_virtio_exit(void)
{
	unregister_virtio_driver(&driver);
}
