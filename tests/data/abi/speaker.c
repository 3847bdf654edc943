// SPDX-License-Identifier: Apache-2.0
/*
 * The ABI as a C compiler sees it: tests/unit/test_abi.py builds this against guest/abi/tmem_abi.h and compares.
 *
 * With no argument it prints sizes of structures and offsets of fields. With one, it reads lines of numbers and
 * prints each as the bytes of that structure: request, item or reply, fields in the header's order.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "tmem_abi.h"

#define SIZE(s) printf(#s " %zu\n", sizeof(struct s))
#define AT(s, f) printf(#s "." #f " %zu\n", offsetof(struct s, f))

static void layout(void)
{
	SIZE(tmem_request);
	AT(tmem_request, op);
	AT(tmem_request, flags);
	AT(tmem_request, pool);
	AT(tmem_request, object);
	AT(tmem_request, index);
	AT(tmem_request, count);
	AT(tmem_request, offset);
	AT(tmem_request, length);
	AT(tmem_request, argument);
	AT(tmem_request, cookie);
	SIZE(tmem_item);
	AT(tmem_item, object);
	AT(tmem_item, index);
	AT(tmem_item, reserved);
	SIZE(tmem_reply);
	AT(tmem_reply, status);
	AT(tmem_reply, reserved);
	AT(tmem_reply, cookie);
	AT(tmem_reply, value);
	AT(tmem_reply, done);
	SIZE(tmem_frame);
	AT(tmem_frame, magic);
	AT(tmem_frame, length);
	SIZE(virtio_tmem_config);
	AT(virtio_tmem_config, version);
	AT(virtio_tmem_config, queues);
	AT(virtio_tmem_config, features);
}

static void print(const void *bytes, size_t n)
{
	const unsigned char *at = bytes;

	while (n--)
		printf("%02x", *at++);
	printf("\n");
}

/* The machines this runs on are little-endian, as the ABI is. */
int main(int argc, char **argv)
{
	uint64_t v[12];

	if (argc < 2) {
		layout();
		return 0;
	}
	if (!strcmp(argv[1], "request")) {
		while (scanf("%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64
			     "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64, &v[0], &v[1], &v[2], &v[3], &v[4], &v[5],
			     &v[6], &v[7], &v[8], &v[9], &v[10], &v[11]) == 12) {
			struct tmem_request r = {
				.op = v[0], .flags = v[1], .pool = v[2], .object = { v[3], v[4], v[5] }, .index = v[6],
				.count = v[7], .offset = v[8], .length = v[9], .argument = v[10], .cookie = v[11],
			};

			print(&r, sizeof(r));
		}
	} else if (!strcmp(argv[1], "item")) {
		while (scanf("%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64, &v[0], &v[1], &v[2], &v[3],
			     &v[4]) == 5) {
			struct tmem_item i = { .object = { v[0], v[1], v[2] }, .index = v[3], .reserved = v[4] };

			print(&i, sizeof(i));
		}
	} else {
		while (scanf("%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64 "%" SCNu64, &v[0], &v[1], &v[2], &v[3],
			     &v[4]) == 5) {
			struct tmem_reply r = { .status = v[0], .cookie = v[1], .value = v[2], .done = { v[3], v[4] } };

			print(&r, sizeof(r));
		}
	}
	return 0;
}
