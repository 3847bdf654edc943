// SPDX-License-Identifier: Apache-2.0
/*
 * Memory hog: writes a private anonymous area larger than the guest's memory, then reads it back and proves that every
 * page is the one it wrote.
 *
 *   hog KEY=VALUE...
 *     mib=N                       size of the area (required)
 *     pattern=synthetic:PERCENT   PERCENT of each page compresses away (default synthetic:50)
 *     pattern=same | zero         one repeated word that depends on the page | zeroes (a mix-up cannot be seen)
 *     pattern=corpus:PATH         page i is page i % n of PATH, a file or block device of 4096-byte pages
 *     seed=N                      makes the pages of two hogs differ (default 1)
 *     passes=N                    random passes, each of pages/2 accesses (default 1)
 *     rewrite=PERCENT             share of random accesses that also write a new generation (default 10)
 *     recheck=0|1                 a last sequential pass that sees every rewritten page (default 0)
 *     verify=0|1                  compare contents; 0 only where the device keeps nothing (default 1)
 *     samples=N                   size of the latency reservoir of each phase (default 8192, at most 65536)
 *
 * Every page carries index, generation and seed in its first 16 bytes (except same and zero), so a page that comes back
 * in another's place, an old one, or one of another hog is found. What is timed is the first access to a page (the
 * fault, when there is one), not the work of making or comparing its content.
 *
 * Output: JSON lines. "samples" is base64 of little-endian u32: bit 31 says that the access was a major fault, the
 * others are nanoseconds (saturating), the clock's own cost included; that cost is in the "start" line.
 * Exit status: 0 no bad page, 1 bad pages, 2 wrong use or no memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/fs.h>

#include "../work/base.h"

enum { CHUNK = 32, MAX_REPORTED = 8 };
enum pattern { SYNTHETIC, SAME, ZERO, CORPUS };

static struct {
	long mib, passes, rewrite, recheck, verify, samples, percent;
	uint64_t seed;
	enum pattern pattern;
	const char *corpus_path;
} opt = { .passes = 1, .rewrite = 10, .verify = 1, .samples = 8192, .percent = 50, .seed = 1 };

static uint64_t *area;		/* the only memory that may be swapped */
static uint64_t pages;
static uint8_t *generation;	/* of each page; locked in memory */
static const uint64_t *corpus;
static uint64_t corpus_pages;
static uint64_t scratch[WORDS] __attribute__((aligned(PAGE)));
static uint64_t bad_total;

/* --- content ----------------------------------------------------------------------------------------------------- */

static uint64_t stamp(uint64_t index, uint64_t gen)
{
	return index | gen << 48;
}

static void make_page(uint64_t *page, uint64_t index, uint64_t gen)
{
	uint64_t x = mix(opt.seed ^ mix(stamp(index, gen))) | 1, filler = x;
	const uint64_t *source;
	int random_words;

	switch (opt.pattern) {
	case SYNTHETIC:
		random_words = (int)((CHUNK * (100 - opt.percent) + 50) / 100);
		for (int i = 0; i < WORDS; i++) {
			if (i % CHUNK >= random_words) {
				page[i] = filler;
				continue;
			}
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			page[i] = x;
		}
		break;
	case SAME:
		for (int i = 0; i < WORDS; i++)
			page[i] = filler;
		return;
	case ZERO:
		memset(page, 0, PAGE);
		return;
	case CORPUS:
		/* a prime step: another generation is another corpus page */
		source = corpus + (index + gen * 7919) % corpus_pages * WORDS;
		for (int i = 0; i < WORDS; i++)
			page[i] = source[i];
		break;
	}
	page[0] = stamp(index, gen);
	page[1] = opt.seed;
}

