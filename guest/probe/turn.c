// SPDX-License-Identifier: Apache-2.0
/*
 * One turn: so many requests of a kind, each timed, by one vCPU or by several at once. What was asked for is looked at
 * afterwards: every page of the turn is got again and compared whole.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probe.h"

#define SAMPLES_MAX 4000

enum op { PUT, GET, FLUSH, EXCHANGE, PUT_GET, READ, WRITE, OPS };

struct job {
	struct channel *channel;
	enum op op;
	const struct turn *turn;
	struct lane *lane;
	uint64_t began, ended;
	uint32_t samples[SAMPLES_MAX];	/* nanoseconds of a request, the mean of `every` in a row */
	int failed, status;
	uint32_t shift;	/* which page of the corpus comes next */
};

/* as the host names them */
static const char *const names[] = { "put", "get", "flush", "exchange", "put+get", "read", "write" };

static struct job jobs[LANES];
static atomic_int waiting;
static atomic_bool go;

/* How many pages of that size the corpus has. */
static uint32_t pages_of(uint32_t bytes)
{
	return corpus_pages * (size_t)PAGE / bytes;
}

static uint32_t *holds(struct job *j, uint32_t index, uint32_t bytes)
{
	return &j->channel->held[j->lane->number][size_class(bytes)][index];
}

static int ask(struct job *j, const struct call *call)
{
	int status = j->channel->ask(j->channel, j->lane, call);

	if (status != TMEM_OK) {
		j->failed++;
		j->status = status;
	}
	return status;
}

/* Keys of a lane are its own: index counts from the first of them. */
static struct call on_page(struct job *j, int op, uint32_t index, uint32_t count)
{
	uint32_t bytes = j->turn->bytes;

	return (struct call){
		.op = op,
		.bytes = bytes,
		.index = j->lane->number * SPAN(bytes) + index,
		.count = count,
	};
}

static struct call put_of(struct job *j, uint32_t index, uint32_t count)
{
	struct call call = on_page(j, TMEM_OP_PUT, index, count);
	uint32_t all = pages_of(call.bytes), first = j->shift;

	/* in a row, as a disk wants them */
	if (first + count > all)
		first = 0;
	for (uint32_t i = 0; i < count; i++) {
		j->lane->sent[i] = corpus + (size_t)(first + i) * call.bytes;
		*holds(j, index + i, call.bytes) = first + i;
	}
	call.sends = j->lane->sent;
	j->shift = first + count == all ? 0 : first + count;
	return call;
}

static struct call get_of(struct job *j, uint32_t index, uint32_t count)
{
	struct call call = on_page(j, TMEM_OP_GET, index, count);

	call.fetches = j->lane->fetched;
	return call;
}

static struct call part_of(struct job *j, int op, uint32_t index)
{
	struct call call = on_page(j, op, index, 1);

	call.length = j->turn->length;
	call.offset = j->turn->bytes / 2;
	if (op == TMEM_OP_READ) {
		call.fetches = j->lane->fetched;
	} else {
		/* what is there already: the page stays what it was */
		j->lane->sent[0] = corpus + (size_t)*holds(j, index, call.bytes) * call.bytes + call.offset;
		call.sends = j->lane->sent;
	}
	return call;
}

/* What request number `i` of the turn asks for. */
static struct call prepared(struct job *j, uint32_t i)
{
	const struct turn *t = j->turn;
	uint32_t span = SPAN(t->bytes), index = i * t->batch & (span - 1);
	struct call call;

	switch (j->op) {
	case GET:
		return get_of(j, index, t->batch);
	case READ:
		return part_of(j, TMEM_OP_READ, index);
	case WRITE:
		return part_of(j, TMEM_OP_WRITE, index);
	case FLUSH:
		call = put_of(j, index, t->batch);
		ask(j, &call);
		return on_page(j, TMEM_OP_FLUSH_PAGE, index, t->batch);
	case EXCHANGE:
		call = put_of(j, index, 1);
		call.op = TMEM_OP_EXCHANGE;
		call.other = j->lane->number * span + ((index + span / 2) & (span - 1));
		call.fetches = j->lane->fetched;
		return call;
	default:
		return put_of(j, index, t->batch);
	}
}

static void issue(struct job *j, uint32_t i, const struct call *call)
{
	uint32_t span = SPAN(j->turn->bytes);

	ask(j, call);
	if (j->op == PUT_GET) {
		struct call second = get_of(j, (i + span / 2) & (span - 1), 1);

		ask(j, &second);
	}
}

/*
 * Nanoseconds of a request. Alone it is ready before the clock is read; of several in a row the clock, which takes its
 * time where the CPU is emulated, is read once, and getting them ready counts.
 */
