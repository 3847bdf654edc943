/* SPDX-License-Identifier: (GPL-2.0 OR Apache-2.0) */
/*
 * The ABI of transcendent memory for KVM: what a guest asks its host, and what it is answered.
 *
 * This file is the one definition and its manual. The same requests and replies travel on every
 * channel: a virtqueue (vhost-user-tmem, virtio-tmem) and a byte stream (virtio-serial). It is
 * mirrored by host/core/abi (Rust) and host/tmem_host/channel/abi.py (Python); tests/data/abi
 * holds vectors that all three read, tests/conformance the cases that every channel passes.
 *
 * Rules for both sides
 *  - All integers are little-endian. All structures have a fixed size and no padding.
 *  - Which VM a request comes from is known from the channel it arrives on, never from the request.
 *  - A key is (pool, object, index): 192 bits of object id and a 32-bit index.
 *  - Fields that an operation does not name, reserved fields and unknown flags are 0; what is not
 *    0 is refused, never ignored.
 *  - A request is refused whole, before anything is done, if any of its fields or its length is
 *    not as said here. A refusal is an answer, not an end: the channel goes on.
 *
 * What holds for pages (the conformance suite; Xen's rules)
 *  1. A put over an existing key replaces the page, or fails AND removes the old one. Old data
 *     never survives a failed put.
 *  2. After a miss the key keeps missing until the next put.
 *  3. A persistent put that was answered TMEM_OK can be got, bit for bit, until it is flushed, its
 *     pool is destroyed or its VM is forgotten.
 *  4. An ephemeral page may vanish at any moment. A get from a private ephemeral pool removes the
 *     page, one from a shared pool does not.
 *  5. Frozen: puts are answered TMEM_FROZEN (rule 1 holds), flushes are obeyed, gets served.
 *  6. An unknown operation, flag or pool, or a length or offset out of bounds, is refused: never
 *     ignored, never fatal.
 *  Two requests for one key at the same time: the guest orders them (it holds the page's lock).
 *  Requests of one queue, or of one stream, are done and answered in order.
 */
#ifndef TMEM_ABI_H
#define TMEM_ABI_H

#if defined(__linux__) || defined(__KERNEL__)
#include <linux/types.h>
#else
#include <stdint.h>
typedef uint16_t __le16;
typedef uint32_t __le32;
typedef uint64_t __le64;
#endif

/* ---- version and features: agreed on first, see TMEM_OP_HELLO -------------------------------- */

#define TMEM_ABI_VERSION	1u

#define TMEM_FEATURE_BATCH	(1ull << 0)	/* count above 1 in put, get and flush page */
#define TMEM_FEATURE_LIST	(1ull << 1)	/* TMEM_REQUEST_LIST */
#define TMEM_FEATURE_RANGE	(1ull << 2)	/* TMEM_OP_READ, TMEM_OP_WRITE */
#define TMEM_FEATURE_EXCHANGE	(1ull << 3)	/* TMEM_OP_EXCHANGE */
#define TMEM_FEATURE_LARGE	(1ull << 4)	/* pools with pages above 4 KiB */
#define TMEM_FEATURE_PACKED	(1ull << 5)	/* pools of pages that the guest has compressed */
#define TMEM_FEATURE_SHARED	(1ull << 6)	/* shared pools */
#define TMEM_FEATURE_NEW_PAGE	(1ull << 7)	/* TMEM_OP_NEW_PAGE */
#define TMEM_FEATURES_ALL	0xffull

/* ---- requests -------------------------------------------------------------------------------- */

/*
 * 64 bytes. Behind it, with nothing between or after: the keys that are listed, as struct
 * tmem_item, then the data that the operation sends.
 */
struct tmem_request {
	__le16 op;		/* TMEM_OP_* */
	__le16 flags;		/* TMEM_REQUEST_* */
	__le32 pool;		/* as answered to TMEM_OP_NEW_POOL */
	__le64 object[3];
	__le32 index;
	__le32 count;		/* pages */
	__le32 offset;		/* read, write: first byte in the page */
	__le32 length;		/* read, write: bytes; put into a packed pool: bytes of data */
	__le64 argument;	/* hello: features; new pool: TMEM_POOL_* */
	__le64 cookie;		/* the guest's own; comes back in the reply */
};

