// SPDX-License-Identifier: GPL-2.0-only
/*
 * Swap pools: puts and gets in order with flushes that come when nobody may sleep.
 *
 * A freed swap slot is announced under a spin lock, so its flush is a bit in `pending` and a work;
 * nothing is allocated and none is ever lost or refused. The same slot may be put again at once:
 *  - the flush is still pending: the put cancels it, as it replaces the page anyway
 *  - the flush is on its way: the put waits, else the flush could be done after it and take the new
 *    page
 * A get needs neither: `present` was cleared when the flush was queued.
 *
 * A put that was answered by anything but TMEM_OK leaves `bad`, and a get of a bad page is an
 * error: the kernel never reads what it could not write, but if it did it would not get an older
 * page (rule 1).
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/highmem.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "tmem.h"

static unsigned int fail_get_every;
module_param(fail_get_every, uint, 0644);
MODULE_PARM_DESC(fail_get_every, "Fault injection: every n-th get finds its page lost (0: none)");

static unsigned int flush_delay_ms = 4;
module_param(flush_delay_ms, uint, 0644);
MODULE_PARM_DESC(flush_delay_ms, "How long a flush waits for others to go with it, in ms (4)");

struct workqueue_struct *tmem_wq;

/* Fetched pages so far: what fail_get_every counts. */
static atomic_t fetched;

/* ---- flushes --------------------------------------------------------------------------------- */

static void schedule_flushes(struct tmem_pool *pool)
{
	if (atomic_read(&pool->flushes) >= TMEM_BATCH_MAX)
		mod_delayed_work(tmem_wq, &pool->work, 0);
	else
		queue_delayed_work(tmem_wq, &pool->work,
				   msecs_to_jiffies(READ_ONCE(flush_delay_ms)));
}

static bool mark_flush(struct tmem_pool *pool, u32 index)
{
	bool held = test_and_clear_bit(index, pool->present);

	/* both, whatever the first says */
	held |= test_and_clear_bit(index, pool->bad);
	if (!held) {
		tmem_count(pool->stats, TMEM_N_FLUSHES_NEEDLESS);
		return false;
	}
	if (!test_and_set_bit(index, pool->pending))
		atomic_inc(&pool->flushes);
	tmem_count(pool->stats, TMEM_N_FLUSHES_QUEUED);
	return true;
}

void tmem_pool_flush(struct tmem_pool *pool, u32 index)
{
	if (index < pool->count && mark_flush(pool, index))
		schedule_flushes(pool);
}

void tmem_pool_flush_all(struct tmem_pool *pool)
{
	bool any = false;
	u32 index;

	for (index = 0; index < pool->count; index++) {
		any |= mark_flush(pool, index);
		if (!(index % 4096))
			cond_resched();
	}
	if (any)
		schedule_flushes(pool);
}

/* What the host takes may be less after it was restarted. */
static u32 batch_most(const struct tmem_pool *pool)
{
	return READ_ONCE(pool->channel->features) & TMEM_FEATURE_BATCH ? TMEM_BATCH_MAX : 1;
}

static bool takes_lists(const struct tmem_pool *pool)
{
	return READ_ONCE(pool->channel->features) & TMEM_FEATURE_LIST;
}

/*
 * Takes up to a batch of pending pages. `inflight` is set before `pending` is cleared, so a put
 * never finds neither; the put that came between cancelled the flush.
 */
static u32 take_batch(struct tmem_pool *pool)
{
	u32 most = batch_most(pool), taken = 0;
	bool list = takes_lists(pool);

	while (taken < most) {
		unsigned long index = find_next_bit(pool->pending, pool->count, pool->cursor);

		if (index >= pool->count) {
			pool->cursor = 0;
			break;
		}
		/* without lists a batch is a run */
		if (taken && !list && index != pool->batch[taken - 1] + 1)
			break;
		pool->cursor = index + 1;
		set_bit(index, pool->inflight);
		/* inflight is seen before pending is gone */
		smp_mb__after_atomic();
		if (!test_and_clear_bit(index, pool->pending)) {
			clear_bit(index, pool->inflight);
			continue;
		}
		atomic_dec(&pool->flushes);
		pool->batch[taken++] = index;
	}
	return taken;
}

