// SPDX-License-Identifier: Apache-2.0
/*
 * A virtio device that carries tmem requests, driven from user space: its BAR mapped, the addresses of our own pages
 * in its rings, no interrupts. What a kick costs with nothing else in the way, and what several vCPUs do to each other.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "probe.h"

#define DEVICE 0x107f
#define DEVICES 8
#define SIZE 256 /* entries of a queue: request, reply and a descriptor for each page of a batch */

/* virtio 1.2, 4.1.4.3: common configuration */
enum { GFSELECT = 8, GF = 12, STATUS = 20, QSELECT = 22, QSIZE = 24, QENABLE = 28, QDESC = 32, QAVAIL = 40, QUSED = 48 };
#define RUNNING 0xf

struct queue {
	volatile uint8_t *descriptors; /* a page */
	volatile uint16_t *available, *used; /* in the page behind it */
	uint64_t descriptors_at, available_at;
	uint16_t next;
	int number;
};

struct ring {
	char folder[64];
	volatile uint8_t *bar;
	uint32_t common, notify, multiplier;
	int port; /* of the doorbell, if it is I/O; else -1 */
	bool inlined; /* kicks return with the answer */
	struct queue queues[LANES];
};

#define USED_AT 1024

int patience = 10;
static struct ring rings[DEVICES];
static struct channel channels[DEVICES];
static int found;

int ring_count(void) { return found; }
bool ring_inline(const struct channel *c) { return ((struct ring *)c->own)->inlined; }
const char *ring_doorbell(const struct channel *c) { return ((struct ring *)c->own)->port >= 0 ? "pio" : "mmio"; }

static void w8(struct ring *r, uint32_t at, uint8_t value) { *(volatile uint8_t *)(r->bar + r->common + at) = value; }
static void w16(struct ring *r, uint32_t at, uint16_t value) { *(volatile uint16_t *)(r->bar + r->common + at) = value; }
static void w32(struct ring *r, uint32_t at, uint32_t value) { *(volatile uint32_t *)(r->bar + r->common + at) = value; }
static void w64(struct ring *r, uint32_t at, uint64_t value) { w32(r, at, value), w32(r, at + 4, value >> 32); }

static void kick(struct ring *r, struct queue *q)
{
	__sync_synchronize();
	if (r->port >= 0)
		outw(q->number, r->port);
	else
		*(volatile uint16_t *)(r->bar + r->notify + r->multiplier * q->number) = q->number;
}

static void set_up(struct ring *r, struct queue *q)
{
	memset((void *)q->available, 0, PAGE);
	q->available[0] = 1; /* VRING_AVAIL_F_NO_INTERRUPT */
	q->next = 0;
	w16(r, QSELECT, q->number);
	w16(r, QSIZE, SIZE);
	w64(r, QDESC, q->descriptors_at);
	w64(r, QAVAIL, q->available_at);
	w64(r, QUSED, q->available_at + USED_AT);
	w16(r, QENABLE, 1);
}

static void start(struct ring *r)
{
	w8(r, STATUS, 0);
	w8(r, STATUS, 3);
	w32(r, 0, 0);
	r->inlined = *(volatile uint32_t *)(r->bar + r->common + 4) >> VIRTIO_TMEM_F_INLINE & 1;
	w32(r, GFSELECT, 0), w32(r, GF, r->inlined << VIRTIO_TMEM_F_INLINE | 1u << VIRTIO_TMEM_F_MQ);
	w32(r, GFSELECT, 1), w32(r, GF, 1); /* VIRTIO_F_VERSION_1 */
	w8(r, STATUS, 0xb);
	for (int i = 0; i < LANES; i++)
		set_up(r, &r->queues[i]);
	w8(r, STATUS, RUNNING);
}

static int describe(struct queue *q, int i, uint64_t at, uint32_t length, bool writable)
{
	volatile uint8_t *d = q->descriptors + 16 * i;

	*(volatile uint64_t *)d = at;
	*(volatile uint32_t *)(d + 8) = length;
	*(volatile uint16_t *)(d + 12) = 1 | (writable ? 2 : 0); /* there is a next one; the device writes it */
	*(volatile uint16_t *)(d + 14) = i + 1;
	return i + 1;
}

