/* SPDX-License-Identifier: GPL-2.0-only */
/* Channel "serial": serial.c has the requests and who serves them, serial_port.c the port. */
#ifndef TMEM_SERIAL_H
#define TMEM_SERIAL_H

#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/wait.h>

#include "tmem.h"

/* The port and the buffer that the agent lent; on the stack of who serves. */
struct tmem_port {
	struct file *file;
	char __user *buffer;
	size_t length;
	wait_queue_head_t *wake;	/* of who serves */
	const bool *stop;		/* the end is asked for */
	poll_table table;
	wait_queue_entry_t entry;
	wait_queue_head_t *head;	/* the port's; we are on it */
};

/* It can be read, written and polled, and does not block. */
bool tmem_port_fits(struct file *file);
/* From here on what happens at the port wakes who serves. */
void tmem_port_join(struct tmem_port *port);
void tmem_port_leave(struct tmem_port *port);

/*
 * Each returns 0; -EINTR when it is told to stop or killed; -EFAULT when the agent's buffer is not
 * what it was; or what can be mended, which tmem_port_host_went() knows: -ERESTART, a SYNC was
 * answered, so HELLO is to be said again; -EPIPE, the host has gone; -EBADMSG, what came is no
 * frame.
 */
static inline bool tmem_port_host_went(int err)
{
	return err == -ERESTART || err == -EPIPE || err == -EBADMSG;
}

/* One attempt at a request, and its reply. */
int tmem_port_transact(struct tmem_port *port, struct tmem_channel *channel,
		       struct tmem_call *call);
/* Sends what the agent has to say to its host. */
int tmem_port_send_control(struct tmem_port *port, const void *body, u32 length);
/* Something comes though nothing was asked: a new host's SYNC, or what is not for us. */
bool tmem_port_speaks(struct tmem_port *port);
int tmem_port_listen(struct tmem_port *port);
/* Until somebody has the port's other end open. */
int tmem_port_wait_for_host(struct tmem_port *port);
/* Drops what comes before the next SYNC; -ERESTART: it was answered. */
int tmem_port_find_sync(struct tmem_port *port);
/* Says that what came is not understood. */
int tmem_port_end_stream(struct tmem_port *port);

#endif
