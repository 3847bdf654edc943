/* SPDX-License-Identifier: (GPL-2.0 OR Apache-2.0) */
/*
 * The ABI of transcendent memory for KVM: what a guest asks its host, and what it is answered.
 *
 * This file is the one definition and its manual. The same requests and replies travel on every channel: a
 * virtqueue (vhost-user-tmem, virtio-tmem) and a byte stream (virtio-serial). It is mirrored by host/core/abi (Rust)
 * and host/tmem_host/channel/abi.py (Python); tests/data/abi holds vectors that all three read.
 *
 * Rules for both sides
 *  - All integers are little-endian. All structures have a fixed size and no padding.
 *  - Reserved fields and bits are 0; what is not 0 is refused (TMEM_BAD_FLAGS), never ignored.
 *  - Which VM a request comes from is known from the channel it arrives on, never from the request.
 *  - A key is (pool, object, index): 192 bits of object id and a 32-bit index. For swap the object is 0.
 *  - A request is refused whole, before anything is done, if any of its fields, its length or its data is not as said
 *    here. A refusal is an answer, not an end: the channel goes on.
 *
 * What holds for pages (the conformance suite; Xen's rules)
 *  1. A put over an existing key replaces the page, or fails AND removes the old one. Old data never survives a failed
 *     put.
 *  2. After a miss the key keeps missing until the next put.
 *  3. A persistent put that was answered TMEM_OK can be got, bit for bit, until it is flushed, its pool is destroyed or
 *     its VM is forgotten.
 *  4. An ephemeral page may vanish at any moment. A get from a private ephemeral pool removes the page, one from a shared
 *     pool does not.
 *  5. Frozen: puts are answered TMEM_FROZEN, flushes are obeyed.
 *  6. An unknown operation, flag or pool, or a length or offset out of bounds, is refused: never ignored, never fatal.
 *  Two requests for one key at the same time: the guest orders them (it holds the page's lock). Requests of one queue
 *  complete in order.
 */
#ifndef TMEM_ABI_H
#define TMEM_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#ifndef __linux__
typedef uint16_t __le16;
typedef uint32_t __le32;
typedef uint64_t __le64;
#else
#include <linux/types.h>
#endif
#endif

/* ---- version and features: exchanged first, see TMEM_OP_HELLO ---------------------------------------------------- */

#define TMEM_ABI_VERSION	1u

#define TMEM_FEATURE_BATCH	(1ull << 0)	/* count > 1 in put, get and flush page */
#define TMEM_FEATURE_LIST	(1ull << 1)	/* TMEM_REQUEST_LIST */
#define TMEM_FEATURE_RANGE	(1ull << 2)	/* read and write of a part of a page */
#define TMEM_FEATURE_EXCHANGE	(1ull << 3)	/* TMEM_OP_EXCHANGE */
#define TMEM_FEATURE_LARGE	(1ull << 4)	/* pools with pages above 4 KiB */
#define TMEM_FEATURE_PACKED	(1ull << 5)	/* pools of pages that the guest has compressed */
#define TMEM_FEATURE_SHARED	(1ull << 6)	/* shared pools */
#define TMEM_FEATURE_NEW_PAGE	(1ull << 7)	/* TMEM_OP_NEW_PAGE */
#define TMEM_FEATURES_ALL	0xffull

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/*
 * 64 bytes. Behind it, in this order: `items` keys of struct tmem_item (TMEM_REQUEST_LIST, exchange), then the data that
 * the operation sends. A reply is followed by the data that the operation fetches.
 */
struct tmem_request {
	__le16 op;		/* TMEM_OP_* */
	__le16 flags;		/* TMEM_REQUEST_* */
	__le32 pool;		/* as answered to TMEM_OP_NEW_POOL */
	__le64 object[3];
	__le32 index;
	__le32 count;		/* pages; 0 where no pages are meant */
	__le32 offset;		/* read, write: first byte in the page */
	__le32 length;		/* read, write: bytes; put into a packed pool: bytes of data; else 0 */
	__le64 argument;	/* hello: features; new pool: TMEM_POOL_*; else 0 */
	__le64 cookie;		/* comes back in the reply */
};

