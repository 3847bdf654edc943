/* SPDX-License-Identifier: GPL-2.0-only */
/* Channel "virtio": virtio.c has the device, virtio_queue.c its queues and the way of a request. */
#ifndef TMEM_VIRTIO_H
#define TMEM_VIRTIO_H

#include <linux/virtio.h>

#include "tmem.h"

/*
 * A request that the device may read and its reply that the device may write, each in cache lines
 * of its own.
 */
struct tmem_slot {
	struct tmem_request request;
	struct tmem_reply reply ____cacheline_aligned;
	struct list_head link ____cacheline_aligned;	/* in the queue's list of free slots */
	struct tmem_call *call;
	bool sleeping;
};

struct tmem_queue {
	spinlock_t lock;		/* guards all of this and the ring */
	struct virtqueue *vq;
	bool broken;			/* reset, or an error of the ring: nobody may add */
	unsigned int sleepers;		/* calls that wait for the interrupt */
	struct list_head free;
	wait_queue_head_t freed;
	struct tmem_slot *slots;
	char name[16];
};

struct tmem_virtio {
	struct virtio_device *vdev;
	struct tmem_channel *channel;
	bool inline_done;		/* VIRTIO_TMEM_F_INLINE */
	unsigned int count;
	struct tmem_queue queues[];
};

extern const struct tmem_channel_ops tmem_virtio_ops;

/* The interrupt. */
void tmem_virtio_answered(struct virtqueue *vq);
/* As many requests at a time as the ring has room for; -EINVAL: it has none for the longest. */
int tmem_queue_make_slots(struct tmem_queue *queue);
void tmem_queue_free_slots(struct tmem_queue *queue);

#endif
