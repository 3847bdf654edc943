// SPDX-License-Identifier: Apache-2.0
/*
 * A guest of one process that drives a virtio-tmem device from user space: as init of a stock kernel, with the device's
 * BAR mapped and the addresses of its own pages from /proc/self/pagemap. No driver, no interrupts: what an inline kick
 * costs with nothing else in the way, and what several vCPUs do to each other.
 *
 * Kernel arguments: what=time|reset threads=N rounds=N patience=SECONDS. Prints lines "tmem: KEY VALUE ...", the last one "tmem: end".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#include "tmem_abi.h"

#define PAGE 4096
#define SIZE 16 /* entries of a queue */
#define QUEUES_MAX 8
#define DEVICE "0x107f"

/* virtio 1.2, 4.1.4.3: common configuration */
enum { GFSELECT = 8, GF = 12, STATUS = 20, QSELECT = 22, QSIZE = 24, QENABLE = 28, QDESC = 32, QAVAIL = 40, QUSED = 48 };
#define RUNNING 0xf

struct queue {
	volatile uint8_t *ring;	/* a page: descriptors, available ring, used ring */
	uint8_t *sent, *fetched; /* a page each, and one behind it */
	uint64_t ring_at, sent_at[2], fetched_at[2];
	uint16_t next;
	int number;
};

static volatile uint8_t *bar;
static uint32_t common, notify, multiplier;
static int port = -1; /* of the doorbell, if it is I/O */
static struct queue queues[QUEUES_MAX];
static uint32_t pool;
static int inlined, patience; /* whether kicks return with the answer; else seconds to wait for one */
static atomic_int go, stop, failed, again;

