// SPDX-License-Identifier: GPL-2.0-only
/*
 * The virtio-serial port that the agent lent: frames of the tmem ABI, read and written in its
 * context by way of its buffer, which is locked in memory.
 */
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "serial.h"
#include "tmem_ioctl.h"

/* When nothing comes for so long within a frame, its end may never come: look for a SYNC. */
#define STALL	HZ

/* ---- the port -------------------------------------------------------------------------------- */

static int port_event(wait_queue_entry_t *entry, unsigned int mode, int sync, void *key)
{
	wake_up(container_of(entry, struct tmem_port, entry)->wake);
	return 0;
}

static void join_port(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct tmem_port *port = container_of(table, struct tmem_port, table);

	/* a port has one */
	if (port->head)
		return;
	port->head = head;
	add_wait_queue(head, &port->entry);
}

void tmem_port_join(struct tmem_port *port)
{
	init_waitqueue_func_entry(&port->entry, port_event);
	init_poll_funcptr(&port->table, join_port);
	vfs_poll(port->file, &port->table);
}

void tmem_port_leave(struct tmem_port *port)
{
	if (port->head)
		remove_wait_queue(port->head, &port->entry);
}

bool tmem_port_fits(struct file *file)
{
	return file->f_op->read && file->f_op->write && file_can_poll(file) &&
	       file->f_mode & FMODE_READ && file->f_mode & FMODE_WRITE &&
	       file->f_flags & O_NONBLOCK;
}

static bool told_to_stop(const struct tmem_port *port)
{
	return READ_ONCE(*port->stop);
}

/* 0, -EPIPE: the host has gone, -ETIMEDOUT, -EINTR: the end. */
static int wait_port(struct tmem_port *port, __poll_t wanted, long timeout)
{
	long left;

	wanted |= EPOLLHUP;
	left = wait_event_killable_timeout(*port->wake, told_to_stop(port) ||
					   (vfs_poll(port->file, NULL) & wanted), timeout);
	if (left < 0 || told_to_stop(port) || fatal_signal_pending(current))
		return -EINTR;
	if (!left)
		return -ETIMEDOUT;
	/*
	 * what was sent before the host went away is of no use: it asks for a SYNC when it is back
	 */
	if (vfs_poll(port->file, NULL) & EPOLLHUP)
		return -EPIPE;
	return 0;
}

static int write_all(struct tmem_port *port, size_t length)
{
	size_t done = 0, most = length;
	int err;

	while (done < length) {
		loff_t position = 0;
		ssize_t written;

		err = wait_port(port, EPOLLOUT, MAX_SCHEDULE_TIMEOUT);
		if (err)
			return err;
		written = port->file->f_op->write(port->file, port->buffer + done,
						    min(length - done, most), &position);
		if (written == -ENOMEM) {
			/*
			 * The port copies each write into memory of its own: ask for less, and give
			 * others time to free some.
			 */
			most = max_t(size_t, most / 2, 512);
			schedule_timeout_killable(1);
		} else if (written != -EAGAIN && written != -ERESTARTSYS) {
			if (written <= 0)
				return written ?: -EPIPE;
			done += written;
		}
	}
	return 0;
}

/* Sets *got, also when it fails. */
static int read_all(struct tmem_port *port, size_t offset, size_t length, long timeout, size_t *got)
{
	int err;

	*got = 0;
	while (*got < length) {
		loff_t position = 0;
		ssize_t this;

		err = wait_port(port, EPOLLIN, timeout);
		if (err)
			return err;
		this = port->file->f_op->read(port->file, port->buffer + offset + *got,
						length - *got, &position);
		if (this == -EAGAIN || this == -ERESTARTSYS)
			continue;
		if (this <= 0)
			return this ?: -EPIPE;
		*got += this;
	}
	return 0;
}

