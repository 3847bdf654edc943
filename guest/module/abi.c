// SPDX-License-Identifier: GPL-2.0-only
/* Requests are made and replies checked here and nowhere else; tmem_abi.h is the manual. */
#include <linux/string.h>

#include "tmem.h"

static void start(struct tmem_call *call, u16 op)
{
	memset(call, 0, sizeof(*call));
	call->request.op = cpu_to_le16(op);
	init_completion(&call->done);
	INIT_LIST_HEAD(&call->link);
}

void tmem_call_hello(struct tmem_call *call, u32 version, u64 features)
{
	start(call, TMEM_OP_HELLO);
	call->request.index = cpu_to_le32(version);
	call->request.argument = cpu_to_le64(features);
}

void tmem_call_new_pool(struct tmem_call *call, u64 flags, const u64 uuid[2], u32 count)
{
	start(call, TMEM_OP_NEW_POOL);
	call->request.argument = cpu_to_le64(flags);
	call->request.object[0] = cpu_to_le64(uuid[0]);
	call->request.object[1] = cpu_to_le64(uuid[1]);
	call->request.count = cpu_to_le32(count);
}

/* Destroy pool; flush object, with object 0. */
void tmem_call_pool(struct tmem_call *call, u16 op, struct tmem_pool *pool)
{
	start(call, op);
	call->pool = pool;
}

void tmem_call_page(struct tmem_call *call, u16 op, struct tmem_pool *pool, const u64 object[3],
		    u32 index, struct page *page)
{
	int i;

	start(call, op);
	call->pool = pool;
	if (object)
		for (i = 0; i < 3; i++)
			call->request.object[i] = cpu_to_le64(object[i]);
	call->request.index = cpu_to_le32(index);
	call->request.count = cpu_to_le32(1);
	call->page = page;
}

void tmem_call_list(struct tmem_call *call, u16 op, struct tmem_pool *pool,
		    const struct tmem_item *items, u32 count)
{
	start(call, op);
	call->pool = pool;
	call->request.flags = cpu_to_le16(TMEM_REQUEST_LIST);
	call->request.count = cpu_to_le32(count);
	call->items = items;
}

size_t tmem_call_items_length(const struct tmem_call *call)
{
	if (!(call->request.flags & cpu_to_le16(TMEM_REQUEST_LIST)))
		return 0;
	return le32_to_cpu(call->request.count) * sizeof(struct tmem_item);
}

/* The host is trusted with pages, not with sanity: a reply to something else is no reply. */
bool tmem_reply_fits(const struct tmem_call *call)
{
	return call->reply.cookie == call->request.cookie && !call->reply.reserved;
}

const char *tmem_status_name(u32 status)
{
	switch (status) {
	case TMEM_OK: return "ok";
	case TMEM_MISS: return "miss";
	case TMEM_NO_ROOM: return "no room";
	case TMEM_OVER_CAP: return "over cap";
	case TMEM_FROZEN: return "frozen";
	case TMEM_LOST: return "lost";
	case TMEM_BAD_DATA: return "bad data";
	case TMEM_BAD_OP: return "bad operation";
	case TMEM_BAD_FLAGS: return "bad flags";
	case TMEM_BAD_POOL: return "no such pool";
	case TMEM_BAD_LENGTH: return "out of bounds";
	case TMEM_BAD_VERSION: return "unknown version";
	case TMEM_NOT_NEGOTIATED: return "hello first";
	case TMEM_NOT_PERMITTED: return "not permitted";
	case TMEM_HOST_ERROR: return "host error";
	default: return "unknown status";
	}
}