static void die(const char *what)
{
	printf("tmem: failed %s: %s\ntmem: end\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static uint64_t physical(const void *at)
{
	static int fd = -1;
	uint64_t entry;

	if (fd < 0)
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pread(fd, &entry, 8, (uintptr_t)at / PAGE * 8) != 8 || !(entry >> 63))
		die("pagemap");
	return (entry & ((1ull << 55) - 1)) * PAGE;
}

static void *page(void)
{
	void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	memset(at, 1, PAGE);
	return at;
}

static void w8(uint32_t at, uint8_t value) { *(volatile uint8_t *)(bar + common + at) = value; }
static void w16(uint32_t at, uint16_t value) { *(volatile uint16_t *)(bar + common + at) = value; }
static void w32(uint32_t at, uint32_t value) { *(volatile uint32_t *)(bar + common + at) = value; }

static void kick(struct queue *q)
{
	__sync_synchronize();
	if (port >= 0)
		outw(q->number, port);
	else
		*(volatile uint16_t *)(bar + notify + multiplier * q->number) = q->number;
}

static void descriptor(struct queue *q, int i, uint64_t at, uint32_t length, int flags)
{
	volatile uint8_t *d = q->ring + 16 * i;

	*(volatile uint64_t *)d = at;
	*(volatile uint32_t *)(d + 8) = length;
	*(volatile uint16_t *)(d + 12) = flags;
	*(volatile uint16_t *)(d + 14) = i + 1;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void set_up(struct queue *q)
{
	memset((void *)q->ring, 0, PAGE);
	*(volatile uint16_t *)(q->ring + 512) = 1; /* VRING_AVAIL_F_NO_INTERRUPT */
	q->next = 0;
	w16(QSELECT, q->number);
	w16(QSIZE, SIZE);
	w32(QDESC, q->ring_at), w32(QDESC + 4, q->ring_at >> 32);
	w32(QAVAIL, q->ring_at + 512), w32(QAVAIL + 4, q->ring_at >> 32);
	w32(QUSED, q->ring_at + 1024), w32(QUSED + 4, q->ring_at >> 32);
	w16(QENABLE, 1);
}

static void start(int count)
{
	w8(STATUS, 0);
	w8(STATUS, 3);
	*(volatile uint32_t *)(bar + common) = 0;
	inlined = *(volatile uint32_t *)(bar + common + 4) >> VIRTIO_TMEM_F_INLINE & 1;
	w32(GFSELECT, 0), w32(GF, inlined << VIRTIO_TMEM_F_INLINE | (count > 1));
	w32(GFSELECT, 1), w32(GF, 1); /* VIRTIO_F_VERSION_1 */
	w8(STATUS, 0xb);
	for (int i = 0; i < count; i++)
		set_up(&queues[i]);
	w8(STATUS, RUNNING);
}

/* The reply's status, or -1 when there is none: an inline device has it when the kick returns. */
static int ask(struct queue *q, struct tmem_request request, int sends, int fetches)
{
	volatile uint16_t *available = (volatile uint16_t *)(q->ring + 512), *used = (volatile uint16_t *)(q->ring + 1024);
	struct tmem_reply *reply = (struct tmem_reply *)q->fetched;
	int n = 0;

	memcpy(q->sent, &request, sizeof(request));
	descriptor(q, n++, q->sent_at[0], sizeof(request), 1);
	if (sends)
		descriptor(q, n++, q->sent_at[1], PAGE, 1);
	descriptor(q, n++, q->fetched_at[0], sizeof(*reply), 2 | (fetches != 0));
	if (fetches)
		descriptor(q, n++, q->fetched_at[1], PAGE, 2);
	available[2 + q->next % SIZE] = 0;
	__sync_synchronize();
	available[1] = ++q->next;
	kick(q);
	__sync_synchronize();
	if (!inlined)
		for (double end = now() + patience * 1e6; used[1] != q->next && now() < end;)
			sched_yield();
	return used[1] == q->next ? (int)reply->status : -1;
}

static struct tmem_request on_page(int op, uint32_t index)
{
	return (struct tmem_request){ .op = op, .pool = pool, .index = index, .count = 1 };
}

static void hello(struct queue *q)
{
	struct tmem_request r = { .op = TMEM_OP_HELLO, .index = TMEM_ABI_VERSION, .argument = TMEM_FEATURES_ALL };

	if (ask(q, r, 0, 0) != TMEM_OK)
		die("hello");
}

#define BATCH 50
#define BATCHES_MAX 4000

struct job {
	struct queue *queue;
	int rounds, op;
	double began, end;
	double us[BATCHES_MAX]; /* of one request, by batch */
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("a CPU for each thread");
}

static void *work(void *opaque)
{
	struct job *job = opaque;
	struct queue *q = job->queue;
	int sends = job->op == TMEM_OP_PUT, fetches = job->op == TMEM_OP_GET;
	double began;
	int status;

	pin(q->number);
	while (!atomic_load(&go))
		;
	began = job->began = now();
	for (int i = 0; i < job->rounds; i++) {
		uint32_t index = q->number << 16 | (i & 255);

		if (i && i % BATCH == 0) {
			double end = now();

			job->us[i / BATCH - 1] = (end - began) / BATCH;
			began = end;
		}

		if (sends)
			*(uint32_t *)(q->sent + PAGE) = index;
		status = ask(q, on_page(job->op, index), sends, fetches);
		if (status == TMEM_NOT_NEGOTIATED) {
			/* another backend has taken over */
			hello(q);
			atomic_fetch_add(&again, 1);
			status = ask(q, on_page(job->op, index), sends, fetches);
		}
		if (status != TMEM_OK || (fetches && *(uint32_t *)(q->fetched + PAGE) != index))
			atomic_fetch_add(&failed, 1);
	}
	job->end = now();
	job->us[job->rounds / BATCH - 1] = (job->end - began) / BATCH;
	return NULL;
}

static void timed(const char *name, int op, int threads, int rounds)
{
	static struct job jobs[QUEUES_MAX];
	pthread_t thread[QUEUES_MAX];
	int n = rounds / BATCH;
	double first = 0, last = 0;

	atomic_store(&go, 0);
	for (int i = 0; i < threads; i++) {
		jobs[i].queue = &queues[i];
		jobs[i].rounds = rounds;
		jobs[i].op = op;
		pthread_create(&thread[i], NULL, work, &jobs[i]);
	}
	atomic_store(&go, 1);
	for (int i = 0; i < threads; i++) {
		pthread_join(thread[i], NULL);
		qsort(jobs[i].us, n, sizeof(double), compare);
		printf("tmem: %s threads %d vcpu %d p10 %.2f p50 %.2f us\n", name, threads, i, jobs[i].us[n / 10],
		       jobs[i].us[n / 2]);
		first = i ? (jobs[i].began < first ? jobs[i].began : first) : jobs[i].began;
		last = jobs[i].end > last ? jobs[i].end : last;
	}
	printf("tmem: %s threads %d together %.2f us\n", name, threads, (last - first) / rounds / threads);
}

static void *hammer(void *opaque)
{
	struct queue *q = opaque;
	long done = 0;

	pin(q->number);
	while (!atomic_load(&stop)) {
		/* Its ring is torn down and made again by the other vCPU all the time. */
		ask(q, on_page(TMEM_OP_PUT, 0), 1, 0);
		done++;
	}
	return (void *)done;
}

/* One vCPU kicks, another resets the device and sizes its queues. */
static void resets(int rounds)
{
	pthread_t thread;
	void *kicks;

	pthread_create(&thread, NULL, hammer, &queues[1]);
	pin(0);
	for (int i = 0; i < rounds; i++) {
		start(2);
		hello(&queues[0]);
		w16(QSELECT, 1);
		w16(QSIZE, i % 2 ? 8 : 1024);
	}
	atomic_store(&stop, 1);
	pthread_join(thread, &kicks);
	start(2);
	hello(&queues[0]);
	printf("tmem: resets %d kicks %ld\n", rounds, (long)kicks);
}

static uint64_t number(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 1)
		return 0;
	close(fd);
	return strtoull(text, NULL, 16);
}

static void find(void)
{
	char path[128], folder[64] = "";
	uint8_t config[256];
	int fd;

	for (int slot = 0; slot < 32 && !folder[0]; slot++) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/device", slot);
		if (number(path) == strtoull(DEVICE, NULL, 16))
			snprintf(folder, sizeof(folder), "/sys/bus/pci/devices/0000:00:%02x.0", slot);
	}
	if (!folder[0])
		die("no device " DEVICE);
	snprintf(path, sizeof(path), "%s/enable", folder);
	if ((fd = open(path, O_WRONLY | O_CLOEXEC)) < 0 || write(fd, "1", 1) != 1)
		die(path);
	snprintf(path, sizeof(path), "%s/config", folder);
	if ((fd = open(path, O_RDWR | O_CLOEXEC)) < 0 || pread(fd, config, sizeof(config), 0) != sizeof(config))
		die(path);
	config[4] |= 7; /* I/O, memory, bus master */
	if (pwrite(fd, config + 4, 1, 4) != 1)
		die("bus master");
	for (int at = config[0x34]; at; at = config[at + 1]) {
		uint32_t offset, length;

		if (config[at] != 9)
			continue;
		memcpy(&offset, config + at + 8, 4);
		memcpy(&length, config + at + 12, 4);
		if (config[at + 3] == 1) {
			common = offset;
			snprintf(path, sizeof(path), "%s/resource%d", folder, config[at + 4]);
		} else if (config[at + 3] == 2 && config[0x10 + 4 * config[at + 4]] & 1) {
			uint32_t base;

			memcpy(&base, config + 0x10 + 4 * config[at + 4], 4);
			port = (base & ~3u) + offset;
		} else if (config[at + 3] == 2) {
			notify = offset;
			memcpy(&multiplier, config + at + 16, 4);
		}
	}
	if ((fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC)) < 0)
		die(path);
	bar = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (bar == MAP_FAILED)
		die("BAR");
	if (port >= 0 && iopl(3))
		die("iopl");
}

