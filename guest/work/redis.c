// SPDX-License-Identifier: Apache-2.0
/*
 * A key-value store in anonymous memory: a hash table whose chains lead to values in blocks of size classes. Keys are
 * drawn by zipf, opt.rewrite percent of the operations are SETs, the others GETs. A SET takes a new block and frees the
 * old one, as such servers do. All of it may be swapped: buckets, chains and values.
 *
 * What is timed is an operation with its copy of the value, not the making or comparing of contents. A chain that leads
 * elsewhere than it was built to lead is found, counted as bad and not followed.
 */
#include "work.h"

enum { UNIT = 64, CLASSES = 2048, CHAIN_MAX = 256 };

/* A block's first 32 bytes. Blocks are named by their number of UNITs from the start; 0 is none. */
struct block {
	uint64_t key;		/* of a free block: FREE */
	uint64_t version;
	uint32_t next;
	uint32_t units;
	uint64_t words;		/* in the value */
	uint64_t value[];
};
#define FREE UINT64_MAX

static struct {
	uint64_t keys, buckets, units, used;
	uint32_t *bucket;	/* in what may be swapped */
	uint8_t *blocks;
	uint16_t *version;	/* what each key should have; locked in memory */
	uint32_t free[CLASSES];	/* heads of the lists of free blocks */
	uint64_t value[UNIT * CLASSES / 8];	/* what was read, or is to be written */
} table;

static struct block *block_at(uint32_t number)
{
	return (struct block *)(table.blocks + (uint64_t)number * UNIT);
}

static uint64_t words_of(uint64_t key)	/* from 2 to twice the mean */
{
	return 2 + mix(key ^ 0x5bd1e995) % (uint64_t)(opt.value * 2 / 8);
}

static uint32_t units_for(uint64_t words)
{
	return (uint32_t)((sizeof(struct block) + words * 8 + UNIT - 1) / UNIT);
}

static uint32_t *bucket_of(uint64_t key)
{
	return table.bucket + (mix(key) & (table.buckets - 1));
}

/* False: this cannot be the number of a block in use. */
static int possible(uint32_t number, uint64_t key)
{
	if (number && number < table.used)
		return 1;
	report_bad("chain", key, table.version[key], number, 0);
	return 0;
}

/* Where the number of the key's block stands; NULL: it is lost, and that was reported. */
static uint32_t *find(uint64_t key)
{
	uint32_t *link = bucket_of(key);
	for (int steps = 0; steps < CHAIN_MAX && possible(*link, key); steps++) {
		struct block *block = block_at(*link);
		if (block->key == key)
			return link;
		if (!block->next) {
			report_bad("key", key, table.version[key], block->key, key);
			return 0;
		}
		link = &block->next;
	}
	/* longer than any chain, or it led elsewhere, which possible() told */
	if (*link && *link < table.used)
		report_bad("chain", key, table.version[key], *link, 0);
	return 0;
}

/* 0: so many blocks were lost that no space is left. */
static uint32_t allocate(uint64_t key, uint32_t units)
{
	uint32_t number = table.free[units];
	if (number) {
		struct block *block = block_at(number);
		if (block->key == FREE && block->units == units && block->next < table.used) {
			table.free[units] = block->next;
			return number;
		}
		report_bad("free list", key, 0, block->key, FREE);
		table.free[units] = 0;
	}
	if (table.used + units > table.units) {
		report_bad("table", key, table.version[key], table.used, table.units);
		return 0;
	}
	number = (uint32_t)table.used;
	table.used += units;
	return number;
}

static void release(uint32_t number)
{
	struct block *block = block_at(number);
	uint32_t units = block->units;
	if (!units || units >= CLASSES)
		return;		/* not what was written there, which its key's next GET would have told */
	block->key = FREE;
	block->next = table.free[units];
	table.free[units] = number;
}

static void write_block(uint32_t number, uint64_t key, uint32_t next, uint32_t units, uint64_t words)
{
	struct block *block = block_at(number);
	block->key = key;
	block->version = table.version[key];
	block->next = next;
	block->units = units;
	block->words = words;
	for (uint64_t i = 0; i < words; i++)
		block->value[i] = table.value[i];
}

