// SPDX-License-Identifier: GPL-2.0-only
/*
 * Channel "serial": requests as frames on a virtio-serial port, forwarded by the guest's agent from
 * inside an ioctl.
 *
 * Why so: a user-space forwarder deadlocks, as it needs memory to free memory; and a kernel thread
 * cannot use the port, whose file operations know user pointers only. So the agent opens the port,
 * negotiates, locks a buffer, and lends itself: in its context user pointers are valid, and
 * PF_MEMALLOC lets the port's own allocations go to the reserves without reclaim.
 *
 * One request at a time. The host may go away and come back, which nobody in this guest's user
 * space could attend to while memory is short: so its SYNC is answered here, HELLO said again, and
 * the request under way repeated. Puts, gets and flushes can be repeated, and the stream keeps
 * their order. A reply to an earlier attempt is known by its cookie.
 *
 * What the agent has to tell its host meanwhile goes out here, too, between two requests.
 */
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "tmem.h"
#include "tmem_ioctl.h"

/* When nothing comes for so long within a frame, its end may never come: look for a SYNC. */
#define STALL	HZ

/* A CONTROL frame of the agent's that waits to be sent. */
struct control {
	u32 length;
	u8 body[];
};

static struct {
	struct tmem_channel *channel;
	spinlock_t lock;		/* guards what follows */
	struct list_head waiting;
	bool open;			/* requests may be queued */
	bool served;			/* somebody is in the ioctl */
	bool stop;
	struct control *control;
	wait_queue_head_t wake;		/* of who serves */
} service;

/* Who serves, on its stack. */
struct server {
	struct file *port;
	char __user *buffer;
	size_t length;
	poll_table table;
	wait_queue_entry_t entry;
	wait_queue_head_t *head;	/* the port's; we are on it */
};

static struct server *current_server;

/* ---- the port -------------------------------------------------------------------------------- */

static int port_event(wait_queue_entry_t *entry, unsigned int mode, int sync, void *key)
{
	wake_up(&service.wake);
	return 0;
}

static void join_port(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct server *server = container_of(table, struct server, table);

	/* a port has one */
	if (server->head)
		return;
	server->head = head;
	add_wait_queue(head, &server->entry);
}

static bool told_to_stop(void)
{
	return READ_ONCE(service.stop);
}

/* 0, -EPIPE: the host has gone, -ETIMEDOUT, -EINTR: the end. */
static int wait_port(struct server *server, __poll_t wanted, long timeout)
{
	long left;

	wanted |= EPOLLHUP;
	left = wait_event_killable_timeout(service.wake, told_to_stop() ||
					   (vfs_poll(server->port, NULL) & wanted), timeout);
	if (left < 0 || told_to_stop() || fatal_signal_pending(current))
		return -EINTR;
	if (!left)
		return -ETIMEDOUT;
	/*
	 * what was sent before the host went away is of no use: it asks for a SYNC when it is back
	 */
	if (vfs_poll(server->port, NULL) & EPOLLHUP)
		return -EPIPE;
	return 0;
}