/* A key within the request's pool. 32 bytes. */
struct tmem_item {
	__le64 object[3];
	__le32 index;
	__le32 reserved;
};

/* The keys are listed behind the request, count of them; its own object and index are 0. */
#define TMEM_REQUEST_LIST	(1u << 0)
#define TMEM_REQUEST_FLAGS	0x1u

/* Pages in one request, at most: as many as a reply has bits for. */
#define TMEM_BATCH_MAX		128u
/* Bytes of data in one request or reply, at most: count times the page size is no more. */
#define TMEM_DATA_MAX		(2u << 20)
/* Pools of one VM, at most; shared ones count. */
#define TMEM_POOLS_MAX		16u

/*
 * Numbers are Xen's (xen/include/public/tmem.h) where Xen has the operation.
 *
 * op		fields besides op, flags, cookie	sends		fetches
 * HELLO	index: version, argument: features	-		-
 * NEW_POOL	argument, object[0..1]: uuid,		-		-
 *		count: pages of a swap pool
 * DESTROY_POOL	pool					-		-
 * NEW_PAGE	pool, object, index, count 1		-		-
 * PUT		pool, object, index, count n, list;	n pages		-
 *		packed: count 1, length			length bytes	-
 * GET		pool, object, index, count n, list	-		n pages
 * FLUSH_PAGE	pool, object, index, count n, list	-		-
 * FLUSH_OBJECT	pool, object				-		-
 * READ		pool, object, index, count 1,		-		length bytes
 *		offset, length
 * WRITE	as READ					length bytes	-
 * EXCHANGE	pool, object, index, count 1: the put;	as PUT		1 page
 *		one item: the get
 *
 * Without a list, n pages have the indices index to index + n - 1 of one object.
 */
#define TMEM_OP_NEW_POOL	1u
#define TMEM_OP_DESTROY_POOL	2u
#define TMEM_OP_NEW_PAGE	3u	/* put a page of zeroes */
#define TMEM_OP_PUT		4u
#define TMEM_OP_GET		5u
#define TMEM_OP_FLUSH_PAGE	6u
#define TMEM_OP_FLUSH_OBJECT	7u
#define TMEM_OP_READ		8u
#define TMEM_OP_WRITE		9u
#define TMEM_OP_EXCHANGE	10u
#define TMEM_OP_HELLO		32u

/* Flags of a pool: the argument of NEW_POOL. */
#define TMEM_POOL_PERSISTENT	(1ull << 0)	/* else ephemeral */
#define TMEM_POOL_SHARED	(1ull << 1)	/* with every VM that is authorised for the uuid */
#define TMEM_POOL_PACKED	(1ull << 2)	/* the guest compresses */
#define TMEM_POOL_ATTACH	(1ull << 3)	/* private: the VM's pool of this uuid, if any */
#define TMEM_POOL_ORDER_SHIFT	4		/* page size: 4 KiB << order, order 0 to 9 */
#define TMEM_POOL_ORDER_MASK	(0xfull << TMEM_POOL_ORDER_SHIFT)
#define TMEM_POOL_CODEC_SHIFT	8		/* packed: TMEM_CODEC_*; else 0 */
#define TMEM_POOL_CODEC_MASK	(0xfull << TMEM_POOL_CODEC_SHIFT)
#define TMEM_POOL_FLAGS		0xfffull

#define TMEM_PAGE_SHIFT		12u
#define TMEM_ORDER_MAX		9u		/* 2 MiB */
#define TMEM_CODEC_LZ4		1u		/* one lz4 block */
#define TMEM_CODEC_ZSTD		2u		/* one zstd frame, no dictionary */

/* ---- replies --------------------------------------------------------------------------------- */

/* 40 bytes. Behind it the data that the operation fetches. */
struct tmem_reply {
	__le32 status;		/* TMEM_* below */
	__le32 reserved;
	__le64 cookie;
	__le64 value;		/* 0 unless said below */
	__le64 done[2];		/* bit i: page i was done; bit 0 is the lowest of done[0] */
};

