/* SPDX-License-Identifier: Apache-2.0 */
/* What the workloads share: options, memory, contents, phases. main.c says how they are used. */
#ifndef WORK_H
#define WORK_H

#include "base.h"

/* main.c has the defaults and the meaning. */
struct options {
	long mib, seed, theta, percent, samples, seconds, count, rewrite, check, value, jobs, parallel, object_kib, sources;
	const char *dir;
};
extern struct options opt;

/* ---- memory ------------------------------------------------------------------------------------------------------ */

void *anonymous(size_t bytes);	/* may be swapped, page by page */
void *locked(size_t bytes);	/* may not; children share it */

/* ---- contents ---------------------------------------------------------------------------------------------------- */

struct rng { uint64_t x; };
struct rng rng_from(uint64_t seed);
uint64_t rng_next(struct rng *rng);

struct zipf { uint64_t n, mask; double theta, zetan, alpha, eta, second; };
struct zipf zipf_over(uint64_t n, long theta_percent);
uint64_t zipf_next(const struct zipf *zipf, struct rng *rng);

/* Contents that depend on seed, key and version, opt.percent of them compressible; at least two words. */
void make_words(uint64_t *to, size_t words, uint64_t key, uint64_t version);
/* The first word that is not as made; `words` if all are. */
size_t wrong_word(const uint64_t *found, size_t words, uint64_t key, uint64_t version);
/* Counts what did not come back as it was written, and tells of the first few. */
void report_bad(const char *what, uint64_t key, uint64_t version, uint64_t found, uint64_t wanted);
uint64_t bad_total(void);
/* True if all words are as made, else it is reported. */
int verify(const uint64_t *found, size_t words, uint64_t key, uint64_t version);

/* ---- latency samples: opt.samples of a series, in locked memory -------------------------------------------------- */

void series_init(struct series *series);
/* Touches a word and takes the time; the series is `hit` or `fault`. */
void touch(volatile uint64_t *word, int write_it, struct series *hit, struct series *fault);

/* ---- phases ------------------------------------------------------------------------------------------------------ */

void announce(const char *kind, const char *unit, uint64_t items);
void phase_start(const char *name, uint64_t planned);
void phase_step(uint64_t steps);	/* tells of progress now and then */
int phase_over(void);			/* opt.seconds have passed */

struct named_series { const char *name; const struct series *series; };
struct named_count { const char *name; uint64_t value; };
void phase_end(const struct named_count *counts, int n_counts, const struct named_series *series, int n_series);

/* ---- the workloads ----------------------------------------------------------------------------------------------- */

void run_zipf(void);
void run_build(void);
void run_redis(void);

#endif
