// SPDX-License-Identifier: Apache-2.0
/*
 * The host's side of order.S: writes its word, looks at the vCPU's, a barrier between. If neither saw what the other had
 * written, one of the two looked before it had written.
 *
 *   order RAM TURNS      prints how many turns were such, of how many
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static volatile uint32_t *at(char *ram, long address)
{
	return (volatile uint32_t *)(ram + address);
}

int main(int argc, char **argv)
{
	int fd = argc == 3 ? open(argv[1], O_RDWR) : -1;
	char *ram = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint32_t turns, neither = 0, lcg = 1;

	if (ram == MAP_FAILED)
		return 2;
	turns = (uint32_t)strtoul(argv[2], NULL, 10);
	for (uint32_t turn = 1; turn <= turns; turn++) {
		uint32_t found;

		*at(ram, 0x10000) = turn;
		/* the vCPU comes to its part somewhere in this time */
		lcg = lcg * 1664525 + 1013904223;
		for (volatile uint32_t wait = (lcg >> 16) % 400; wait; wait--)
			;
		*at(ram, 0x12000) = turn;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		found = *at(ram, 0x11000);
		while (*at(ram, 0x14000) != turn)
			__builtin_ia32_pause();
		neither += found != turn && *at(ram, 0x13000) != turn;
	}
	printf("%u %u\n", neither, turns);
	return 0;
}