#define TMEM_OK			0u
/* Answers about a page, or a pool that is to be made. */
#define TMEM_MISS		1u	/* it is not there */
#define TMEM_NO_ROOM		2u	/* not kept: no room */
#define TMEM_OVER_CAP		3u	/* not kept: the VM holds all that it may */
#define TMEM_FROZEN		4u	/* not kept: the VM is frozen */
#define TMEM_LOST		5u	/* it was there, and the host knows that it is lost */
#define TMEM_BAD_DATA		6u	/* not kept: packed data is not one page */
/* Refusals of a request. */
#define TMEM_BAD_OP		16u
#define TMEM_BAD_FLAGS		17u
#define TMEM_BAD_POOL		18u
#define TMEM_BAD_LENGTH		19u
#define TMEM_BAD_VERSION	20u
#define TMEM_NOT_NEGOTIATED	21u
#define TMEM_NOT_PERMITTED	22u
#define TMEM_HOST_ERROR		23u	/* the host failed; what was to be put is gone (rule 1) */

/*
 * Which refusal: the first of these that applies.
 *  - the request is shorter than 64 bytes: BAD_LENGTH, cookie 0
 *  - HELLO was not said, and this is none: NOT_NEGOTIATED
 *  - an operation that is unknown or was not agreed on: BAD_OP
 *  - a flag (of the request, or of the pool to be made) that is unknown, was not agreed on or is
 *    not for this operation or this kind of pool, or a field that should be 0: BAD_FLAGS
 *  - HELLO with a version that the host does not speak: BAD_VERSION, value: the highest it speaks
 *  - the VM has no pool of that number: BAD_POOL
 *  - a count of 0, above TMEM_BATCH_MAX, above 1 where it must be 1 or BATCH was not agreed on; an
 *    offset or length outside the page, a length of 0; a key that the pool cannot have; more data
 *    than TMEM_DATA_MAX; what is behind the request is longer or shorter than said; there is less
 *    room for the data than is fetched (a virtqueue's): BAD_LENGTH
 *  - a listed key, in their order: reserved not 0: BAD_FLAGS; one the pool cannot have: BAD_LENGTH
 *  - not authorised for that shared pool, more pools than TMEM_POOLS_MAX, or the pool of that uuid
 *    is of another kind: NOT_PERMITTED
 *
 * HELLO starts a channel, or starts it anew; on a device with several queues one HELLO is for all,
 * and nothing else is under way meanwhile. The guest sends the highest version it speaks and all
 * features it could use; it is answered TMEM_OK, and the value is the features that both have.
 * Features that the host does not know are left out of the answer, not refused: an old host and a
 * new guest agree on what both have. A guest that is answered BAD_VERSION may say HELLO with a
 * version it shares. A HELLO that is refused changes nothing.
 * A host that was restarted has forgotten what was agreed on, but no page and no pool: the guest
 * is answered NOT_NEGOTIATED, says HELLO and sends the request again. Pools keep their numbers.
 *
 * NEW_POOL: the value is the pool's number, and bit 0 of done says that it was there before.
 *  - count not 0: a swap pool. It is persistent and private, its keys are object 0 and an index
 *    below count. The room for all its pages is promised when it is made, or it is not made
 *    (TMEM_NO_ROOM, TMEM_OVER_CAP): a put into it does not fail for room.
 *  - SHARED: needs a uuid that is not 0. A VM joins the pool that is there. A shared pool that was
 *    made with other flags is NOT_PERMITTED.
 *  - ATTACH: needs a uuid that is not 0, and a private pool. The VM's own pool of that uuid comes
 *    with its pages, if flags and count are the same (else NOT_PERMITTED); if there is none it is
 *    made. So a guest that boots again does not leave its former pools behind for ever. A swap
 *    pool is emptied by FLUSH_OBJECT.
 *  - Neither: the uuid is 0.
 * DESTROY_POOL: a shared pool is left; with the last VM that leaves it goes.
 *
 * Pages: value is the number of bits in done. Each page of a request stands for itself, in order:
 * one that is refused does not stop the others. Status is TMEM_OK if all were done, else that of
 * the first that was not.
 * The data of a reply ends with the last page that was done, and pages before that were not are
 * zeroes in it; a READ that was not done fetches nothing. Room behind it (of a virtqueue) may have
 * been written to.
 *
 * GET: a lost page (TMEM_LOST) was kept once: never read a stale copy from elsewhere instead.
 * FLUSH_PAGE: always TMEM_OK; done says which pages were there.
 * FLUSH_OBJECT: always TMEM_OK; the value is how many pages were there, done is 0.
 * READ, WRITE: offset + length is at most the page size. Both need the page, else TMEM_MISS, and a
 * WRITE has then put nothing. A WRITE that is not kept (no room, over cap, frozen) is a put that
 * failed: the whole page is gone. A READ never removes the page.
 * EXCHANGE: the page is put, then the other is got. Bit 0 of done is the put, bit 1 the get. After
 * a put that was not done nothing is got, and no data is written: where the channel lets what is
 * sent and fetched lie in the same memory, that page is the only copy. With one key twice the page
 * comes back as it was put.
 *
 * A packed pool: a put sends length bytes. Below the page size they are compressed and exactly one
 * page when decompressed (else TMEM_BAD_DATA: the put failed, rule 1); with the page size they are
 * the page as it is. Whatever is fetched is decompressed, and a WRITE's data is plain.
 */