static int argument(const char *name, int otherwise)
{
	const char *value = getenv(name);

	return value ? atoi(value) : otherwise;
}

int main(void)
{
	int threads = argument("threads", 1), rounds = argument("rounds", 2000);
	const char *what = getenv("what");
	struct tmem_request new = { .op = TMEM_OP_NEW_POOL, .argument = TMEM_POOL_PERSISTENT };

	patience = argument("patience", 10);
	/* whole batches, as many as there is room for */
	rounds = rounds / BATCH * BATCH;
	if (rounds < BATCH || rounds > BATCH * BATCHES_MAX)
		rounds = BATCH;
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	find();
	for (int i = 0; i < QUEUES_MAX; i++) {
		struct queue *q = &queues[i];
		uint8_t *sent = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);

		if (sent == MAP_FAILED)
			die("mmap");
		for (int j = 0; j < 4 * PAGE; j++)
			sent[j] = j / 8;
		q->number = i;
		q->ring = page();
		q->ring_at = physical((void *)q->ring);
		q->sent = sent;
		q->fetched = sent + 2 * PAGE;
		for (int j = 0; j < 2; j++) {
			q->sent_at[j] = physical(sent + j * PAGE);
			q->fetched_at[j] = physical(sent + (2 + j) * PAGE);
		}
	}
	start(threads);
	printf("tmem: doorbell %s inline %d\n", port >= 0 ? "pio" : "mmio", inlined);
	hello(&queues[0]);
	if (ask(&queues[0], new, 0, 0) != TMEM_OK)
		die("pool");
	pool = ((struct tmem_reply *)queues[0].fetched)->value;
	if (what && !strcmp(what, "reset")) {
		resets(rounds);
	} else {
		for (int n = 1; n <= threads; n++) {
			timed("put", TMEM_OP_PUT, n, rounds);
			timed("get", TMEM_OP_GET, n, rounds);
		}
	}
	printf("tmem: failed %d again %d\ntmem: end\n", atomic_load(&failed), atomic_load(&again));
	reboot(RB_POWER_OFF);
	return 0;
}
