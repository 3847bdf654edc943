// SPDX-License-Identifier: GPL-2.0-only
/*
 * The channel as sources see it: up or not, one request at a time. What differs between channels is
 * behind struct tmem_channel_ops; what every one of them has to do first, HELLO and the pools, is
 * here.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/sched.h>

#include "tmem.h"

/* What this module makes use of. */
#define WANTED	(TMEM_FEATURE_BATCH | TMEM_FEATURE_LIST)
#define OLDEST_VERSION	1u

void tmem_channel_init(struct tmem_channel *channel, const struct tmem_channel_ops *ops)
{
	memset(channel, 0, sizeof(*channel));
	channel->ops = ops;
	spin_lock_init(&channel->lock);
	init_waitqueue_head(&channel->changed);
	mutex_init(&channel->restart);
	atomic64_set(&channel->cookie, 1);
}

/* False, and nothing is changed, unless the state was `from`: stop() may have come between. */
static bool change_state(struct tmem_channel *channel, enum tmem_state from, enum tmem_state to)
{
	unsigned long flags;
	bool changed;

	spin_lock_irqsave(&channel->lock, flags);
	changed = channel->state == from;
	if (changed)
		WRITE_ONCE(channel->state, to);
	spin_unlock_irqrestore(&channel->lock, flags);
	if (changed)
		wake_up_all(&channel->changed);
	return changed;
}

/*
 * Lets nobody in while the channel is down, and makes who comes while it is being started wait for
 * the outcome.
 */
static bool enter(struct tmem_channel *channel)
{
	enum tmem_state state;

	for (;;) {
		atomic_inc(&channel->users);
		/*
		 * counted first, looked second; stop() does the reverse, so one of the two sees the
		 * other
		 */
		smp_mb__after_atomic();
		state = READ_ONCE(channel->state);
		if (state == TMEM_UP)
			return true;
		if (atomic_dec_and_test(&channel->users))
			wake_up_all(&channel->changed);
		if (state == TMEM_DOWN)
			return false;
		wait_event(channel->changed, READ_ONCE(channel->state) != TMEM_STARTING);
	}
}

static void leave(struct tmem_channel *channel)
{
	if (atomic_dec_and_test(&channel->users) && !tmem_channel_is_up(channel))
		wake_up_all(&channel->changed);
}

int tmem_call_stamp(struct tmem_channel *channel, struct tmem_call *call)
{
	if (call->pool) {
		if (!READ_ONCE(call->pool->attached))
			return -ENOLINK;
		call->request.pool = cpu_to_le32(READ_ONCE(call->pool->id));
	}
	call->request.cookie = cpu_to_le64(atomic64_inc_return(&channel->cookie));
	return 0;
}

static int answered(struct tmem_channel *channel, struct tmem_call *call, int err)
{
	tmem_channel_count(channel, TMEM_C_REQUESTS);
	if (!err && !tmem_reply_fits(call)) {
		tmem_channel_count(channel, TMEM_C_BAD_REPLIES);
		err = -EPROTO;
	}
	if (err)
		tmem_channel_count(channel, TMEM_C_ERRORS);
	return err;
}

static int execute(struct tmem_channel *channel, struct tmem_call *call)
{
	return answered(channel, call, channel->ops->execute(channel, call));
}

/* Fallback is the older side's version; there is only one so far, so it says no more than that. */
static int hello(struct tmem_channel *channel)
{
	u32 version = TMEM_ABI_VERSION;
	struct tmem_call call;
	int err;

	for (;;) {
		u64 theirs;

		tmem_call_hello(&call, version, WANTED);
		err = execute(channel, &call);
		if (err)
			return err;
		theirs = le64_to_cpu(call.reply.value);
		if (tmem_call_status(&call) == TMEM_OK) {
			if (theirs & ~WANTED) {
				pr_err("the host wants features nobody offered: %#llx\n", theirs);
				return -EPROTO;
			}
			WRITE_ONCE(channel->features, theirs);
			return 0;
		}
		if (tmem_call_status(&call) != TMEM_BAD_VERSION || theirs >= version ||
		    theirs < OLDEST_VERSION) {
			pr_err("the host does not take version %u: %s, it has %llu\n", version,
			       tmem_status_name(tmem_call_status(&call)), theirs);
			return -EPROTONOSUPPORT;
		}
		version = theirs;
	}
}