/* A key within the request's pool. 32 bytes. */
struct tmem_item {
	__le64 object[3];
	__le32 index;
	__le32 reserved;
};

/* The keys are listed behind the request, `count` of them; object and index of the request are 0. */
#define TMEM_REQUEST_LIST	(1u << 0)
#define TMEM_REQUEST_FLAGS	0x1u

/* Pages in one request, at most: as many as a reply has bits for. */
#define TMEM_BATCH_MAX		128u
/* Bytes of data in one request, at most. */
#define TMEM_DATA_MAX		(2u << 20)

/*
 * Numbers are Xen's (xen/include/public/tmem.h) where Xen has the operation.
 *
 * op		fields besides op, flags and cookie	sends		fetches		value of the reply
 * HELLO	index: version, argument: features	-		-		features in common
 * NEW_POOL	argument, object[0..1]: uuid,		-		-		the pool's number
 *		count: pages of a swap pool, else 0
 * DESTROY_POOL	pool					-		-		-
 * NEW_PAGE	key, count 1				-		-		-
 * PUT		key, count n (or list)			n pages		-		pages done
 * GET		key, count n (or list)			-		n pages		pages done
 * FLUSH_PAGE	key, count n (or list)			-		-		pages done
 * FLUSH_OBJECT	pool, object				-		-		pages flushed
 * READ		key, offset, length, count 1		-		length bytes	-
 * WRITE	key, offset, length, count 1		length bytes	-		-
 * EXCHANGE	key of the put, count 1, one item:	1 page		1 page		-
 *		the key of the get
 */
#define TMEM_OP_NEW_POOL	1u
#define TMEM_OP_DESTROY_POOL	2u
#define TMEM_OP_NEW_PAGE	3u
#define TMEM_OP_PUT		4u
#define TMEM_OP_GET		5u
#define TMEM_OP_FLUSH_PAGE	6u
#define TMEM_OP_FLUSH_OBJECT	7u
#define TMEM_OP_READ		8u
#define TMEM_OP_WRITE		9u
#define TMEM_OP_EXCHANGE	10u
#define TMEM_OP_HELLO		32u

/*
 * HELLO is the first request on a channel, and starts it anew: before it everything else is answered
 * TMEM_NOT_NEGOTIATED. The guest sends the highest version it knows and all features it could use. The host answers TMEM_OK
 * with the features both have; or TMEM_BAD_VERSION with its own version as the value, and the guest may say HELLO again with a
 * version it shares. Features that the host does not know are left out of the answer, not refused: an old host and a new
 * guest agree on what both have. What was not agreed on is refused as an unknown operation or flag would be.
 *
 * Pools outlive HELLO: a guest that lost its channel finds them again by NEW_POOL with TMEM_POOL_ATTACH.
 */

/* Flags of a pool: the argument of NEW_POOL. */
#define TMEM_POOL_PERSISTENT	(1ull << 0)	/* else ephemeral */
#define TMEM_POOL_SHARED	(1ull << 1)	/* by uuid, with every VM that is authorised for it */
#define TMEM_POOL_PACKED	(1ull << 2)	/* pages come compressed: a put's length says how many bytes */
#define TMEM_POOL_ATTACH	(1ull << 3)	/* the VM's own pool of this uuid if there is one (not 0), else a new one */
#define TMEM_POOL_ORDER_SHIFT	4		/* page size: 4 KiB << order, order 0 to 9 */
#define TMEM_POOL_ORDER_MASK	(0xfull << TMEM_POOL_ORDER_SHIFT)
#define TMEM_POOL_CODEC_SHIFT	8		/* of a packed pool: TMEM_CODEC_*; else 0 */
#define TMEM_POOL_CODEC_MASK	(0xfull << TMEM_POOL_CODEC_SHIFT)
#define TMEM_POOL_FLAGS		0xfffull

#define TMEM_ORDER_MAX		9u		/* 2 MiB */
#define TMEM_CODEC_LZ4		1u		/* one lz4 block */
#define TMEM_CODEC_ZSTD		2u		/* one zstd frame */

