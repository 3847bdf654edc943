/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The parts of the module and how they meet:
 *
 *   source (blkdev.c, frontswap.c, cleancache.c)
 *       what in the guest gives pages up
 *   -> pool (pool.c)
 *       what is known about each page; flushes that had to be queued
 *   -> core (core.c)
 *       the one channel: its state, HELLO, pools attached anew
 *   -> channel (virtio.c, serial.c, local.c)
 *       carries one request and its page to the host
 *
 * Nothing allocates on the way of a put, a get or a flush.
 */
#ifndef TMEM_H
#define TMEM_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "tmem_abi.h"

#define TMEM_MODULE_VERSION "0.1.0"

struct tmem_channel;
struct tmem_pool;

/* ---- counters: debugfs.c --------------------------------------------------------------------- */

/* Of a source. Their names in debugfs are in debugfs.c, in this order. */
enum tmem_counter {
	TMEM_N_PUTS,
	TMEM_N_PUTS_DONE,
	TMEM_N_GETS,
	TMEM_N_HITS,
	TMEM_N_MISSES,
	TMEM_N_ZEROES,
	TMEM_N_LOST,
	TMEM_N_NO_ROOM,
	TMEM_N_OVER_CAP,
	TMEM_N_FROZEN,
	TMEM_N_REFUSED,
	TMEM_N_DROPPED,
	TMEM_N_CHANNEL_ERRORS,
	TMEM_N_FLUSHES_QUEUED,
	TMEM_N_FLUSHES_NEEDLESS,
	TMEM_N_FLUSHES_OVERTAKEN,
	TMEM_N_FLUSHES_SENT,
	TMEM_N_FLUSH_REQUESTS,
	TMEM_N_FLUSH_WAITS,
	TMEM_N_INJECTED,
	TMEM_N_COUNTERS
};

/* Of the channel. */
enum tmem_channel_counter {
	TMEM_C_REQUESTS,
	TMEM_C_ERRORS,
	TMEM_C_BAD_REPLIES,
	TMEM_C_STARTS,
	TMEM_C_KICKS,
	TMEM_C_POLLED,
	TMEM_C_SLEPT,
	TMEM_C_FULL,
	TMEM_C_REPEATED,
	TMEM_C_COUNTERS
};

/* Bucket i counts waits of less than 1024 << i ns; the last one all that are longer. */
#define TMEM_WAIT_BUCKETS	24

enum tmem_wait { TMEM_WAIT_PUT, TMEM_WAIT_GET, TMEM_WAIT_FLUSH, TMEM_WAITS };

struct tmem_stats {
	const char *name;
	atomic_long_t counter[TMEM_N_COUNTERS];
	atomic_long_t wait[TMEM_WAITS][TMEM_WAIT_BUCKETS];
};

static inline void tmem_count(struct tmem_stats *stats, enum tmem_counter which)
{
	atomic_long_inc(&stats->counter[which]);
}

void tmem_count_wait(struct tmem_stats *stats, enum tmem_wait which, u64 ns);
void tmem_count_refusal(struct tmem_stats *stats, u32 status);

/* /sys/kernel/debug/tmem. A kernel without debugfs has no files, and lacks nothing else. */
void tmem_debugfs_init(void);
void tmem_debugfs_exit(void);
/* A file named as the source. */
void tmem_debugfs_add(struct tmem_stats *stats);
void tmem_debugfs_add_channel(struct tmem_channel *channel);

/* ---- requests: abi.c ------------------------------------------------------------------------- */

/*
 * One request on its way. It lives on the stack of who waits for it; channels copy what the device
 * reads and writes. The page is sent by a put and fetched by a get, in place.
 */
struct tmem_call {
	struct tmem_request request;
	struct tmem_reply reply;
	struct page *page;
	const struct tmem_item *items;	/* request.count of them, kmalloc'ed: read in place */
	struct tmem_pool *pool;		/* its number is filled in at the last moment */

	/* The channel's. */
	struct list_head link;
	struct completion done;
	int error;
};

void tmem_call_hello(struct tmem_call *call, u32 version, u64 features);
void tmem_call_new_pool(struct tmem_call *call, u64 flags, const u64 uuid[2], u32 count);
void tmem_call_pool(struct tmem_call *call, u16 op, struct tmem_pool *pool);
void tmem_call_page(struct tmem_call *call, u16 op, struct tmem_pool *pool, const u64 object[3],
		    u32 index, struct page *page);