static int write_all(struct server *server, size_t length)
{
	size_t done = 0, most = length;
	int err;

	while (done < length) {
		loff_t position = 0;
		ssize_t written;

		err = wait_port(server, EPOLLOUT, MAX_SCHEDULE_TIMEOUT);
		if (err)
			return err;
		written = server->port->f_op->write(server->port, server->buffer + done,
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
static int read_all(struct server *server, size_t offset, size_t length, long timeout, size_t *got)
{
	int err;

	*got = 0;
	while (*got < length) {
		loff_t position = 0;
		ssize_t this;

		err = wait_port(server, EPOLLIN, timeout);
		if (err)
			return err;
		this = server->port->f_op->read(server->port, server->buffer + offset + *got,
						length - *got, &position);
		if (this == -EAGAIN || this == -ERESTARTSYS)
			continue;
		if (this <= 0)
			return this ?: -EPIPE;
		*got += this;
	}
	return 0;
}

static int wait_for_host(struct server *server)
{
	int err = wait_event_killable(service.wake, told_to_stop() ||
				      !(vfs_poll(server->port, NULL) & EPOLLHUP));

	return err || told_to_stop() ? -EINTR : 0;
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
static int answer_sync(struct server *server, size_t offset)
{
	struct sync sync;
	int err;

	if (copy_from_user(&sync, server->buffer + offset, sizeof(sync)) ||
	    copy_to_user(server->buffer, &sync, sizeof(sync)))
		return -EFAULT;
	err = write_all(server, sizeof(sync));
	return err ?: -ERESTART;
}

/* The host cannot be told that it is not understood, but by what it does not understand. */
static int end_stream(struct server *server)
{
	static const struct tmem_frame none;

	if (copy_to_user(server->buffer, &none, sizeof(none)))
		return -EFAULT;
	return write_all(server, sizeof(none));
}

/* Drops what comes before the SYNC. */
static int find_sync(struct server *server)
{
	struct sync sync;
	size_t got, have = 0;
	int err;

	for (;;) {
		err = read_all(server, 0, sizeof(sync) - have, MAX_SCHEDULE_TIMEOUT, &got);
		if (err)
			return err;
		if (copy_from_user((u8 *)&sync + have, server->buffer, sizeof(sync) - have))
			return -EFAULT;
		if (is_sync(&sync.frame))
			break;
		/* on by a byte: nobody knows where it begins */
		memmove(&sync, (u8 *)&sync + 1, sizeof(sync) - 1);
		have = sizeof(sync) - 1;
	}
	if (copy_to_user(server->buffer, &sync, sizeof(sync)))
		return -EFAULT;
	return answer_sync(server, 0);
}

/*
 * The rest of a frame. The host may have been restarted in the middle of it without our seeing the
 * port closed; then a SYNC is the last that came, and nothing follows until it is answered.
 */
static int read_body(struct server *server, size_t length)
{
	struct tmem_frame frame;
	size_t done = 0, got;
	int err;

	while (done < length) {
		err = read_all(server, done, length - done, STALL, &got);
		done += got;
		if (err != -ETIMEDOUT) {
			if (err)
				return err;
			continue;
		}
		if (done < sizeof(struct sync))
			continue;
		if (copy_from_user(&frame, server->buffer + done - sizeof(struct sync),
				   sizeof(frame)))
			return -EFAULT;
		if (is_sync(&frame))
			return answer_sync(server, done - sizeof(struct sync));
	}
	return 0;
}

/* Into the buffer; its length, or -EFAULT: the agent did not lock it. */
static ssize_t encode(struct server *server, const struct tmem_call *call)
{
	size_t items = tmem_call_items_length(call);
	size_t data = tmem_call_sends(call) ? PAGE_SIZE : 0;
	struct tmem_frame frame = {
		.magic = cpu_to_le32(TMEM_FRAME_REQUEST),
		.length = cpu_to_le32(sizeof(call->request) + items + data),
	};
	char __user *to = server->buffer;
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
	return to - server->buffer;
}

/* -EBADMSG: no frame, or not the reply's. */
static int decode(struct server *server, struct tmem_call *call, size_t length)
{
	unsigned long left;
	void *mapped;

	if (copy_from_user(&call->reply, server->buffer, sizeof(call->reply)))
		return -EFAULT;
	if (!tmem_call_fetches(call) || tmem_call_status(call) != TMEM_OK)
		return 0;
	if (length != sizeof(call->reply) + PAGE_SIZE)
		return -EBADMSG;
	mapped = kmap(call->page);
	left = copy_from_user(mapped, server->buffer + sizeof(call->reply), PAGE_SIZE);
	kunmap(call->page);
	return left ? -EFAULT : 0;
}

/* The next frame's body, in the buffer; its length. */
static ssize_t read_frame(struct server *server, __le32 *magic)
{
	struct tmem_frame frame;
	size_t got;
	u32 length;
	int err;

	err = read_all(server, 0, sizeof(frame), MAX_SCHEDULE_TIMEOUT, &got);
	if (err)
		return err;
	if (copy_from_user(&frame, server->buffer, sizeof(frame)))
		return -EFAULT;
	if (is_sync(&frame)) {
		err = read_all(server, sizeof(frame), TMEM_SYNC_SIZE, MAX_SCHEDULE_TIMEOUT, &got);
		return err ?: answer_sync(server, 0);
	}
	length = le32_to_cpu(frame.length);
	if (length > server->length)
		return -EBADMSG;
	if (frame.magic != cpu_to_le32(TMEM_FRAME_REPLY) &&
	    frame.magic != cpu_to_le32(TMEM_FRAME_CONTROL))
		return -EBADMSG;
	*magic = frame.magic;
	err = read_body(server, length);
	return err ?: length;
}

/* Reads frames until the one that answers this call. */
static int await_reply(struct server *server, struct tmem_call *call)
{
	struct tmem_reply reply;
	ssize_t length;
	__le32 magic;

	for (;;) {
		length = read_frame(server, &magic);
		if (length < 0)
			return length;
		/* what agents have to say to each other is said before the port is lent */
		if (magic == cpu_to_le32(TMEM_FRAME_CONTROL))
			continue;
		if (length < sizeof(reply))
			return -EBADMSG;
		if (copy_from_user(&reply, server->buffer, sizeof(reply)))
			return -EFAULT;
		if (reply.cookie == call->request.cookie)
			return decode(server, call, length);
	}
}

/* One attempt. */
static int transact(struct server *server, struct tmem_call *call)
{
	ssize_t length;
	int err;

	err = tmem_call_stamp(service.channel, call);
	if (err)
		return err;
	length = encode(server, call);
	if (length < 0)
		return length;
	err = write_all(server, length);
	if (err)
		return err;
	return await_reply(server, call);
}

/* What can be mended: by HELLO after a SYNC was answered, else after waiting for one. */
static bool host_went(int err)
{
	return err == -ERESTART || err == -EPIPE || err == -EBADMSG;
}

/* HELLO and the pools, until a host answers. `err` says what happened to the stream before. */
static int meet_host(struct server *server, int err)
{
	do {
		if (err == -EBADMSG)
			err = end_stream(server);
		if (err != -ERESTART) {
			err = wait_for_host(server);
			if (err)
				return err;
			err = find_sync(server);
			if (err != -ERESTART)
				continue;
		}
		err = tmem_channel_start(service.channel);
	} while (host_went(err));
	return err;
}

static int serve_call(struct server *server, struct tmem_call *call)
{
	int err;

	for (;;) {
		err = transact(server, call);
		/* a new agent does not know that HELLO was said */
		if (!err && tmem_call_status(call) == TMEM_NOT_NEGOTIATED)
			err = -ERESTART;
		if (!host_went(err))
			return err;
		tmem_channel_count(service.channel, TMEM_C_REPEATED);
		err = meet_host(server, err);
		if (err)
			return err;
	}
}

/* ---- requests -------------------------------------------------------------------------------- */

static int serial_submit(struct tmem_channel *channel, struct tmem_call *call)
{
	spin_lock(&service.lock);
	if (!service.open) {
		spin_unlock(&service.lock);
		return -ENOLINK;
	}
	list_add_tail(&call->link, &service.waiting);
	spin_unlock(&service.lock);
	wake_up(&service.wake);
	wait_for_completion(&call->done);
	return call->error;
}

static int serial_execute(struct tmem_channel *channel, struct tmem_call *call)
{
	/* only meet_host() leads here, on the stack of who serves */
	return transact(current_server, call);
}

static void serial_abort(struct tmem_channel *channel)
{
	struct tmem_call *call, *next;
	LIST_HEAD(refused);

	spin_lock(&service.lock);
	service.open = false;
	list_splice_init(&service.waiting, &refused);
	spin_unlock(&service.lock);
	list_for_each_entry_safe(call, next, &refused, link) {
		list_del(&call->link);
		call->error = -ENOLINK;
		complete(&call->done);
	}
}

static const struct tmem_channel_ops serial_ops = {
	.name = "serial",
	.submit = serial_submit,
	.execute = serial_execute,
	.abort = serial_abort,
};

static struct tmem_call *next_call(void)
{
	struct tmem_call *call;

	spin_lock(&service.lock);
	call = list_first_entry_or_null(&service.waiting, struct tmem_call, link);
	if (call)
		list_del(&call->link);
	spin_unlock(&service.lock);
	return call;
}

/* Something comes though nothing was asked: a new host's SYNC, or what is not for us. */
static bool unasked(struct server *server)
{
	return (vfs_poll(server->port, NULL) & (EPOLLIN | EPOLLHUP)) == EPOLLIN;
}

static int listen(struct server *server)
{
	ssize_t length;
	__le32 magic;

	length = read_frame(server, &magic);
	if (length >= 0)
		return 0;
	return host_went(length) ? meet_host(server, length) : length;
}

/*
 * What the agent has to say goes where no request is under way: in the middle of one the host would
 * take it for a page.
 */
static int send_control(struct server *server)
{
	struct tmem_frame frame = { .magic = cpu_to_le32(TMEM_FRAME_CONTROL) };
	struct control *control;
	int err = -EFAULT;

	spin_lock(&service.lock);
	control = service.control;
	service.control = NULL;
	spin_unlock(&service.lock);
	if (!control)
		return 0;
	frame.length = cpu_to_le32(control->length);
	if (!copy_to_user(server->buffer, &frame, sizeof(frame)) &&
	    !copy_to_user(server->buffer + sizeof(frame), control->body, control->length))
		err = write_all(server, sizeof(frame) + control->length);
	kfree(control);
	return host_went(err) ? meet_host(server, err) : err;
}

static int serve_all(struct server *server)
{
	struct tmem_call *call;
	int err;

	for (;;) {
		err = wait_event_killable(service.wake, told_to_stop() || unasked(server) ||
					  READ_ONCE(service.control) ||
					  !list_empty_careful(&service.waiting));
		if (err || told_to_stop())
			return -EINTR;
		err = send_control(server);
		if (err)
			return err;
		call = next_call();
		if (!call) {
			err = unasked(server) ? listen(server) : 0;
			if (err)
				return err;
			continue;
		}
		err = serve_call(server, call);
		call->error = err;
		complete(&call->done);
		/* a pool that the host did not give back is a trouble of that call alone */
		if (err && err != -ENOLINK)
			return err;
	}
}

/* ---- /dev/tmem ------------------------------------------------------------------------------- */

static int take_over(void)
{
	int err = -EBUSY;

	spin_lock(&service.lock);
	if (!service.served) {
		service.served = true;
		service.stop = false;
		service.open = true;
		err = 0;
	}
	spin_unlock(&service.lock);
	return err;
}

static void hand_back(void)
{
	struct control *control;

	spin_lock(&service.lock);
	service.served = false;
	control = service.control;
	service.control = NULL;
	spin_unlock(&service.lock);
	kfree(control);
}

static int serve(const struct tmem_serve *wanted)
{
	struct server server = {
		.buffer = u64_to_user_ptr(wanted->buffer),
		.length = wanted->length,
	};
	unsigned int flags;
	int err;

	if (wanted->reserved || wanted->length < TMEM_SERVE_BUFFER || wanted->length > INT_MAX)
		return -EINVAL;
	if (!access_ok(server.buffer, server.length))
		return -EFAULT;
	server.port = fget(wanted->port);
	if (!server.port)
		return -EBADF;
	err = -EINVAL;
	/* the port, and nothing that would block or wants another kind of call */
	if (!server.port->f_op->read || !server.port->f_op->write || !file_can_poll(server.port))
		goto err_port;
	if (!(server.port->f_mode & FMODE_READ) || !(server.port->f_mode & FMODE_WRITE) ||
	    !(server.port->f_flags & O_NONBLOCK))
		goto err_port;
	err = take_over();
	if (err)
		goto err_port;
	current_server = &server;
	init_waitqueue_func_entry(&server.entry, port_event);
	init_poll_funcptr(&server.table, join_port);
	vfs_poll(server.port, &server.table);

	/* swap waits for this task: it takes from the reserves, and never reclaims */
	flags = memalloc_noreclaim_save();
	/*
	 * the agent has answered the host's SYNC, or it is still to be read: either way HELLO is
	 * next
	 */
	err = meet_host(&server, -ERESTART);
	if (!err)
		err = serve_all(&server);
	tmem_channel_stop(service.channel);
	memalloc_noreclaim_restore(flags);

	if (server.head)
		remove_wait_queue(server.head, &server.entry);
	current_server = NULL;
	hand_back();
err_port:
	fput(server.port);
	return err;
}

static int stop(void)
{
	int err = -ESRCH;

	spin_lock(&service.lock);
	if (service.served) {
		WRITE_ONCE(service.stop, true);
		err = 0;
	}
	spin_unlock(&service.lock);
	wake_up(&service.wake);
	return err;
}

static int wait_up(unsigned long milliseconds)
{
	long left = msecs_to_jiffies(min(milliseconds, 3600000UL));

	left = wait_event_interruptible_timeout(service.channel->changed,
						tmem_channel_is_up(service.channel), left);

	return left < 0 ? left : left ? 0 : -ETIMEDOUT;
}

static int say(const struct tmem_control *wanted)
{
	struct control *control;
	int err = -ESRCH;

	if (wanted->reserved || !wanted->length || wanted->length > TMEM_CONTROL_BUFFER)
		return -EINVAL;
	control = kmalloc(struct_size(control, body, wanted->length), GFP_KERNEL);
	if (!control)
		return -ENOMEM;
	control->length = wanted->length;
	if (copy_from_user(control->body, u64_to_user_ptr(wanted->data), wanted->length)) {
		kfree(control);
		return -EFAULT;
	}
	spin_lock(&service.lock);
	if (service.served) {
		swap(service.control, control);
		err = 0;
	}
	spin_unlock(&service.lock);
	kfree(control);
	wake_up(&service.wake);
	return err;
}

static long control(struct file *file, unsigned int command, unsigned long argument)
{
	struct tmem_control said;
	struct tmem_serve wanted;

	switch (command) {
	case TMEM_IOCTL_SERVE:
		if (copy_from_user(&wanted, (void __user *)argument, sizeof(wanted)))
			return -EFAULT;
		return serve(&wanted);
	case TMEM_IOCTL_STOP:
		return stop();
	case TMEM_IOCTL_WAIT_UP:
		return wait_up(argument);
	case TMEM_IOCTL_CONTROL:
		if (copy_from_user(&said, (void __user *)argument, sizeof(said)))
			return -EFAULT;
		return say(&said);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = control,
	.llseek = noop_llseek,
};

static struct miscdevice misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tmem",
	.fops = &operations,
	.mode = 0600,
};

int tmem_serial_init(struct tmem_channel *channel)
{
	channel->ops = &serial_ops;
	service.channel = channel;
	spin_lock_init(&service.lock);
	INIT_LIST_HEAD(&service.waiting);
	init_waitqueue_head(&service.wake);
	return misc_register(&misc);
}

/* Nobody serves: who does has the file open. */
void tmem_serial_exit(void)
{
	misc_deregister(&misc);
}