/* ---- a byte stream --------------------------------------------------------------------------- */

/*
 * On a stream every message is a frame: this header, then length bytes: a request with what it
 * sends, or a reply with what it fetches. CONTROL frames carry one JSON object, UTF-8, for agents
 * to agree on what is no page's business.
 *
 * Each time the host opens the stream it sends SYNC: 16 bytes that nobody can guess. It drops what
 * it reads until the same frame comes back. The guest answers a SYNC at once with that frame, in
 * whatever place of a frame of its own it is, and goes on with HELLO and the requests that have
 * had no answer. A guest that saw the port closed drops what it reads up to a SYNC.
 * A frame that is none (magic, length) ends the stream: nobody can say where the next begins. The
 * host then opens it again.
 */
struct tmem_frame {
	__le32 magic;		/* TMEM_FRAME_* */
	__le32 length;
};

#define TMEM_FRAME_REQUEST	0x716d7430u	/* "0tmq", at most TMEM_FRAME_MAX bytes */
#define TMEM_FRAME_REPLY	0x726d7430u	/* "0tmr", at most TMEM_FRAME_MAX bytes */
#define TMEM_FRAME_CONTROL	0x636d7430u	/* "0tmc", at most TMEM_CONTROL_MAX bytes */
#define TMEM_FRAME_SYNC		0x736d7430u	/* "0tms", TMEM_SYNC_SIZE bytes */
#define TMEM_FRAME_MAX		(TMEM_DATA_MAX + 64u + 32u * TMEM_BATCH_MAX)
#define TMEM_CONTROL_MAX	65536u
#define TMEM_SYNC_SIZE		16u

/* ---- virtio ---------------------------------------------------------------------------------- */

/*
 * Device id: the last that has a PCI device id (0x1040 + 63); far above what the specification has
 * given out, it marks an experiment. One queue or more, all alike: a chain is readable request,
 * items and data, then writable reply and data, split into descriptors anywhere. What is readable
 * has exactly the request's length; what is writable may be longer than needed. The used length
 * counts reply and data of the reply. A chain with no room for a reply is not served: it comes
 * back with length 0.
 * Without F_INLINE what is writable may not overlap what is readable (BAD_LENGTH), also for an
 * EXCHANGE: a host that is restarted serves the request that it was at once more, from what the
 * guest sent. So every request bears to be done twice; see host/core/channel/src/tmem/mod.rs.
 */
#define VIRTIO_ID_TMEM		63

struct virtio_tmem_config {
	__le32 version;		/* TMEM_ABI_VERSION of the host */
	__le32 queues;		/* request queues, at least 1 */
	__le64 features;	/* TMEM_FEATURE_* of the host */
};

#define VIRTIO_TMEM_F_MQ	0	/* more than one queue */
#define VIRTIO_TMEM_F_INLINE	1	/* requests are done when the kick returns */

#endif
