// SPDX-License-Identifier: Apache-2.0
/*
 * Sets the guest up and does what the host says on the port org.kvm-tmem.agent.0, a line each:
 *
 *   open NAME KIND [WHICH]	KIND: ring N, stream PORT, disk SERIAL, shared	-> "ok ..." or "error ..."
 *   turn NAME OP BATCH BYTES LENGTH VCPUS SAMPLES EVERY WARMUP		-> "ns LANE ..." a vCPU, "done WALL FAILED STATUS"
 *   resets NAME ROUNDS							-> "resets ..."
 *   clock N								-> "ns 0 ...": what reading the clock takes
 *   patience SECONDS							-> "ok"
 *   off
 *
 * Times are nanoseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

#define AGENT "org.kvm-tmem.agent.0"
#define CHANNELS 16
#define CLOCKS_MAX 1000

struct lane lanes[LANES];
uint8_t *corpus;
uint32_t corpus_pages;

static int port = -1;
static struct {
	char name[32];
	struct channel *channel;
} opened[CHANNELS];
static int count;

void die(const char *what)
{
	printf("probe: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	if (port >= 0)
		say("error %s: %s\n", what, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

void say(const char *format, ...)
{
	static char text[64 << 10];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	for (int done = 0; done < length;) {
		ssize_t n = write(port, text + done, length - done);

		if (n <= 0)
			_exit(1);
		done += n;
	}
}

uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("a vCPU for each thread");
}

/* The kernel's drivers, in the order in which the image says that they load. */
static void load_modules(void)
{
	FILE *order = fopen("/lib/modules/initramfs.order", "re");
	char name[64], path[128];

	while (order && fscanf(order, "%63s", name) == 1) {
		int fd;

		snprintf(path, sizeof(path), "/lib/modules/%s.ko", name);
		if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0 || syscall(SYS_finit_module, fd, "", 0))
			printf("probe: %s: %s\n", name, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (order)
		fclose(order);
}

static void load_corpus(void)
{
	int fd = open("/pages", O_RDONLY | O_CLOEXEC);
	uint8_t *second;
	ssize_t n;

	corpus = large();
	second = large();
	if (second != corpus + LARGE)
		die("the corpus lies in two pieces");
	if (fd < 0 || (n = read(fd, corpus, 2 * LARGE)) < (ssize_t)LARGE)
		die("pages");
	corpus_pages = n / LARGE * (LARGE / PAGE);
	close(fd);
}

static struct channel *find(const char *name)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(opened[i].name, name))
			return opened[i].channel;
	return NULL;
}

static void open_channel(const char *name, const char *kind, const char *which)
{
	struct channel *c = NULL;
	bool ring = !strcmp(kind, "ring");

	if (count == CHANNELS || find(name)) {
		say("error no room for a channel %s\n", name);
		return;
	}
	if (ring && atoi(which) >= 0 && atoi(which) < ring_count())
		c = ring_open(atoi(which));
	else if (!strcmp(kind, "stream"))
		c = stream_open(which);
	else if (!strcmp(kind, "disk"))
		c = disk_open(which);
	else if (!strcmp(kind, "shared"))
		c = shared_open();
	if (!c) {
		say("error no %s %s\n", kind, which);
		return;
	}
	snprintf(opened[count].name, sizeof(opened[count].name), "%s", name);
	opened[count++].channel = c;
	if (ring)
		say("ok doorbell %s inline %d\n", ring_doorbell(c), ring_inline(c));
	else
		say("ok\n");
}

static void clocks(int wanted)
{
	static char line[CLOCKS_MAX * 11 + 32];
	int at = snprintf(line, sizeof(line), "ns 0");

	for (int i = 0; i < wanted && i < CLOCKS_MAX; i++) {
		uint64_t began = now();

		at += snprintf(line + at, sizeof(line) - at, " %llu", (unsigned long long)(now() - began));
	}
	say("%s\n", line);
}

static void obey(const char *line)
{
	char name[32] = "", word[32] = "", which[64] = "";
	struct turn t;
	int number;

	if (sscanf(line, "open %31s %31s %63s", name, word, which) >= 2) {
		open_channel(name, word, which);
	} else if (sscanf(line, "turn %31s %31s %u %u %u %u %u %u %u", name, word, &t.batch, &t.bytes, &t.length,
			  &t.lanes, &t.samples, &t.every, &t.warmup) == 9) {
		struct channel *c = find(name);

		if (!c || !turn(c, word, &t))
			say("error no such turn: %s\n", line);
	} else if (sscanf(line, "resets %31s %d", name, &number) == 2 && find(name)) {
		ring_resets(find(name), number);
	} else if (sscanf(line, "clock %d", &number) == 1) {
		clocks(number);
	} else if (sscanf(line, "patience %d", &patience) == 1) {
		say("ok\n");
	} else if (!strcmp(line, "off")) {
		reboot(RB_POWER_OFF);
	} else {
		say("error no such command: %s\n", line);
	}
}

int main(void)
{
	static char line[512];
	struct utsname kernel;
	size_t have = 0;

	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	memory_start();
	load_corpus();
	for (int i = 0; i < LANES; i++) {
		lanes[i] = (struct lane){ .number = i, .message = pages(PAGE), .fetched = large() };
		lanes[i].message_at = physical(lanes[i].message);
		lanes[i].frame = pages((TMEM_FRAME_MAX + sizeof(struct tmem_frame) + PAGE - 1) / PAGE * PAGE);
	}
	ring_find();
	load_modules();
	for (int tries = 0; (port = port_open(AGENT)) < 0 && tries < 1000; tries++)
		usleep(10000);
	if (port < 0)
		die("no port " AGENT);
	uname(&kernel);
	say("ready kernel %s rings %d pages %u\n", kernel.release, ring_count(), corpus_pages);
	for (;;) {
		char *end;
		ssize_t n = read(port, line + have, sizeof(line) - 1 - have);

		if (n <= 0) { /* nobody is there yet, or no longer */
			usleep(10000);
			continue;
		}
		have += n;
		line[have] = 0;
		while ((end = strchr(line, '\n'))) {
			*end = 0;
			obey(line);
			have -= end + 1 - line;
			memmove(line, end + 1, have + 1);
		}
		if (have == sizeof(line) - 1)
			have = 0;
	}
}