int tmem_port_wait_for_host(struct tmem_port *port)
{
	int err = wait_event_killable(*port->wake, told_to_stop(port) ||
				      !(vfs_poll(port->file, NULL) & EPOLLHUP));

	return err || told_to_stop(port) ? -EINTR : 0;
}

/* ---- frames ---------------------------------------------------------------------------------- */

struct sync {
	struct tmem_frame frame;
	u8 secret[TMEM_SYNC_SIZE];
};

static bool is_sync(const struct tmem_frame *frame)
{
	return frame->magic == cpu_to_le32(TMEM_FRAME_SYNC) &&
	       frame->length == cpu_to_le32(TMEM_SYNC_SIZE);
}

/* Sends a SYNC back that lies in the buffer. -ERESTART: what was under way is to be repeated. */
static int answer_sync(struct tmem_port *port, size_t offset)
{
	struct sync sync;
	int err;

	if (copy_from_user(&sync, port->buffer + offset, sizeof(sync)) ||
	    copy_to_user(port->buffer, &sync, sizeof(sync)))
		return -EFAULT;
	err = write_all(port, sizeof(sync));
	return err ?: -ERESTART;
}

/* The host cannot be told that it is not understood, but by what it does not understand. */
int tmem_port_end_stream(struct tmem_port *port)
{
	static const struct tmem_frame none;

	if (copy_to_user(port->buffer, &none, sizeof(none)))
		return -EFAULT;
	return write_all(port, sizeof(none));
}

/* Drops what comes before the SYNC. */
int tmem_port_find_sync(struct tmem_port *port)
{
	struct sync sync;
	size_t got, have = 0;
	int err;

	for (;;) {
		err = read_all(port, 0, sizeof(sync) - have, MAX_SCHEDULE_TIMEOUT, &got);
		if (err)
			return err;
		if (copy_from_user((u8 *)&sync + have, port->buffer, sizeof(sync) - have))
			return -EFAULT;
		if (is_sync(&sync.frame))
			break;
		/* on by a byte: nobody knows where it begins */
		memmove(&sync, (u8 *)&sync + 1, sizeof(sync) - 1);
		have = sizeof(sync) - 1;
	}
	if (copy_to_user(port->buffer, &sync, sizeof(sync)))
		return -EFAULT;
	return answer_sync(port, 0);
}

/*
 * The rest of a frame. The host may have been restarted in the middle of it without our seeing the
 * port closed; then a SYNC is the last that came, and nothing follows until it is answered.
 */
static int read_body(struct tmem_port *port, size_t length)
{
	struct tmem_frame frame;
	size_t done = 0, got;
	int err;

	while (done < length) {
		err = read_all(port, done, length - done, STALL, &got);
		done += got;
		if (err != -ETIMEDOUT) {
			if (err)
				return err;
			continue;
		}
		if (done < sizeof(struct sync))
			continue;
		if (copy_from_user(&frame, port->buffer + done - sizeof(struct sync),
				   sizeof(frame)))
			return -EFAULT;
		if (is_sync(&frame))
			return answer_sync(port, done - sizeof(struct sync));
	}
	return 0;
}

/* Into the buffer; its length, or -EFAULT: the agent did not lock it. */
static ssize_t encode(struct tmem_port *port, const struct tmem_call *call)
{
	size_t items = tmem_call_items_length(call);
	size_t data = tmem_call_sends(call) ? PAGE_SIZE : 0;
	struct tmem_frame frame = {
		.magic = cpu_to_le32(TMEM_FRAME_REQUEST),
		.length = cpu_to_le32(sizeof(call->request) + items + data),
	};
	char __user *to = port->buffer;
	unsigned long left;
	void *mapped;

	if (copy_to_user(to, &frame, sizeof(frame)))
		return -EFAULT;
	to += sizeof(frame);
	if (copy_to_user(to, &call->request, sizeof(call->request)))
		return -EFAULT;
	to += sizeof(call->request);
	if (items && copy_to_user(to, call->items, items))
		return -EFAULT;
	to += items;
	if (data) {
		mapped = kmap(call->page);
		left = copy_to_user(to, mapped, data);
		kunmap(call->page);
		if (left)
			return -EFAULT;
		to += data;
	}
	return to - port->buffer;
}

