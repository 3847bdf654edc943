// SPDX-License-Identifier: Apache-2.0
/* Channels that carry whole pages and no requests: a stock disk, and memory that the host has, too. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "probe.h"

#define DISKS 4

static struct channel disks[DISKS];
static int disk_fds[DISKS];
static struct channel memory;

static int disk_ask(struct channel *c, struct lane *lane, const struct call *call)
{
	int fd = *(int *)c->own;
	size_t length = (size_t)call->count * call->bytes;
	off_t at = (off_t)call->index * call->bytes;

	ssize_t n = call->op == TMEM_OP_PUT ? pwrite(fd, call->sends[0], length, at) : pread(fd, call->fetches, length, at);

	(void)lane;
	return n == (ssize_t)length ? 0 : -1;
}

/* The disk with that serial, past the page cache. A batch is pages in a row: one request of the disk. */
struct channel *disk_open(const char *serial)
{
	static int count;

	for (char name = 'a'; name < 'a' + 16 && count < DISKS; name++) {
		char path[64], text[64] = "";
		int fd;

		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", name);
		if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
			continue;
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
		if (strcmp(text, serial))
			continue;
		snprintf(path, sizeof(path), "/dev/vd%c", name);
		if ((disk_fds[count] = open(path, O_RDWR | O_DIRECT | O_CLOEXEC)) < 0)
			die(path);
		disks[count] = (struct channel){ .ask = disk_ask, .pages_only = true, .lanes = LANES, .own = &disk_fds[count] };
		return &disks[count++];
	}
	return NULL;
}

/* Where a page of the shared memory lies: a part for each page size, 4K, 64K, 2M. */
static uint8_t *place(const struct call *call, uint32_t index)
{
	size_t part = 0;

	if (call->bytes > PAGE)
		part += LANES * SPAN(PAGE) * PAGE;
	if (call->bytes == LARGE)
		part += LANES * SPAN(64u << 10) * (64u << 10);
	return (uint8_t *)memory.own + part + (size_t)index * call->bytes;
}

static int memory_ask(struct channel *c, struct lane *lane, const struct call *call)
{
	uint32_t length = call->length ? call->length : call->bytes;

	(void)c, (void)lane;
	if (call->op == TMEM_OP_FLUSH_PAGE)
		return -1; /* nobody is there to be told */
	for (uint32_t i = 0; i < call->count && call->sends; i++)
		memcpy(place(call, call->index + i) + call->offset, call->sends[i], length);
	for (uint32_t i = 0; i < call->count && call->fetches; i++) {
		uint32_t from = call->op == TMEM_OP_EXCHANGE ? call->other : call->index + i;

		memcpy(call->fetches + (size_t)i * length, place(call, from) + call->offset, length);
	}
	return TMEM_OK;
}

struct channel *shared_open(void)
{
	for (int slot = 0; slot < 32; slot++) {
		char path[128], text[256] = "";
		struct stat bar;
		int fd;

		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/uevent", slot);
		if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
			continue;
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
		if (!strstr(text, "PCI_ID=1AF4:1110"))
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/enable", slot);
		if ((fd = open(path, O_WRONLY | O_CLOEXEC)) < 0 || write(fd, "1", 1) != 1)
			die(path);
		close(fd);
		/* resource2_wc would be the better one on hardware whose page tables decide about caching */
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource2", slot);
		if ((fd = open(path, O_RDWR | O_CLOEXEC)) < 0 || fstat(fd, &bar))
			die(path);
		memory.own = mmap(NULL, bar.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (memory.own == MAP_FAILED)
			die("shared memory");
		close(fd);
		memory.ask = memory_ask;
		memory.lanes = LANES;
		return &memory;
	}
	return NULL;
}