static int start(struct tmem_channel *channel)
{
	int i, err;

	tmem_channel_count(channel, TMEM_C_STARTS);
	err = hello(channel);
	if (err)
		return err;
	for (i = 0; i < TMEM_POOLS_MAX; i++) {
		struct tmem_pool *pool = READ_ONCE(channel->pools[i]);

		if (!pool)
			continue;
		err = tmem_pool_attach(pool, execute);
		/* a pool that is refused is its source's trouble, not that of the others */
		if (err && err != -ENOSPC)
			return err;
	}
	return 0;
}

static void resume_pools(struct tmem_channel *channel)
{
	int i;

	for (i = 0; i < TMEM_POOLS_MAX; i++) {
		struct tmem_pool *pool = READ_ONCE(channel->pools[i]);

		if (pool && pool->resume)
			pool->resume(pool);
	}
}

int tmem_channel_start(struct tmem_channel *channel)
{
	/*
	 * one that is started again while up stays so: its requests wait inside it, and are stamped
	 * later
	 */
	bool was_up = !change_state(channel, TMEM_DOWN, TMEM_STARTING);
	int err = start(channel);

	if (!was_up)
		change_state(channel, TMEM_STARTING, err ? TMEM_DOWN : TMEM_UP);
	if (!err)
		resume_pools(channel);
	return err;
}

/*
 * The host was restarted and has forgotten what was agreed on: TMEM_NOT_NEGOTIATED, and nothing was
 * done. The first who is told so lets nobody in, waits until nothing else is under way, and says
 * HELLO again; everybody then repeats what was not done.
 */
static int start_again(struct tmem_channel *channel, unsigned int generation)
{
	int err = 0;

	mutex_lock(&channel->restart);
	if (generation == channel->generation) {
		if (!change_state(channel, TMEM_UP, TMEM_STARTING)) {
			err = -ENOLINK;
			goto out;
		}
		wait_event(channel->changed, !atomic_read(&channel->users));
		tmem_channel_count(channel, TMEM_C_REPEATED);
		err = start(channel);
		change_state(channel, TMEM_STARTING, err ? TMEM_DOWN : TMEM_UP);
		WRITE_ONCE(channel->generation, generation + 1);
		if (!err)
			resume_pools(channel);
	}
out:
	mutex_unlock(&channel->restart);
	return err;
}

int tmem_submit(struct tmem_channel *channel, struct tmem_call *call)
{
	int attempts, err;

	might_sleep();
	/* a host that forgets this often is none */
	for (attempts = 0; attempts < 8; attempts++) {
		unsigned int generation = READ_ONCE(channel->generation);

		if (!enter(channel))
			return -ENOLINK;
		err = answered(channel, call, channel->ops->submit(channel, call));
		leave(channel);
		if (err || tmem_call_status(call) != TMEM_NOT_NEGOTIATED)
			return err;
		err = start_again(channel, generation);
		if (err)
			return err;
		reinit_completion(&call->done);
	}
	return -EPROTO;
}

void tmem_channel_stop(struct tmem_channel *channel)
{
	unsigned long flags;

	spin_lock_irqsave(&channel->lock, flags);
	WRITE_ONCE(channel->state, TMEM_DOWN);
	spin_unlock_irqrestore(&channel->lock, flags);
	wake_up_all(&channel->changed);
	/* counterpart of the one in enter() */
	smp_mb();
	channel->ops->abort(channel);
	wait_event(channel->changed, !atomic_read(&channel->users));
	/* who says HELLO again is not counted */
	mutex_lock(&channel->restart);
	mutex_unlock(&channel->restart);
}

int tmem_channel_add_pool(struct tmem_channel *channel, struct tmem_pool *pool)
{
	unsigned long flags;
	int i, err = -ENOSPC;

	spin_lock_irqsave(&channel->lock, flags);
	for (i = 0; i < TMEM_POOLS_MAX; i++)
		if (!channel->pools[i]) {
			WRITE_ONCE(channel->pools[i], pool);
			err = 0;
			break;
		}
	spin_unlock_irqrestore(&channel->lock, flags);
	return err;
}

void tmem_channel_remove_pool(struct tmem_channel *channel, struct tmem_pool *pool)
{
	unsigned long flags;
	int i;

	spin_lock_irqsave(&channel->lock, flags);
	for (i = 0; i < TMEM_POOLS_MAX; i++)
		if (channel->pools[i] == pool)
			WRITE_ONCE(channel->pools[i], NULL);
	spin_unlock_irqrestore(&channel->lock, flags);
}