/*
 * A swap pool has count pages, is persistent and private, and its keys are object 0 and an index below count: the room for
 * all of it is promised when it is made, or NEW_POOL is answered TMEM_NO_ROOM. So a put into it does not fail for room.
 *
 * Batches: each page of a request stands for itself, in order; a put that is refused does not stop the others. The reply's
 * status is TMEM_OK if all were done, else that of the first page that was not; `done` says which were.
 * Pages not fetched are filled with zeroes.
 *
 * READ, WRITE: offset + length is at most the page size, length at least 1. Both need the page: without it TMEM_MISS, and a
 * write has then put nothing. A write that fails for room removes the page (rule 1).
 *
 * EXCHANGE: the page is put first, then the other got, into data that may be the same guest page. Both parts answer for
 * themselves: bit 0 of `done` the put, bit 1 the get; status is that of the first that was not done. With the same key twice
 * the page comes back as it was put.
 *
 * A packed pool: count is 1, a put sends `length` bytes that are exactly one page when decompressed, or is answered TMEM_BAD_DATA.
 * A get fetches the page decompressed.
 */

/* ---- replies ----------------------------------------------------------------------------------------------------- */

/* 40 bytes. */
struct tmem_reply {
	__le32 status;		/* TMEM_* below */
	__le32 reserved;
	__le64 cookie;
	__le64 value;
	__le64 done[2];		/* bit i: page i was done */
};

#define TMEM_OK			0u
/* Answers about a page. */
#define TMEM_MISS		1u	/* it is not there */
#define TMEM_NO_ROOM		2u	/* put refused: no room */
#define TMEM_OVER_CAP		3u	/* put refused: the VM holds all that it may */
#define TMEM_FROZEN		4u	/* put refused: the VM is frozen */
#define TMEM_LOST		5u	/* it was there, and the host knows that it is lost: never read a stale copy instead */
#define TMEM_BAD_DATA		6u	/* packed data is not one page */
/* Refusals of a request. */
#define TMEM_BAD_OP		16u
#define TMEM_BAD_FLAGS		17u	/* an unknown or forbidden flag, a reserved field that is not 0 */
#define TMEM_BAD_POOL		18u	/* no such pool of this VM */
#define TMEM_BAD_LENGTH		19u	/* offset, length, count, index or data out of bounds */
#define TMEM_BAD_VERSION	20u
#define TMEM_NOT_NEGOTIATED	21u	/* HELLO first */
#define TMEM_NOT_PERMITTED	22u	/* not authorised for that shared pool; too many pools */
#define TMEM_HOST_ERROR		23u	/* the host failed; nothing was done, or what was put is gone (rule 1) */

/* ---- a byte stream ----------------------------------------------------------------------------------------------- */

/*
 * On a stream every message is a frame: this header, then `length` bytes: a request with what it sends, or a reply with what
 * it fetched. A frame that is not one (magic, length above TMEM_FRAME_MAX) ends the stream: nobody can say where the next
 * begins. Control frames carry one JSON object, UTF-8, for agents to agree on what is no page's business.
 */
struct tmem_frame {
	__le32 magic;		/* TMEM_FRAME_* */
	__le32 length;
};

#define TMEM_FRAME_REQUEST	0x716d7430u	/* "0tmq" */
#define TMEM_FRAME_REPLY	0x726d7430u	/* "0tmr" */
#define TMEM_FRAME_CONTROL	0x636d7430u	/* "0tmc" */
#define TMEM_FRAME_MAX		(TMEM_DATA_MAX + 64u + 32u * TMEM_BATCH_MAX)
#define TMEM_CONTROL_MAX	65536u

/* ---- virtio ------------------------------------------------------------------------------------------------------ */

/*
 * Device id: 63 is far above what the specification has given out, and marks an experiment. One queue or more, all alike:
 * a chain is readable request, items and data, then writable reply and data. Chains may be split anywhere.
 */
#define VIRTIO_ID_TMEM		63

struct virtio_tmem_config {
	__le32 version;		/* TMEM_ABI_VERSION of the host */
	__le32 queues;		/* request queues, at least 1 */
	__le64 features;	/* TMEM_FEATURE_* of the host */
};

#define VIRTIO_TMEM_F_MQ	0	/* more than one queue */
#define VIRTIO_TMEM_F_INLINE	1	/* a kick returns when its requests are done: no interrupt need be waited for */

#endif