static void release_batch(struct tmem_pool *pool, u32 taken, bool again)
{
	u32 i;

	for (i = 0; i < taken; i++) {
		if (again && !test_and_set_bit(pool->batch[i], pool->pending))
			atomic_inc(&pool->flushes);
		/* whoever finds inflight clear finds pending as it is now */
		smp_mb__before_atomic();
		clear_bit(pool->batch[i], pool->inflight);
	}
	/* clear_bit() is ordered before the look at the wait queue */
	smp_mb__after_atomic();
	wake_up_all(&pool->flushed);
}

static int send_batch(struct tmem_pool *pool, u32 taken)
{
	bool run = pool->batch[taken - 1] - pool->batch[0] == taken - 1;
	struct tmem_call call;
	u64 start = ktime_get_ns();
	u32 i;
	int err;

	if (run) {
		tmem_call_page(&call, TMEM_OP_FLUSH_PAGE, pool, NULL, pool->batch[0], NULL);
		call.request.count = cpu_to_le32(taken);
	} else {
		/* objects and the reserved field stay 0 */
		for (i = 0; i < taken; i++)
			pool->items[i].index = cpu_to_le32(pool->batch[i]);
		tmem_call_list(&call, TMEM_OP_FLUSH_PAGE, pool, pool->items, taken);
	}
	err = tmem_submit(pool->channel, &call);
	if (err)
		return err;
	tmem_count_wait(pool->stats, TMEM_WAIT_FLUSH, ktime_get_ns() - start);
	tmem_count(pool->stats, TMEM_N_FLUSH_REQUESTS);
	/* HELLO was said anew on its way, to a host that takes no such batch */
	if (tmem_call_status(&call) >= TMEM_BAD_OP &&
	    (taken > batch_most(pool) || (!run && !takes_lists(pool))))
		return -EMSGSIZE;
	/*
	 * a page that was not there is flushed, too; a request that was refused would be so again
	 */
	if (tmem_call_status(&call) >= TMEM_BAD_OP) {
		tmem_count_refusal(pool->stats, tmem_call_status(&call));
		pr_warn_ratelimited("%s: flush refused: %s\n", pool->stats->name,
				    tmem_status_name(tmem_call_status(&call)));
	}
	atomic_long_add(taken, &pool->stats->counter[TMEM_N_FLUSHES_SENT]);
	return 0;
}

static void flush_work_function(struct work_struct *work)
{
	struct tmem_pool *pool = container_of(work, struct tmem_pool, work.work);
	u32 taken;
	int err;

	pool->cursor = 0;
	for (;;) {
		taken = take_batch(pool);
		if (!taken) {
			if (atomic_read(&pool->flushes) <= 0)
				break;
			/* pages before the cursor were marked meanwhile */
			pool->cursor = 0;
			taken = take_batch(pool);
			if (!taken)
				break;
		}
		err = send_batch(pool, taken);
		release_batch(pool, taken, err);
		/* kept until the channel is up again: resume() */
		if (err && err != -EMSGSIZE)
			return;
		cond_resched();
	}
}

static void resume(struct tmem_pool *pool)
{
	if (atomic_read(&pool->flushes) > 0)
		mod_delayed_work(tmem_wq, &pool->work, 0);
	/* who drains looks at the channel's state, too */
	wake_up_all(&pool->flushed);
}

static bool drained(struct tmem_pool *pool)
{
	return bitmap_empty(pool->pending, pool->count) &&
	       bitmap_empty(pool->inflight, pool->count);
}

bool tmem_pool_drain(struct tmem_pool *pool)
{
	mod_delayed_work(tmem_wq, &pool->work, 0);
	flush_delayed_work(&pool->work);
	return drained(pool);
}

/* Before a put: no flush of this page is pending or on its way. */
static void overtake_flush(struct tmem_pool *pool, u32 index)
{
	for (;;) {
		bool cancelled = test_and_clear_bit(index, pool->pending);

		/* pending is read before inflight; see take_batch() */
		smp_mb__after_atomic();
		if (cancelled) {
			atomic_dec(&pool->flushes);
			tmem_count(pool->stats, TMEM_N_FLUSHES_OVERTAKEN);
		}
		if (!test_bit(index, pool->inflight)) {
			/*
			 * pairs with release_batch(): one that failed is pending again before it is
			 * not inflight
			 */
			smp_rmb();
			if (!test_bit(index, pool->pending))
				return;
			continue;
		}
		tmem_count(pool->stats, TMEM_N_FLUSH_WAITS);
		wait_event(pool->flushed, !test_bit(index, pool->inflight));
	}
}