static int submit(struct ring *r, struct queue *q, int descriptors)
{
	*(volatile uint16_t *)(q->descriptors + 16 * (descriptors - 1) + 12) &= ~1; /* the last one */
	q->available[2 + q->next % SIZE] = 0;
	__sync_synchronize();
	q->available[1] = ++q->next;
	kick(r, q);
	__sync_synchronize();
	if (!r->inlined && q->used[1] != q->next) {
		uint64_t end = now() + patience * 1000000000ull;

		for (uint32_t i = 1; q->used[1] != q->next && (i % 4096 || now() < end); i++)
			__builtin_ia32_pause();
	}
	__sync_synchronize();
	return q->used[1] == q->next ? 0 : -1;
}

/* A request without data. */
static int plain_on(struct ring *r, struct lane *lane, struct tmem_request *request, struct tmem_reply *reply)
{
	struct queue *q = &r->queues[lane->number];

	memcpy(lane->message, request, sizeof(*request));
	describe(q, 0, lane->message_at, sizeof(*request), false);
	describe(q, 1, lane->message_at + REPLY_AT, sizeof(*reply), true);
	if (submit(r, q, 2))
		return -1;
	memcpy(reply, lane->message + REPLY_AT, sizeof(*reply));
	return reply->status;
}

static int hello(struct ring *r, struct lane *lane)
{
	struct tmem_request request = { .op = TMEM_OP_HELLO, .index = TMEM_ABI_VERSION, .argument = TMEM_FEATURES_ALL };
	struct tmem_reply reply;

	return plain_on(r, lane, &request, &reply);
}

static int plain(struct channel *c, struct tmem_request *request, struct tmem_reply *reply)
{
	return plain_on(c->own, &lanes[0], request, reply);
}

static int ask_once(struct ring *r, struct channel *c, struct lane *lane, const struct call *call)
{
	struct queue *q = &r->queues[lane->number];
	struct tmem_reply *reply = (struct tmem_reply *)(lane->message + REPLY_AT);
	struct tmem_item *item = (struct tmem_item *)(lane->message + sizeof(struct tmem_request));
	uint32_t length = sizeof(struct tmem_request) + (call->op == TMEM_OP_EXCHANGE ? sizeof(*item) : 0);
	uint32_t each = call->length ? call->length : call->bytes;
	int n;

	*(struct tmem_request *)lane->message = request_of(c, call, item);
	n = describe(q, 0, lane->message_at, length, false);
	for (uint32_t i = 0; i < call->count && call->sends; i++)
		n = describe(q, n, physical_of(call->sends[i]), each, false);
	n = describe(q, n, lane->message_at + REPLY_AT, sizeof(*reply), true);
	for (uint32_t i = 0; i < call->count && call->fetches; i++)
		n = describe(q, n, physical_of(call->fetches + (size_t)i * each), each, true);
	return submit(r, q, n) ? -1 : (int)reply->status;
}

static int ask(struct channel *c, struct lane *lane, const struct call *call)
{
	int status = ask_once(c->own, c, lane, call);

	/* another backend has taken over */
	if (status == TMEM_NOT_NEGOTIATED && hello(c->own, lane) == TMEM_OK)
		status = ask_once(c->own, c, lane, call);
	return status;
}

static uint64_t number(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 1)
		text[0] = 0;
	if (fd >= 0)
		close(fd);
	return strtoull(text, NULL, 16);
}

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

/* All of our devices in the order of their slots, and kept from the kernel's own virtio driver. */
void ring_find(void)
{
	char path[128];

	for (int slot = 0; slot < 32 && found < DEVICES; slot++) {
		struct ring *r = &rings[found];

		snprintf(r->folder, sizeof(r->folder), "/sys/bus/pci/devices/0000:00:%02x.0", slot);
		snprintf(path, sizeof(path), "%s/device", r->folder);
		if (number(path) != DEVICE)
			continue;
		snprintf(path, sizeof(path), "%s/driver_override", r->folder);
		write_to(path, "none");
		found++;
	}
}

