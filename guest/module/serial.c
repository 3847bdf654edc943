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
#include <linux/file.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "serial.h"
#include "tmem_ioctl.h"

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

/* The port of who serves. */
static struct tmem_port *current_port;

/* ---- the host -------------------------------------------------------------------------------- */

/* HELLO and the pools, until a host answers. `err` says what happened to the stream before. */
static int meet_host(struct tmem_port *port, int err)
{
	do {
		if (err == -EBADMSG)
			err = tmem_port_end_stream(port);
		if (err != -ERESTART) {
			err = tmem_port_wait_for_host(port);
			if (err)
				return err;
			err = tmem_port_find_sync(port);
			if (err != -ERESTART)
				continue;
		}
		err = tmem_channel_start(service.channel);
	} while (tmem_port_host_went(err));
	return err;
}

static int serve_call(struct tmem_port *port, struct tmem_call *call)
{
	int err;

	for (;;) {
		err = tmem_port_transact(port, service.channel, call);
		/* a new agent does not know that HELLO was said */
		if (!err && tmem_call_status(call) == TMEM_NOT_NEGOTIATED)
			err = -ERESTART;
		if (!tmem_port_host_went(err))
			return err;
		tmem_channel_count(service.channel, TMEM_C_REPEATED);
		err = meet_host(port, err);
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
	return tmem_port_transact(current_port, channel, call);
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

static int listen(struct tmem_port *port)
{
	int err = tmem_port_listen(port);

	return tmem_port_host_went(err) ? meet_host(port, err) : err;
}

/*
 * What the agent has to say goes where no request is under way: in the middle of one the host would
 * take it for a page.
 */
static int send_control(struct tmem_port *port)
{
	struct control *control;
	int err;

	spin_lock(&service.lock);
	control = service.control;
	service.control = NULL;
	spin_unlock(&service.lock);
	if (!control)
		return 0;
	err = tmem_port_send_control(port, control->body, control->length);
	kfree(control);
	return tmem_port_host_went(err) ? meet_host(port, err) : err;
}

static bool has_work(struct tmem_port *port)
{
	return tmem_port_speaks(port) || READ_ONCE(service.control) ||
	       !list_empty_careful(&service.waiting);
}

static int serve_all(struct tmem_port *port)
{
	struct tmem_call *call;
	int err;

	for (;;) {
		err = wait_event_killable(service.wake,
					  READ_ONCE(service.stop) || has_work(port));
		if (err || READ_ONCE(service.stop))
			return -EINTR;
		err = send_control(port);
		if (err)
			return err;
		call = next_call();
		if (!call) {
			err = tmem_port_speaks(port) ? listen(port) : 0;
			if (err)
				return err;
			continue;
		}
		err = serve_call(port, call);
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
	struct tmem_port port = {
		.buffer = u64_to_user_ptr(wanted->buffer),
		.length = wanted->length,
		.wake = &service.wake,
		.stop = &service.stop,
	};
	unsigned int flags;
	int err;

	if (wanted->reserved || wanted->length < TMEM_SERVE_BUFFER || wanted->length > INT_MAX)
		return -EINVAL;
	if (!access_ok(port.buffer, port.length))
		return -EFAULT;
	port.file = fget(wanted->port);
	if (!port.file)
		return -EBADF;
	err = -EINVAL;
	if (!tmem_port_fits(port.file))
		goto err_port;
	err = take_over();
	if (err)
		goto err_port;
	current_port = &port;
	tmem_port_join(&port);

	/* swap waits for this task: it takes from the reserves, and never reclaims */
	flags = memalloc_noreclaim_save();
	/*
	 * the agent has answered the host's SYNC, or it is still to be read: either way HELLO is
	 * next
	 */
	err = meet_host(&port, -ERESTART);
	if (!err)
		err = serve_all(&port);
	tmem_channel_stop(service.channel);
	memalloc_noreclaim_restore(flags);

	tmem_port_leave(&port);
	current_port = NULL;
	hand_back();
err_port:
	fput(port.file);
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