/* ---- pages ----------------------------------------------------------------------------------- */

int tmem_pool_put(struct tmem_pool *pool, u32 index, struct page *page)
{
	struct tmem_call call;
	u64 start;
	int err;

	if (index >= pool->count)
		return -EIO;
	tmem_count(pool->stats, TMEM_N_PUTS);
	overtake_flush(pool, index);
	set_bit(index, pool->bad);
	clear_bit(index, pool->present);
	tmem_call_page(&call, TMEM_OP_PUT, pool, NULL, index, page);
	start = ktime_get_ns();
	err = tmem_submit(pool->channel, &call);
	if (err) {
		/* the host may have the page or not; it is `bad` either way */
		tmem_count(pool->stats, TMEM_N_CHANNEL_ERRORS);
		return -EIO;
	}
	tmem_count_wait(pool->stats, TMEM_WAIT_PUT, ktime_get_ns() - start);
	if (tmem_call_status(&call) != TMEM_OK) {
		tmem_count_refusal(pool->stats, tmem_call_status(&call));
		return -EIO;
	}
	set_bit(index, pool->present);
	clear_bit(index, pool->bad);
	tmem_count(pool->stats, TMEM_N_PUTS_DONE);
	return 0;
}

static bool inject(struct tmem_pool *pool)
{
	unsigned int every = READ_ONCE(fail_get_every);

	if (!every || atomic_inc_return(&fetched) % every)
		return false;
	tmem_count(pool->stats, TMEM_N_INJECTED);
	return true;
}

int tmem_pool_get(struct tmem_pool *pool, u32 index, struct page *page)
{
	struct tmem_call call;
	u64 start;
	int err;

	if (index >= pool->count)
		return -EIO;
	tmem_count(pool->stats, TMEM_N_GETS);
	if (test_bit(index, pool->bad)) {
		tmem_count(pool->stats, TMEM_N_LOST);
		return -EIO;
	}
	if (!test_bit(index, pool->present)) {
		tmem_count(pool->stats, TMEM_N_ZEROES);
		clear_highpage(page);
		return 0;
	}
	if (inject(pool)) {
		/* for good, as a page that is lost would be: the kernel may ask twice */
		set_bit(index, pool->bad);
		clear_bit(index, pool->present);
		tmem_count(pool->stats, TMEM_N_LOST);
		return -EIO;
	}
	tmem_call_page(&call, TMEM_OP_GET, pool, NULL, index, page);
	start = ktime_get_ns();
	err = tmem_submit(pool->channel, &call);
	if (err) {
		tmem_count(pool->stats, TMEM_N_CHANNEL_ERRORS);
		return -EIO;
	}
	tmem_count_wait(pool->stats, TMEM_WAIT_GET, ktime_get_ns() - start);
	switch (tmem_call_status(&call)) {
	case TMEM_OK:
		tmem_count(pool->stats, TMEM_N_HITS);
		return 0;
	case TMEM_MISS:
		/* it was put, so this is no hole */
		tmem_count(pool->stats, TMEM_N_MISSES);
		return -EIO;
	case TMEM_LOST:
		tmem_count(pool->stats, TMEM_N_LOST);
		return -EIO;
	default:
		tmem_count_refusal(pool->stats, tmem_call_status(&call));
		return -EIO;
	}
}

/* ---- life ------------------------------------------------------------------------------------ */

/* 0 and the pool's number; *found: the host had it already, perhaps with pages. */
static int find_pool(struct tmem_pool *pool, tmem_carry *carry, bool *found)
{
	struct tmem_call call;
	u64 id;
	int err;

	tmem_call_new_pool(&call, pool->flags | TMEM_POOL_ATTACH, pool->uuid, pool->count);
	err = carry(pool->channel, &call);
	if (err)
		return err;
	id = le64_to_cpu(call.reply.value);
	if (tmem_call_status(&call) != TMEM_OK || id > U32_MAX) {
		pr_err("%s: no pool of %u pages: %s\n", pool->stats->name, pool->count,
		       tmem_status_name(tmem_call_status(&call)));
		WRITE_ONCE(pool->attached, false);
		return -ENOSPC;
	}
	WRITE_ONCE(pool->id, id);
	WRITE_ONCE(pool->attached, true);
	*found = call.reply.done[0] & cpu_to_le64(1);
	return 0;
}

