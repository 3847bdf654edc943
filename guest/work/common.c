// SPDX-License-Identifier: Apache-2.0
/* Memory and contents. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "work.h"

enum { MAX_REPORTED = 8, CHUNK = 32 };

void *anonymous(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		die("cannot map memory", strerror(errno));
	/* One fault, one page: that is the unit of every figure. */
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

void *locked(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || mlock(p, bytes))
		die("no memory that stays", strerror(errno));
	return p;
}

struct rng rng_from(uint64_t seed)
{
	return (struct rng){ mix(seed) | 1 };
}

uint64_t rng_next(struct rng *rng)	/* Marsaglia's xorshift64, its weak low bits mixed away */
{
	rng->x ^= rng->x << 13;
	rng->x ^= rng->x >> 7;
	rng->x ^= rng->x << 17;
	return mix(rng->x);
}

/* --- zipf: Gray et al., "Quickly generating billion-record synthetic databases" (1994), as YCSB has it ------------ */

static double zeta(uint64_t n, double theta)
{
	enum { EXACT = 10000 };
	double sum = 0;
	for (uint64_t i = 1; i <= n && i <= EXACT; i++)
		sum += pow((double)i, -theta);
	if (n > EXACT)	/* the rest by Euler and Maclaurin, whose next term is below 1e-6 */
		sum += (pow((double)n, 1 - theta) - pow(EXACT, 1 - theta)) / (1 - theta) +
		       (pow((double)n, -theta) - pow(EXACT, -theta)) / 2;
	return sum;
}

struct zipf zipf_over(uint64_t n, long theta_percent)
{
	struct zipf z = { .n = n, .theta = (double)theta_percent / 100 };
	while (z.mask < n - 1)
		z.mask = z.mask << 1 | 1;
	z.zetan = zeta(n, z.theta);
	z.alpha = 1 / (1 - z.theta);
	z.second = 1 + pow(0.5, z.theta);
	z.eta = n > 2 ? (1 - pow(2.0 / (double)n, 1 - z.theta)) / (1 - z.second / z.zetan) : 1;
	return z;
}

/* Ranks spread over the items: what is hot does not lie together. One to one on 0..mask, walked until it is below n. */
static uint64_t spread(const struct zipf *z, uint64_t rank)
{
	do {
		rank = (rank * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u) & z->mask;
		rank ^= rank >> 7;
		rank = rank * 0xd1b54a32d192ed03u & z->mask;
		rank ^= rank >> 5;
	} while (rank >= z->n);
	return rank;
}

uint64_t zipf_next(const struct zipf *z, struct rng *rng)
{
	double u = (double)(rng_next(rng) >> 11) * 0x1p-53, at = u * z->zetan;
	uint64_t rank;
	if (at < 1)
		rank = 0;
	else if (at < z->second)
		rank = 1;
	else
		rank = (uint64_t)((double)z->n * pow(z->eta * u - z->eta + 1, z->alpha));
	return spread(z, rank < z->n ? rank : z->n - 1);
}

/* --- contents ----------------------------------------------------------------------------------------------------- */

/* Word i of an object, from the state that goes from word to word. The first two say what it is. */
static inline uint64_t word(size_t i, uint64_t key, uint64_t version, uint64_t first, uint64_t *x, size_t random_words)
{
	if (i == 0)
		return key;
	if (i == 1)
		return version << 32 ^ (uint64_t)opt.seed;
	if (i % CHUNK >= random_words)
		return first;
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static uint64_t start_of(uint64_t key, uint64_t version)
{
	return mix((uint64_t)opt.seed ^ mix(key ^ mix(version))) | 1;
}

void make_words(uint64_t *to, size_t words, uint64_t key, uint64_t version)
{
	uint64_t first = start_of(key, version), x = first;
	size_t random_words = (size_t)(CHUNK * (100 - opt.percent) + 50) / 100;
	for (size_t i = 0; i < words; i++)
		to[i] = word(i, key, version, first, &x, random_words);
}

size_t wrong_word(const uint64_t *found, size_t words, uint64_t key, uint64_t version)
{
	uint64_t first = start_of(key, version), x = first;
	size_t random_words = (size_t)(CHUNK * (100 - opt.percent) + 50) / 100;
	for (size_t i = 0; i < words; i++)
		if (found[i] != word(i, key, version, first, &x, random_words))
			return i;
	return words;
}

static uint64_t *bad;	/* of this process and its children */

static uint64_t *bad_counter(void)
{
	if (!bad)
		bad = locked(PAGE);
	return bad;
}

uint64_t bad_total(void)
{
	return __atomic_load_n(bad_counter(), __ATOMIC_RELAXED);
}

void report_bad(const char *what, uint64_t key, uint64_t version, uint64_t found, uint64_t wanted)
{
	if (__atomic_fetch_add(bad_counter(), 1, __ATOMIC_RELAXED) >= MAX_REPORTED)
		return;
	emit("{\"event\":\"bad\",\"what\":\"%s\",\"key\":%llu,\"version\":%llu,\"found\":\"%016llx\","
	     "\"expected\":\"%016llx\"}", what, (unsigned long long)key, (unsigned long long)version,
	     (unsigned long long)found, (unsigned long long)wanted);
	flush_line();
}

int verify(const uint64_t *found, size_t words, uint64_t key, uint64_t version)
{
	size_t wrong = wrong_word(found, words, key, version);
	if (wrong == words)
		return 1;
	uint64_t seen = found[wrong], made[WORDS];
	make_words(made, wrong < WORDS ? wrong + 1 : WORDS, key, version);
	report_bad("contents", key, version, seen, wrong < WORDS ? made[wrong] : 0);
	return 0;
}
