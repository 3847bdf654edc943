// SPDX-License-Identifier: Apache-2.0
/* virtio-serial: the ABI in frames, over the kernel's own driver of the port. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

struct stream {
	int fd;
};

static struct stream stream;
static struct channel channel;

/* The port of that name, or -1. */
int port_open(const char *name)
{
	DIR *folder = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int found = -1;

	while (folder && found < 0 && (entry = readdir(folder))) {
		char path[320], text[128] = "";
		int fd;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
			continue;
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
		text[strcspn(text, "\n")] = 0;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		if (!strcmp(text, name) && (found = open(path, O_RDWR | O_CLOEXEC)) < 0)
			die(path);
	}
	if (folder)
		closedir(folder);
	return found;
}

static int take(int fd, void *to, size_t length)
{
	for (size_t have = 0; have < length;) {
		ssize_t n = read(fd, (uint8_t *)to + have, length - have);

		if (n <= 0)
			return -1;
		have += n;
	}
	return 0;
}

static int give(int fd, const void *from, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = write(fd, (const uint8_t *)from + done, length - done);

		if (n <= 0)
			return -1;
		done += n;
	}
	return 0;
}

/* Sends what is in `frame` behind its header, and takes the reply into it; its data follows the header there. */
static int round_trip(int fd, uint8_t *frame, uint32_t length, struct tmem_reply *reply, uint8_t *data, size_t room)
{
	struct tmem_frame header = { TMEM_FRAME_REQUEST, length };

	memcpy(frame, &header, sizeof(header));
	if (give(fd, frame, sizeof(header) + length) || take(fd, &header, sizeof(header)))
		return -1;
	if (header.magic != TMEM_FRAME_REPLY || header.length < sizeof(*reply) || header.length - sizeof(*reply) > room)
		return -1;
	if (take(fd, reply, sizeof(*reply)) || take(fd, data, header.length - sizeof(*reply)))
		return -1;
	return reply->status;
}

static int plain(struct channel *c, struct tmem_request *request, struct tmem_reply *reply)
{
	struct stream *s = c->own;
	uint8_t *frame = lanes[0].frame;

	memcpy(frame + sizeof(struct tmem_frame), request, sizeof(*request));
	return round_trip(s->fd, frame, sizeof(*request), reply, lanes[0].fetched, 0);
}

static int ask(struct channel *c, struct lane *lane, const struct call *call)
{
	struct stream *s = c->own;
	uint8_t *at = lane->frame + sizeof(struct tmem_frame);
	uint32_t each = call->length ? call->length : call->bytes;
	struct tmem_reply reply;
	struct tmem_item item;

	*(struct tmem_request *)at = request_of(c, call, &item);
	at += sizeof(struct tmem_request);
	if (call->op == TMEM_OP_EXCHANGE) {
		memcpy(at, &item, sizeof(item));
		at += sizeof(item);
	}
	for (uint32_t i = 0; i < call->count && call->sends; i++, at += each)
		memcpy(at, call->sends[i], each);
	return round_trip(s->fd, lane->frame, at - lane->frame - sizeof(struct tmem_frame), &reply, call->fetches,
			  call->fetches ? (size_t)call->count * each : 0);
}

/* In step with the host: its SYNC goes back as it came. */
static bool in_step(int fd, uint8_t *frame)
{
	struct tmem_frame header;

	for (;;) {
		if (take(fd, &header, sizeof(header)) || header.length > TMEM_FRAME_MAX)
			return false;
		memcpy(frame, &header, sizeof(header));
		if (take(fd, frame + sizeof(header), header.length))
			return false;
		if (header.magic == TMEM_FRAME_SYNC)
			return !give(fd, frame, sizeof(header) + header.length);
	}
}

struct channel *stream_open(const char *port)
{
	stream.fd = port_open(port);
	channel = (struct channel){ .ask = ask, .own = &stream, .lanes = 1 };
	if (stream.fd < 0 || !in_step(stream.fd, lanes[0].frame) || !open_pools(&channel, plain))
		return NULL;
	return &channel;
}