static uint32_t sample(struct job *j, uint32_t first)
{
	uint32_t every = j->turn->every;
	uint64_t began, ended;
	struct call call;

	if (every == 1) {
		call = prepared(j, first);
		began = now();
		issue(j, first, &call);
		ended = now();
		return ended - began;
	}
	began = now();
	for (uint32_t i = first; i < first + every; i++) {
		call = prepared(j, i);
		issue(j, i, &call);
	}
	ended = now();
	return (ended - began) / every;
}

/* Every page of the lane that the turn has touched, got again and compared. */
static void verify(struct job *j)
{
	const struct turn *t = j->turn;
	uint64_t touched = (uint64_t)(t->warmup + t->samples * t->every) * t->batch;

	for (uint32_t index = 0; index < SPAN(t->bytes) && index < touched; index++) {
		struct call call = get_of(j, index, 1);

		if (ask(j, &call) == TMEM_OK &&
		    memcmp(j->lane->fetched, corpus + (size_t)*holds(j, index, t->bytes) * t->bytes, t->bytes))
			j->failed++;
	}
}

/* Every page is there before a turn; a flush leaves it so that the next turn has to fill. */
static void fill(struct job *j)
{
	bool *filled = &j->channel->filled[j->lane->number][size_class(j->turn->bytes)];

	for (uint32_t index = 0; index < SPAN(j->turn->bytes) && !*filled; index++) {
		struct call call = put_of(j, index, 1);

		ask(j, &call);
	}
	*filled = j->op != FLUSH;
}

static void *work(void *opaque)
{
	struct job *j = opaque;
	const struct turn *t = j->turn;
	uint32_t i = 0;

	pin(j->lane->number);
	fill(j);
	for (; i < t->warmup; i += t->every)
		sample(j, i);
	atomic_fetch_add(&waiting, 1);
	while (!atomic_load(&go))
		__builtin_ia32_pause();
	j->began = now();
	for (uint32_t n = 0; n < t->samples; n++, i += t->every)
		j->samples[n] = sample(j, i);
	j->ended = now();
	return NULL;
}

static void tell(const struct job *j, uint32_t samples)
{
	static char line[SAMPLES_MAX * 11 + 32];
	int at = snprintf(line, sizeof(line), "ns %d", j->lane->number);

	for (uint32_t n = 0; n < samples; n++)
		at += snprintf(line + at, sizeof(line) - at, " %u", j->samples[n]);
	say("%s\n", line);
}

static bool possible(const struct channel *c, enum op op, const struct turn *t)
{
	if (!t->lanes || t->lanes > (uint32_t)c->lanes || !t->samples || t->samples > SAMPLES_MAX || !t->every)
		return false;
	if (t->bytes != PAGE && t->bytes != 64 << 10 && t->bytes != LARGE)
		return false;
	if (c->pages_only && (op > GET || t->bytes != PAGE))
		return false;
	if (!t->batch || t->batch > TMEM_BATCH_MAX || t->batch & (t->batch - 1) || t->batch > SPAN(t->bytes))
		return false;
	if (t->batch * (size_t)t->bytes > TMEM_DATA_MAX || (t->batch > 1 && op > FLUSH))
		return false;
	return op < READ ? !t->length : t->length && t->length <= t->bytes / 2;
}

/* Says samples and how it went; false if that turn cannot be. */
bool turn(struct channel *c, const char *name, const struct turn *t)
{
	uint64_t first = UINT64_MAX, last = 0;
	pthread_t threads[LANES];
	int failed = 0, status = 0;
	enum op op = 0;

	while (op < OPS && strcmp(name, names[op]))
		op++;
	if (op == OPS || !possible(c, op, t))
		return false;
	atomic_store(&go, false);
	atomic_store(&waiting, 0);
	for (uint32_t i = 0; i < t->lanes; i++) {
		jobs[i].channel = c;
		jobs[i].op = op;
		jobs[i].turn = t;
		jobs[i].shift = 0;
		jobs[i].lane = &lanes[i];
		jobs[i].failed = jobs[i].status = 0;
		if (pthread_create(&threads[i], NULL, work, &jobs[i]))
			die("threads");
	}
	while ((uint32_t)atomic_load(&waiting) < t->lanes)
		sched_yield();
	atomic_store(&go, true);
	for (uint32_t i = 0; i < t->lanes; i++)
		pthread_join(threads[i], NULL);
	for (uint32_t i = 0; i < t->lanes; i++) {
		if (op != FLUSH)
			verify(&jobs[i]);
		tell(&jobs[i], t->samples);
		first = jobs[i].began < first ? jobs[i].began : first;
		last = jobs[i].ended > last ? jobs[i].ended : last;
		failed += jobs[i].failed;
		status = jobs[i].status ? jobs[i].status : status;
	}
	say("done %llu %d %d\n", (unsigned long long)(last - first), failed, status);
	return true;
}