static void check_page(const uint64_t *page, uint64_t index, uint64_t *bad)
{
	make_page(scratch, index, generation[index]);
	for (int i = 0; i < WORDS; i++) {
		if (page[i] == scratch[i])
			continue;
		(*bad)++;
		if (bad_total++ < MAX_REPORTED) {
			emit("{\"event\":\"bad\",\"index\":%llu,\"generation\":%u,\"word\":%d,\"found\":[\"%016llx\","
			     "\"%016llx\",\"%016llx\"],\"expected\":[\"%016llx\",\"%016llx\",\"%016llx\"]}",
			     (unsigned long long)index, generation[index], i, (unsigned long long)page[0],
			     (unsigned long long)page[1], (unsigned long long)page[i], (unsigned long long)scratch[0],
			     (unsigned long long)scratch[1], (unsigned long long)scratch[i]);
			flush_line();
		}
		return;
	}
}

/* --- phases ------------------------------------------------------------------------------------------------------ */

static uint32_t samples[MAX_SAMPLES];

static struct {
	const char *name;
	uint64_t planned, done, bad, rewrites, started, told;
	uint64_t before[COUNTERS];
	struct series series;
} phase;

static void phase_start(const char *name, uint64_t planned)
{
	phase.name = name;
	phase.planned = planned;
	phase.done = phase.bad = phase.rewrites = 0;
	phase.series = (struct series){ .lcg = mix(opt.seed), .size = (uint64_t)opt.samples, .sample = samples };
	read_counters(phase.before);
	phase.started = phase.told = now_ns();
}

/* Times the first load or store of a page; returns the time of its end. */
static uint64_t touch(uint64_t *page, int write_it)
{
	volatile uint64_t *word = page;
	long major = major_faults();
	uint64_t t0 = now_ns();
	if (write_it)
		*word = 0;
	else
		(void)*word;
	uint64_t t1 = now_ns();
	take_sample(&phase.series, t1 - t0, major_faults() != major);
	return t1;
}

static void step(uint64_t now)
{
	phase.done++;
	if (now - phase.told < 500000000u)
		return;
	phase.told = now;
	emit("{\"event\":\"progress\",\"phase\":\"%s\",\"done\":%llu,\"planned\":%llu,\"bad\":%llu}", phase.name,
	     (unsigned long long)phase.done, (unsigned long long)phase.planned, (unsigned long long)phase.bad);
	flush_line();
}

static void phase_end(void)
{
	uint64_t elapsed = now_ns() - phase.started;
	emit("{\"event\":\"phase\",\"phase\":\"%s\",\"pages\":%llu,\"nanoseconds\":%llu,\"bad\":%llu,\"major\":%llu,"
	     "\"rewrites\":%llu,\"accesses\":%llu,\"vmstat\":", phase.name, (unsigned long long)phase.done,
	     (unsigned long long)elapsed, (unsigned long long)phase.bad, (unsigned long long)phase.series.faults,
	     (unsigned long long)phase.rewrites, (unsigned long long)phase.series.seen);
	emit_counters_since(phase.before);
	emit(",\"samples\":\"");
	emit_base64(samples, series_kept(&phase.series) * sizeof(samples[0]));
	emit("\"}");
	flush_line();
}

static void write_page(uint64_t index)
{
	uint64_t *page = area + index * WORDS;
	for (int i = 0; i < WORDS; i++)
		page[i] = scratch[i];
}

static void write_phase(void)
{
	phase_start("write", pages);
	for (uint64_t i = 0; i < pages; i++) {
		make_page(scratch, i, 0);
		uint64_t now = touch(area + i * WORDS, 1);
		write_page(i);
		step(now);
	}
	phase_end();
}

static void sequential_phase(const char *name)
{
	phase_start(name, pages);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t now = touch(area + i * WORDS, 0);
		if (opt.verify)
			check_page(area + i * WORDS, i, &phase.bad);
		step(now);
	}
	phase_end();
}

static void random_phase(long pass)
{
	uint64_t x = mix(opt.seed + 1000003u * (uint64_t)pass) | 1;
	phase_start("random", pages / 2);
	for (uint64_t n = 0; n < pages / 2; n++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		uint64_t i = (x >> 8) % pages;
		uint64_t now = touch(area + i * WORDS, 0);
		if (opt.verify)
			check_page(area + i * WORDS, i, &phase.bad);
		if (mix(x) % 100 < (uint64_t)opt.rewrite) {
			make_page(scratch, i, ++generation[i]);
			write_page(i);
			phase.rewrites++;
		}
		step(now);
	}
	phase_end();
}

