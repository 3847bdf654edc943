// SPDX-License-Identifier: Apache-2.0
/* Pages that stay where they are, and where that is: a device knows guest-physical addresses only. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "probe.h"

#define LARGE_PAGES 4

static uint8_t *room;
static uint64_t places[LARGE_PAGES];
static int taken;

uint64_t physical(const void *at)
{
	static int fd = -1;
	uint64_t entry;

	if (fd < 0)
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pread(fd, &entry, 8, (uintptr_t)at / PAGE * 8) != 8 || !(entry >> 63))
		die("pagemap");
	return (entry & ((1ull << 55) - 1)) * PAGE + (uintptr_t)at % PAGE;
}

void *pages(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);

	if (at == MAP_FAILED)
		die("memory");
	memset(at, 1, bytes);
	return at;
}

void memory_start(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED | MAP_HUGETLB;
	int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC);
	static const char count[] = "4";

	_Static_assert(sizeof(count) == 2 && LARGE_PAGES == 4, "count is LARGE_PAGES");
	if (fd < 0 || write(fd, count, 1) != 1)
		die("nr_hugepages");
	close(fd);
	room = mmap(NULL, (size_t)LARGE_PAGES * LARGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (room == MAP_FAILED)
		die("large pages");
	memset(room, 1, (size_t)LARGE_PAGES * LARGE);
	for (int i = 0; i < LARGE_PAGES; i++)
		places[i] = physical(room + (size_t)i * LARGE);
}

uint64_t physical_of(const void *at)
{
	size_t offset = (const uint8_t *)at - room;

	return places[offset / LARGE] + offset % LARGE;
}

void *large(void)
{
	if (taken == LARGE_PAGES)
		die("no large page is left");
	return room + (size_t)LARGE * taken++;
}
