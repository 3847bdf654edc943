// SPDX-License-Identifier: GPL-2.0-only
/* The virtio device of channel "virtio": found, set up, taken away. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio.h"

#define QUEUES_MAX	16u

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
		callbacks[i] = tmem_virtio_answered;
		names[i] = device->queues[i].name;
	}
	err = virtio_find_vqs(device->vdev, device->count, found, callbacks, names, NULL);
#else
	struct virtqueue_info info[QUEUES_MAX] = { };

	for (i = 0; i < device->count; i++) {
		snprintf(device->queues[i].name, sizeof(device->queues[i].name), "requests.%u", i);
		info[i].name = device->queues[i].name;
		info[i].callback = tmem_virtio_answered;
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

static void free_slots(struct tmem_virtio *device)
{
	unsigned int i;

	for (i = 0; i < device->count; i++)
		tmem_queue_free_slots(&device->queues[i]);
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
		err = tmem_queue_make_slots(&device->queues[i]);
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

	channel->ops = &tmem_virtio_ops;
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