static void capabilities(struct ring *r, const uint8_t *config, char *resource, size_t size)
{
	r->port = -1;
	for (int at = config[0x34]; at; at = config[at + 1]) {
		uint32_t offset, base;

		if (config[at] != 9)
			continue;
		memcpy(&offset, config + at + 8, 4);
		memcpy(&base, config + 0x10 + 4 * config[at + 4], 4);
		if (config[at + 3] == 1) {
			r->common = offset;
			snprintf(resource, size, "%s/resource%d", r->folder, config[at + 4]);
		} else if (config[at + 3] == 2 && base & 1) {
			r->port = (base & ~3u) + offset;
		} else if (config[at + 3] == 2) {
			r->notify = offset;
			memcpy(&r->multiplier, config + at + 16, 4);
		}
	}
}

static void map(struct ring *r)
{
	char path[128], resource[128] = "";
	uint8_t config[256];
	int fd;

	snprintf(path, sizeof(path), "%s/enable", r->folder);
	write_to(path, "1");
	snprintf(path, sizeof(path), "%s/config", r->folder);
	if ((fd = open(path, O_RDWR | O_CLOEXEC)) < 0 || pread(fd, config, sizeof(config), 0) != sizeof(config))
		die(path);
	config[4] |= 7; /* I/O, memory, bus master */
	if (pwrite(fd, config + 4, 1, 4) != 1)
		die("bus master");
	close(fd);
	capabilities(r, config, resource, sizeof(resource));
	if ((fd = open(resource, O_RDWR | O_SYNC | O_CLOEXEC)) < 0)
		die(resource);
	r->bar = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (r->bar == MAP_FAILED)
		die("BAR");
	close(fd);
	if (r->port >= 0 && iopl(3))
		die("iopl");
}

struct channel *ring_open(int number)
{
	struct channel *c = &channels[number];
	struct ring *r = &rings[number];

	map(r);
	for (int i = 0; i < LANES; i++) {
		struct queue *q = &r->queues[i];
		uint8_t *room = pages(2 * PAGE);

		*q = (struct queue){
			.descriptors = room,
			.available = (uint16_t *)(room + PAGE),
			.used = (uint16_t *)(room + PAGE + USED_AT),
			.descriptors_at = physical(room),
			.available_at = physical(room + PAGE),
			.number = i,
		};
	}
	start(r);
	*c = (struct channel){ .ask = ask, .own = r, .lanes = LANES };
	return open_pools(c, plain) ? c : NULL;
}

static atomic_bool stop;
static atomic_long kicks;

static void *hammer(void *opaque)
{
	struct channel *c = opaque;
	struct call put = { .op = TMEM_OP_PUT, .bytes = PAGE, .count = 1, .sends = &corpus };

	pin(1);
	while (!atomic_load(&stop)) {
		/* Its ring is torn down and made again by the other vCPU all the time. */
		ask_once(c->own, c, &lanes[1], &put);
		atomic_fetch_add(&kicks, 1);
	}
	return NULL;
}

/* One vCPU kicks, another resets the device and sizes its queues. */
void ring_resets(struct channel *c, int rounds)
{
	struct ring *r = c->own;
	pthread_t thread;

	atomic_store(&stop, false);
	atomic_store(&kicks, 0);
	if (pthread_create(&thread, NULL, hammer, c))
		die("threads");
	pin(0);
	while (!atomic_load(&kicks))
		__builtin_ia32_pause();
	for (int i = 0; i < rounds; i++) {
		start(r);
		hello(r, &lanes[0]);
		w16(r, QSELECT, 1);
		w16(r, QSIZE, i % 2 ? 8 : 1024);
	}
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	start(r);
	say("resets %d kicks %ld status %d\n", rounds, atomic_load(&kicks), hello(r, &lanes[0]));
}