/* -EBADMSG: no frame, or not the reply's. */
static int decode(struct tmem_port *port, struct tmem_call *call, size_t length)
{
	unsigned long left;
	void *mapped;

	if (copy_from_user(&call->reply, port->buffer, sizeof(call->reply)))
		return -EFAULT;
	if (!tmem_call_fetches(call) || tmem_call_status(call) != TMEM_OK)
		return 0;
	if (length != sizeof(call->reply) + PAGE_SIZE)
		return -EBADMSG;
	mapped = kmap(call->page);
	left = copy_from_user(mapped, port->buffer + sizeof(call->reply), PAGE_SIZE);
	kunmap(call->page);
	return left ? -EFAULT : 0;
}

/* The next frame's body, in the buffer; its length. */
static ssize_t read_frame(struct tmem_port *port, __le32 *magic)
{
	struct tmem_frame frame;
	size_t got;
	u32 length;
	int err;

	err = read_all(port, 0, sizeof(frame), MAX_SCHEDULE_TIMEOUT, &got);
	if (err)
		return err;
	if (copy_from_user(&frame, port->buffer, sizeof(frame)))
		return -EFAULT;
	if (is_sync(&frame)) {
		err = read_all(port, sizeof(frame), TMEM_SYNC_SIZE, MAX_SCHEDULE_TIMEOUT, &got);
		return err ?: answer_sync(port, 0);
	}
	length = le32_to_cpu(frame.length);
	if (length > port->length)
		return -EBADMSG;
	if (frame.magic != cpu_to_le32(TMEM_FRAME_REPLY) &&
	    frame.magic != cpu_to_le32(TMEM_FRAME_CONTROL))
		return -EBADMSG;
	*magic = frame.magic;
	err = read_body(port, length);
	return err ?: length;
}

/* Reads frames until the one that answers this call. */
static int await_reply(struct tmem_port *port, struct tmem_call *call)
{
	struct tmem_reply reply;
	ssize_t length;
	__le32 magic;

	for (;;) {
		length = read_frame(port, &magic);
		if (length < 0)
			return length;
		/* what agents have to say to each other is said before the port is lent */
		if (magic == cpu_to_le32(TMEM_FRAME_CONTROL))
			continue;
		if (length < sizeof(reply))
			return -EBADMSG;
		if (copy_from_user(&reply, port->buffer, sizeof(reply)))
			return -EFAULT;
		if (reply.cookie == call->request.cookie)
			return decode(port, call, length);
	}
}

int tmem_port_transact(struct tmem_port *port, struct tmem_channel *channel, struct tmem_call *call)
{
	ssize_t length;
	int err;

	err = tmem_call_stamp(channel, call);
	if (err)
		return err;
	length = encode(port, call);
	if (length < 0)
		return length;
	err = write_all(port, length);
	if (err)
		return err;
	return await_reply(port, call);
}

bool tmem_port_speaks(struct tmem_port *port)
{
	return (vfs_poll(port->file, NULL) & (EPOLLIN | EPOLLHUP)) == EPOLLIN;
}

int tmem_port_listen(struct tmem_port *port)
{
	ssize_t length;
	__le32 magic;

	length = read_frame(port, &magic);
	return min_t(ssize_t, length, 0);
}

int tmem_port_send_control(struct tmem_port *port, const void *body, u32 length)
{
	struct tmem_frame frame = {
		.magic = cpu_to_le32(TMEM_FRAME_CONTROL),
		.length = cpu_to_le32(length),
	};

	if (copy_to_user(port->buffer, &frame, sizeof(frame)) ||
	    copy_to_user(port->buffer + sizeof(frame), body, length))
		return -EFAULT;
	return write_all(port, sizeof(frame) + length);
}