void tmem_call_list(struct tmem_call *call, u16 op, struct tmem_pool *pool,
		    const struct tmem_item *items, u32 count);

/* Bytes behind the request, and behind its reply. */
size_t tmem_call_items_length(const struct tmem_call *call);
static inline bool tmem_call_sends(const struct tmem_call *call)
{
	return call->request.op == cpu_to_le16(TMEM_OP_PUT);
}

static inline bool tmem_call_fetches(const struct tmem_call *call)
{
	return call->request.op == cpu_to_le16(TMEM_OP_GET);
}

static inline u32 tmem_call_status(const struct tmem_call *call)
{
	return le32_to_cpu(call->reply.status);
}

bool tmem_reply_fits(const struct tmem_call *call);
const char *tmem_status_name(u32 status);

/* ---- the channel: core.c --------------------------------------------------------------------- */

enum tmem_state { TMEM_DOWN, TMEM_STARTING, TMEM_UP };

struct tmem_channel_ops {
	const char *name;
	/*
	 * Carries one request and waits for its reply as long as it takes. May sleep, does not
	 * allocate. 0: there is a reply, which may be a refusal. Else nobody reads or writes the
	 * page any more, and whether the host did what it was asked is not known.
	 */
	int (*submit)(struct tmem_channel *channel, struct tmem_call *call);
	/* The same for who starts the channel, before it is up. */
	int (*execute)(struct tmem_channel *channel, struct tmem_call *call);
	/*
	 * Answers all that wait with an error, and lets nobody in. The host no longer touches their
	 * pages.
	 */
	void (*abort)(struct tmem_channel *channel);
};

struct tmem_channel {
	const struct tmem_channel_ops *ops;
	void *private;				/* of ops */
	spinlock_t lock;			/* guards state's changes and pools[] */
	enum tmem_state state;
	atomic_t users;				/* requests inside submit() */
	wait_queue_head_t changed;		/* state, and users falling to 0 */
	u64 features;				/* agreed on */
	struct mutex restart;			/* guards generation: HELLO is said again by one */
	unsigned int generation;
	atomic64_t cookie;
	struct tmem_pool *pools[TMEM_POOLS_MAX];
	atomic_long_t counter[TMEM_C_COUNTERS];
};

static inline void tmem_channel_count(struct tmem_channel *channel, enum tmem_channel_counter which)
{
	atomic_long_inc(&channel->counter[which]);
}

static inline bool tmem_channel_is_up(const struct tmem_channel *channel)
{
	return READ_ONCE(channel->state) == TMEM_UP;
}

void tmem_channel_init(struct tmem_channel *channel, const struct tmem_channel_ops *ops);
/* HELLO, and all pools attached; then up. In the context that may execute(). */
int tmem_channel_start(struct tmem_channel *channel);
/* Down: what waits is answered with an error. Returns when no request is inside. */
void tmem_channel_stop(struct tmem_channel *channel);
/* -ENOLINK when the channel is down, -EPROTO for a reply that is none; else as ops->submit. */
int tmem_submit(struct tmem_channel *channel, struct tmem_call *call);
/* The last thing before a request goes out: the pool's present number and a fresh cookie. */
int tmem_call_stamp(struct tmem_channel *channel, struct tmem_call *call);

int tmem_channel_add_pool(struct tmem_channel *channel, struct tmem_pool *pool);
void tmem_channel_remove_pool(struct tmem_channel *channel, struct tmem_pool *pool);

/* ---- pools: pool.c --------------------------------------------------------------------------- */

/*
 * A swap pool (count is not 0): dense, persistent, object 0. Four bits for each page say all that
 * the guest has to know:
 *   present   the host answered TMEM_OK to the last put, and the page was not flushed since
 *   bad       the last put was not answered so: what the host has is not what the guest gave. Until
 *             the next put or flush a get is an error without asking
 *   pending   to be flushed; cancelled by a put of the same page, which replaces it anyway
 *   inflight  in a flush that is on its way: a put of the same page waits, as it must not be
 *             overtaken
 */
struct tmem_pool {
	struct tmem_channel *channel;
	struct tmem_stats *stats;
	u64 uuid[2];
	u64 flags;			/* TMEM_POOL_* */
	u32 count;			/* pages of a swap pool, else 0 */
	u32 id;				/* the host's number; valid while attached */
	bool attached;
	bool attached_once;
	void (*resume)(struct tmem_pool *pool);		/* the channel is up again */
	void *private;					/* of who set resume */