int tmem_pool_attach(struct tmem_pool *pool, tmem_carry *carry)
{
	struct tmem_call call;
	bool found;
	int err;

	err = find_pool(pool, carry, &found);
	if (err || pool->attached_once)
		return err;
	/* what an earlier life of this guest left there is nobody's, and would be stale */
	if (found) {
		tmem_call_pool(&call, pool->count ? TMEM_OP_FLUSH_OBJECT : TMEM_OP_DESTROY_POOL,
			       pool);
		err = carry(pool->channel, &call);
		if (!err && tmem_call_status(&call) != TMEM_OK)
			err = -EPROTO;
		if (!err && !pool->count)
			err = find_pool(pool, carry, &found);
	}
	if (err) {
		WRITE_ONCE(pool->attached, false);
		return err;
	}
	pool->attached_once = true;
	return 0;
}

struct tmem_pool *tmem_pool_create(struct tmem_channel *channel, struct tmem_stats *stats,
				   const u64 uuid[2], u32 count)
{
	size_t bytes = BITS_TO_LONGS(count) * sizeof(unsigned long);
	struct tmem_pool *pool;
	int err = -ENOMEM;

	pool = kzalloc(sizeof(*pool), GFP_KERNEL);
	if (!pool)
		return ERR_PTR(-ENOMEM);
	pool->channel = channel;
	pool->stats = stats;
	pool->uuid[0] = uuid[0];
	/* of another size it is another pool: the host would not give it to us */
	pool->uuid[1] = uuid[1] ^ ((u64)count << 32);
	pool->flags = count ? TMEM_POOL_PERSISTENT : 0;
	pool->count = count;
	pool->resume = resume;
	init_waitqueue_head(&pool->flushed);
	INIT_DELAYED_WORK(&pool->work, flush_work_function);
	pool->present = kvzalloc(bytes, GFP_KERNEL);
	pool->bad = kvzalloc(bytes, GFP_KERNEL);
	pool->pending = kvzalloc(bytes, GFP_KERNEL);
	pool->inflight = kvzalloc(bytes, GFP_KERNEL);
	pool->batch = kcalloc(TMEM_BATCH_MAX, sizeof(*pool->batch), GFP_KERNEL);
	pool->items = kcalloc(TMEM_BATCH_MAX, sizeof(*pool->items), GFP_KERNEL);
	if (!pool->present || !pool->bad || !pool->pending || !pool->inflight || !pool->batch ||
	    !pool->items)
		goto err_free;
	err = tmem_channel_add_pool(channel, pool);
	if (err)
		goto err_free;
	return pool;

err_free:
	kfree(pool->items);
	kfree(pool->batch);
	kvfree(pool->inflight);
	kvfree(pool->pending);
	kvfree(pool->bad);
	kvfree(pool->present);
	kfree(pool);
	return ERR_PTR(err);
}

void tmem_pool_destroy(struct tmem_pool *pool)
{
	struct tmem_call call;

	tmem_channel_remove_pool(pool->channel, pool);
	cancel_delayed_work_sync(&pool->work);
	/*
	 * whatever the answer: a host that cannot be told has its own ways to forget a VM's pools
	 */
	tmem_call_pool(&call, TMEM_OP_DESTROY_POOL, pool);
	tmem_submit(pool->channel, &call);
	kfree(pool->items);
	kfree(pool->batch);
	kvfree(pool->inflight);
	kvfree(pool->pending);
	kvfree(pool->bad);
	kvfree(pool->present);
	kfree(pool);
}

int tmem_pools_init(void)
{
	/*
	 * flushes free memory of the host, and a put may wait for one: reclaim must not stop them
	 */
	tmem_wq = alloc_workqueue("tmem", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return tmem_wq ? 0 : -ENOMEM;
}

void tmem_pools_exit(void)
{
	destroy_workqueue(tmem_wq);
}