/* --- start ------------------------------------------------------------------------------------------------------- */

static void *locked(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || mlock(p, bytes))
		die("no memory for the generations", strerror(errno));
	return p;
}

/* Shared and locked: two hogs on one corpus hold it once, and no read of it disturbs the timing. */
static void map_corpus(void)
{
	uint64_t bytes = 0;
	struct stat st;
	int fd = open(opt.corpus_path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		die("cannot open the corpus", strerror(errno));
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(fd, BLKGETSIZE64, &bytes))
			die("cannot size the corpus", strerror(errno));
	} else {
		bytes = (uint64_t)st.st_size;
	}
	corpus_pages = bytes / PAGE;
	if (!corpus_pages)
		die("the corpus", "holds no page of 4096 bytes");
	void *p = mmap(NULL, corpus_pages * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED || mlock(p, corpus_pages * PAGE))
		die("cannot keep the corpus in memory", strerror(errno));
	corpus = p;
	close(fd);
}

static void parse(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		if (!value)
			die("argument without =", argv[i]);
		*value++ = 0;
		const char *key = argv[i];
		if (!strcmp(key, "mib"))
			opt.mib = number(key, value, 1, 1 << 20);
		else if (!strcmp(key, "seed"))
			opt.seed = (uint64_t)number(key, value, 0, __LONG_MAX__);
		else if (!strcmp(key, "passes"))
			opt.passes = number(key, value, 0, 1000);
		else if (!strcmp(key, "rewrite"))
			opt.rewrite = number(key, value, 0, 100);
		else if (!strcmp(key, "recheck"))
			opt.recheck = number(key, value, 0, 1);
		else if (!strcmp(key, "verify"))
			opt.verify = number(key, value, 0, 1);
		else if (!strcmp(key, "samples"))
			opt.samples = number(key, value, 1, MAX_SAMPLES);
		else if (strcmp(key, "pattern"))
			die("unknown argument", key);
		else if (!strcmp(value, "same"))
			opt.pattern = SAME;
		else if (!strcmp(value, "zero"))
			opt.pattern = ZERO;
		else if (!strncmp(value, "synthetic:", 10))
			opt.percent = number(key, value + 10, 0, 100);
		else if (!strncmp(value, "corpus:", 7)) {
			opt.pattern = CORPUS;
			opt.corpus_path = value + 7;
		} else
			die("unknown pattern", value);
	}
	if (!opt.mib)
		die("mib", "is required");
}

static void announce(void)
{
	emit("{\"event\":\"start\",\"pages\":%llu,\"corpus_pages\":%llu,\"clock_ns\":", (unsigned long long)pages,
	     (unsigned long long)corpus_pages);
	emit_clock_cost();
	emit("}");
	flush_line();
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	pages = (uint64_t)opt.mib * (1024 * 1024 / PAGE);
	/* Only the area may be swapped: this program must not wait for its own text, stack or sample buffers. */
	if (mlockall(MCL_CURRENT))
		die("mlockall", strerror(errno));
	generation = locked((pages + PAGE - 1) / PAGE * PAGE);
	if (opt.pattern == CORPUS)
		map_corpus();
	area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		die("cannot map the area", strerror(errno));
	/* One fault, one page: that is the unit of every figure. */
	madvise(area, pages * PAGE, MADV_NOHUGEPAGE);
	announce();
	write_phase();
	sequential_phase("sequential");
	for (long pass = 0; pass < opt.passes; pass++)
		random_phase(pass);
	if (opt.recheck)
		sequential_phase("recheck");
	emit("{\"event\":\"done\",\"bad\":%llu,\"verified\":%s}", (unsigned long long)bad_total, opt.verify ? "true" : "false");
	flush_line();
	return bad_total != 0;
}