	unsigned long *present;
	unsigned long *bad;
	unsigned long *pending;
	unsigned long *inflight;
	atomic_t flushes;		/* bits of pending: tells when a batch is full */
	wait_queue_head_t flushed;	/* bits of inflight were cleared */
	struct delayed_work work;
	u32 cursor;			/* of the work alone, as are batch[] and items[] */
	u32 *batch;
	struct tmem_item *items;
};

int tmem_pools_init(void);
void tmem_pools_exit(void);

struct tmem_pool *tmem_pool_create(struct tmem_channel *channel, struct tmem_stats *stats,
				   const u64 uuid[2], u32 count);
void tmem_pool_destroy(struct tmem_pool *pool);
/* What carries a request: tmem_submit(), or its like while the channel is being started. */
typedef int tmem_carry(struct tmem_channel *channel, struct tmem_call *call);
/* Finds or makes it at the host, without pages of an earlier life. -ENOSPC: refused. */
int tmem_pool_attach(struct tmem_pool *pool, tmem_carry *carry);

/*
 * 0, or -EIO: the key now holds nothing that could be read. Sleeps as long as the host takes: it
 * may be reading the page, so giving up is no choice.
 */
int tmem_pool_put(struct tmem_pool *pool, u32 index, struct page *page);
/*
 * 0: the page as it was put, or zeroes where nothing was; -EIO: it is lost, the page's content is
 * undefined.
 */
int tmem_pool_get(struct tmem_pool *pool, u32 index, struct page *page);
/* From any context. */
void tmem_pool_flush(struct tmem_pool *pool, u32 index);
/* All pages of the pool; may take long. */
void tmem_pool_flush_all(struct tmem_pool *pool);
/* Waits until nothing is pending or on its way; false when the channel went down before. */
bool tmem_pool_drain(struct tmem_pool *pool);

extern struct workqueue_struct *tmem_wq;

/* ---- channels -------------------------------------------------------------------------------- */

int tmem_virtio_init(struct tmem_channel *channel);
void tmem_virtio_exit(void);
int tmem_serial_init(struct tmem_channel *channel);
void tmem_serial_exit(void);

/* Keeps pages in this guest; for tests. */
int tmem_local_open(struct tmem_channel *channel, u32 pages, bool shared_memory);
void tmem_local_close(struct tmem_channel *channel);
int tmem_local_init(struct tmem_channel *channel);
void tmem_local_exit(void);

/* ---- sources --------------------------------------------------------------------------------- */

/*
 * A block device of pages whose first page, where mkswap writes, is kept here. It opens only while
 * its pool can be reached.
 */
#define TMEM_DISK_SYNCHRONOUS	BIT(0)
#define TMEM_DISK_HEADER_ONLY	BIT(1)	/* all other pages are I/O errors */
struct tmem_disk;
struct tmem_disk *tmem_disk_create(const char *name, u32 pages, struct tmem_pool *pool,
				   unsigned int flags);
void tmem_disk_destroy(struct tmem_disk *disk);
/* The task that has it open exclusively, as swapon does; not to be dereferenced. */
const void *tmem_disk_owner(struct tmem_disk *disk);

int tmem_blkdev_init(struct tmem_channel *channel);
void tmem_blkdev_exit(void);

#ifdef TMEM_HAVE_FRONTSWAP
int tmem_frontswap_init(struct tmem_channel *channel);
void tmem_frontswap_exit(void);
/* For good: there is no unregister. */
void tmem_frontswap_register(void);
#else
static inline int tmem_frontswap_init(struct tmem_channel *channel) { return 0; }
static inline void tmem_frontswap_exit(void) { }
static inline void tmem_frontswap_register(void) { }
#endif

#ifdef CONFIG_CLEANCACHE
int tmem_cleancache_init(struct tmem_channel *channel);
void tmem_cleancache_exit(void);
/* For good: there is no unregister. */
void tmem_cleancache_register(void);
#else
static inline int tmem_cleancache_init(struct tmem_channel *channel) { return 0; }
static inline void tmem_cleancache_exit(void) { }
static inline void tmem_cleancache_register(void) { }
#endif

/* ---- tests ----------------------------------------------------------------------------------- */

/* 0, or the error of the first test that failed. */
int tmem_selftest_run(void);

#endif
