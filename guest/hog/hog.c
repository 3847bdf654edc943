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
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

enum { PAGE = 4096, WORDS = PAGE / 8, CHUNK = 32, MAX_SAMPLES = 65536, MAX_REPORTED = 8 };
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

/* --- output ------------------------------------------------------------------------------------------------------ */

static char out[MAX_SAMPLES * 4 / 3 * 4 + 8192];
static size_t out_len;

static void emit(const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(out + out_len, sizeof(out) - out_len, format, ap);
	va_end(ap);
	if (n > 0)
		out_len += (size_t)n;
}

static void flush_line(void)
{
	emit("\n");
	for (size_t done = 0; done < out_len;) {
		ssize_t n = write(STDOUT_FILENO, out + done, out_len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			exit(2);	/* nobody is listening */
		done += (size_t)n;
	}
	out_len = 0;
}

static void emit_base64(const void *data, size_t len)
{
	static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const uint8_t *p = data;
	for (size_t i = 0; i < len; i += 3) {
		uint32_t v = (uint32_t)p[i] << 16;
		if (i + 1 < len)
			v |= (uint32_t)p[i + 1] << 8;
		if (i + 2 < len)
			v |= p[i + 2];
		out[out_len++] = digit[v >> 18];
		out[out_len++] = digit[v >> 12 & 63];
		out[out_len++] = i + 1 < len ? digit[v >> 6 & 63] : '=';
		out[out_len++] = i + 2 < len ? digit[v & 63] : '=';
	}
}

static void die(const char *what, const char *why)
{
	emit("{\"event\":\"error\",\"error\":\"%s: %s\"}", what, why);
	flush_line();
	exit(2);
}

/* --- time and counters ------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static long major_faults(void)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return r.ru_majflt;
}

static const char *const counter_name[] = {
	"pswpin", "pswpout", "pgfault", "pgmajfault", "swap_ra", "swap_ra_hit", "pgscan_direct", "pgscan_kswapd",
	"pgsteal_direct", "pgsteal_kswapd", "allocstall_normal", "allocstall_dma32", "allocstall_movable", "oom_kill",
};
enum { COUNTERS = sizeof(counter_name) / sizeof(counter_name[0]) };

static void read_counters(uint64_t value[COUNTERS])
{
	static char text[32768];
	memset(value, 0, COUNTERS * sizeof(value[0]));
	int fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	size_t len = 0;
	for (ssize_t n; len < sizeof(text) - 1 && (n = read(fd, text + len, sizeof(text) - 1 - len)) > 0;)
		len += (size_t)n;
	close(fd);
	text[len] = 0;
	for (char *line = text; *line;) {
		char *end = strchr(line, '\n'), *space = strchr(line, ' ');
		if (!end || !space || space > end)
			break;
		*space = 0;
		for (int i = 0; i < COUNTERS; i++)
			if (!strcmp(line, counter_name[i]))
				value[i] = strtoull(space + 1, NULL, 10);
		line = end + 1;
	}
}

/* --- content ----------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)	/* splitmix64's finaliser */
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

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

static struct {
	const char *name;
	uint64_t planned, done, bad, major, rewrites, started, told, lcg;
	uint64_t before[COUNTERS];
	uint32_t sample[MAX_SAMPLES];
	uint64_t seen;
} phase;

static void phase_start(const char *name, uint64_t planned)
{
	phase.name = name;
	phase.planned = planned;
	phase.done = phase.bad = phase.major = phase.rewrites = phase.seen = 0;
	phase.lcg = mix(opt.seed);
	read_counters(phase.before);
	phase.started = phase.told = now_ns();
}

/* Vitter's algorithm R: each access has the same chance to be in the reservoir. */
static void take_sample(uint64_t ns, int is_major)
{
	uint32_t value = ns > 0x7fffffffu ? 0x7fffffffu : (uint32_t)ns;
	uint64_t slot = phase.seen++;
	if (is_major) {
		value |= 0x80000000u;
		phase.major++;
	}
	if (slot >= (uint64_t)opt.samples) {
		phase.lcg = phase.lcg * 6364136223846793005u + 1442695040888963407u;
		slot = (phase.lcg >> 11) % phase.seen;
	}
	if (slot < (uint64_t)opt.samples)
		phase.sample[slot] = value;
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
	take_sample(t1 - t0, major_faults() != major);
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
	uint64_t elapsed = now_ns() - phase.started, after[COUNTERS];
	size_t kept = phase.seen < (uint64_t)opt.samples ? phase.seen : (size_t)opt.samples;
	read_counters(after);
	emit("{\"event\":\"phase\",\"phase\":\"%s\",\"pages\":%llu,\"nanoseconds\":%llu,\"bad\":%llu,\"major\":%llu,"
	     "\"rewrites\":%llu,\"accesses\":%llu,\"vmstat\":{", phase.name, (unsigned long long)phase.done,
	     (unsigned long long)elapsed, (unsigned long long)phase.bad, (unsigned long long)phase.major,
	     (unsigned long long)phase.rewrites, (unsigned long long)phase.seen);
	for (int i = 0; i < COUNTERS; i++)
		emit("%s\"%s\":%llu", i ? "," : "", counter_name[i], (unsigned long long)(after[i] - phase.before[i]));
	emit("},\"samples\":\"");
	emit_base64(phase.sample, kept * sizeof(phase.sample[0]));
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

static long number(const char *key, const char *text, long low, long high)
{
	char *end;
	errno = 0;
	long v = strtol(text, &end, 10);
	if (errno || end == text || *end || v < low || v > high)
		die(key, "not a number in its range");
	return v;
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
	enum { TRIALS = 1000 };
	uint32_t cost[TRIALS];
	for (int i = 0; i < TRIALS; i++) {
		uint64_t t0 = now_ns();
		cost[i] = (uint32_t)(now_ns() - t0);
	}
	qsort(cost, TRIALS, sizeof(cost[0]), compare_u32);
	emit("{\"event\":\"start\",\"pages\":%llu,\"corpus_pages\":%llu,\"clock_ns\":{\"min\":%u,\"median\":%u,\"p99\":%u}}",
	     (unsigned long long)pages, (unsigned long long)corpus_pages, cost[0], cost[TRIALS / 2], cost[TRIALS * 99 / 100]);
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