/* 0: the key is lost. */
static int get(uint64_t key, uint64_t words)
{
	uint32_t *link = find(key);
	if (!link)
		return 0;
	struct block *block = block_at(*link);
	if (block->words != words || block->version != table.version[key]) {
		report_bad("block", key, table.version[key], block->version, table.version[key]);
		return 0;
	}
	for (uint64_t i = 0; i < words; i++)
		table.value[i] = block->value[i];
	return 1;
}

static void set(uint64_t key, uint64_t words)
{
	uint32_t units = units_for(words), *link = find(key);
	uint32_t old = link ? *link : 0, next = old ? block_at(old)->next : 0;
	uint32_t number = allocate(key, units);
	if (!number)
		return;
	write_block(number, key, next, units, words);
	if (!link) {	/* a new key, or one that was lost: it stands first */
		link = bucket_of(key);
		block_at(number)->next = *link < table.used ? *link : 0;
	}
	*link = number;
	if (old)
		release(old);
}

/* Without looking for it first: it is not there. */
static void insert(uint64_t key, uint64_t words)
{
	uint32_t units = units_for(words), number = allocate(key, units), *link = bucket_of(key);
	write_block(number, key, *link, units, words);
	*link = number;
}

static void lay_out(void)
{
	uint64_t limit = (uint64_t)opt.mib << 20, bytes = 0;
	while (bytes < limit) {
		bytes += (uint64_t)units_for(words_of(table.keys)) * UNIT + sizeof(uint32_t);
		table.keys++;
	}
	table.buckets = 1;
	while (table.buckets < table.keys)
		table.buckets *= 2;
	/* A SET takes a block before it frees one. The rest is never touched, unless blocks get lost. */
	table.units = 4 * (bytes / UNIT) + CLASSES * 2;
	table.used = 1;
	table.bucket = anonymous(table.buckets * sizeof(table.bucket[0]));
	table.blocks = anonymous(table.units * UNIT);
	table.version = locked(table.keys * sizeof(table.version[0]));
}

static void load(void)
{
	phase_start("load", table.keys);
	for (uint64_t key = 0; key < table.keys; key++) {
		uint64_t words = words_of(key);
		make_words(table.value, words, key, 0);
		insert(key, words);
		phase_step(1);
	}
	phase_end((struct named_count[]){ { "keys", table.keys }, { "bytes", table.used * UNIT } }, 2, 0, 0);
}

static void serve(void)
{
	uint64_t operations = opt.count ? (uint64_t)opt.count : table.keys;
	struct series gets = { 0 }, sets = { 0 };
	struct zipf zipf = zipf_over(table.keys, opt.theta);
	struct rng rng = rng_from((uint64_t)opt.seed);

	series_init(&gets);
	series_init(&sets);
	phase_start("serve", operations);
	for (uint64_t n = 0; n < operations && !phase_over(); n++) {
		uint64_t key = zipf_next(&zipf, &rng), words = words_of(key);
		int is_set = rng_next(&rng) % 100 < (uint64_t)opt.rewrite, found = 0;
		if (is_set)
			make_words(table.value, words, key, ++table.version[key]);
		long before = major_faults();
		uint64_t t0 = now_ns();
		if (is_set)
			set(key, words);
		else
			found = get(key, words);
		uint64_t t1 = now_ns();
		take_sample(is_set ? &sets : &gets, t1 - t0, major_faults() != before);
		if (found)
			verify(table.value, words, key, table.version[key]);
		phase_step(1);
	}
	phase_end((struct named_count[]){ { "gets", gets.seen }, { "sets", sets.seen },
					  { "faults", gets.faults + sets.faults } }, 3,
		  (struct named_series[]){ { "get", &gets }, { "set", &sets } }, 2);
}

/* Every key once: also those that nobody asked for came through. */
static void check(void)
{
	phase_start("check", table.keys);
	for (uint64_t key = 0; key < table.keys; key++) {
		uint64_t words = words_of(key);
		if (get(key, words))
			verify(table.value, words, key, table.version[key]);
		phase_step(1);
	}
	phase_end((struct named_count[]){ { "keys", table.keys } }, 1, 0, 0);
}

void run_redis(void)
{
	lay_out();
	announce("redis", "keys", table.keys);
	load();
	serve();
	if (opt.check)
		check();
}
