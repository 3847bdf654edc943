/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR Apache-2.0 */
/* /dev/tmem: how the guest's agent lends itself and its virtio-serial port to the module. */
#ifndef TMEM_IOCTL_H
#define TMEM_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Of the buffer, at least: the largest frame that the module makes. */
#define TMEM_SERVE_BUFFER	16384u

struct tmem_serve {
	__s32 port;		/* open for reading and writing, O_NONBLOCK, negotiated */
	__u32 reserved;		/* 0 */
	__u64 buffer;		/* locked in memory (mlock), the module's alone while it serves */
	__u64 length;
};

/* What may be sent beside requests, at most: it has to fit into the buffer. */
#define TMEM_CONTROL_BUFFER	8192u

struct tmem_control {
	__u64 data;		/* the body of a CONTROL frame: one JSON object */
	__u32 length;
	__u32 reserved;		/* 0 */
};

/*
 * Serves requests until the task is killed, TMEM_IOCTL_STOP, or the host speaks something else
 * (EPROTONOSUPPORT, EPROTO). A host that goes away is waited for. EBUSY: somebody serves.
 */
#define TMEM_IOCTL_SERVE	_IOW(0xb9, 1, struct tmem_serve)
/* Makes who serves return with EINTR. ESRCH: nobody does. */
#define TMEM_IOCTL_STOP		_IO(0xb9, 2)
/* Waits until the channel is up, at most the argument's milliseconds: ETIMEDOUT. */
#define TMEM_IOCTL_WAIT_UP	_IO(0xb9, 3)
/*
 * Has a CONTROL frame sent between two requests, and does not wait for it. One that waits still is
 * dropped for the new one. ESRCH: nobody serves.
 */
#define TMEM_IOCTL_CONTROL	_IOW(0xb9, 4, struct tmem_control)

#endif
