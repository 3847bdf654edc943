// SPDX-License-Identifier: Apache-2.0
/* Requests of the ABI, as every channel that carries them has them. */
#include <string.h>

#include "probe.h"

int size_class(uint32_t bytes)
{
	return bytes == PAGE ? 0 : bytes == LARGE ? 2 : 1;
}

struct tmem_request request_of(const struct channel *c, const struct call *call, struct tmem_item *item)
{
	struct tmem_request r = {
		.op = call->op,
		.pool = c->pools[size_class(call->bytes)],
		.index = call->index,
		.count = call->count,
		.offset = call->offset,
		.length = call->length,
	};

	memset(item, 0, sizeof(*item));
	item->index = call->other;
	return r;
}

/* HELLO, and a swap pool for each page size. */
bool open_pools(struct channel *c, int (*plain)(struct channel *, struct tmem_request *, struct tmem_reply *))
{
	static const uint32_t sizes[] = { PAGE, 64 << 10, LARGE };
	struct tmem_request hello = { .op = TMEM_OP_HELLO, .index = TMEM_ABI_VERSION, .argument = TMEM_FEATURES_ALL };
	struct tmem_reply reply;

	if (plain(c, &hello, &reply) != TMEM_OK)
		return false;
	for (int i = 0; i < 3; i++) {
		struct tmem_request new = {
			.op = TMEM_OP_NEW_POOL,
			.count = LANES * SPAN(sizes[i]),
			.argument = TMEM_POOL_PERSISTENT | (uint64_t)__builtin_ctz(sizes[i] / PAGE) << TMEM_POOL_ORDER_SHIFT,
		};

		if (plain(c, &new, &reply) != TMEM_OK)
			return false;
		c->pools[i] = reply.value;
	}
	return true;
}
