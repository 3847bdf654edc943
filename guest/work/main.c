// SPDX-License-Identifier: Apache-2.0
/*
 * Workloads that need more memory than there is, and prove that every byte comes back.
 *
 *   work KIND KEY=VALUE...       KIND is zipf, build or redis; the head of its file says what it does
 *     mib=N                      size of the data (zipf, redis), of each job's working set on average (build); required
 *     count=N                    accesses (zipf), operations (redis); default: as many as there are pages or keys
 *     seconds=N                  end that phase after so long (default 0: no limit)
 *     rewrite=PERCENT            share of accesses that write anew (default 5), of operations that are SETs (10)
 *     check=0|1                  zipf, redis: read everything once at the end (default 1)
 *     theta=PERCENT              skew of the zipf distribution, 0 (none) to 99 (default 99)
 *     value=N                    redis: bytes of a value on average (default 512)
 *     jobs=N parallel=N          build: processes in all (default 32), at once (4)
 *     object_kib=N sources=N     build: size of a file (default 64); number of headers, and of sources (8)
 *     dir=PATH                   build: an empty folder for its files; required
 *     percent=PERCENT            of each page that compresses away (default 50)
 *     seed=N                     another seed, other contents and accesses; the same, the same (default 1)
 *     samples=N                  size of the latency reservoirs (default 8192, at most 65536)
 *
 * All contents depend on seed, key and version, and are compared when they are read: what comes back in another's
 * place, old, or changed counts as bad. Whatever knows what should be there is locked in memory; the data is not.
 *
 * Output: JSON lines: "start"; "progress", at the start of a phase and twice a second; for each phase "phase" and then
 * its series of latencies in lines "samples"; "bad", of the first few; "done" or "error". "samples" is base64 of
 * little-endian u32: bit 31 says that there was a major fault, the others are nanoseconds (saturating), the clock's own
 * cost included; that cost is in the "start" line. "seen" says how many a series was drawn from. A long series comes in
 * several lines, counted by "part"; part 0 again: a reservoir of another process.
 * Exit status: 0 nothing bad, 1 something bad, 2 wrong use, no memory, no space.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "work.h"

struct options opt = {
	.seed = 1, .theta = 99, .check = 1, .percent = 50, .samples = 8192, .value = 512, .jobs = 32, .parallel = 4,
	.object_kib = 64, .sources = 8,
};

static const struct {
	const char *name;
	void (*run)(void);
	long rewrite;
} kinds[] = { { "zipf", run_zipf, 5 }, { "build", run_build, 0 }, { "redis", run_redis, 10 } };

static const struct {
	const char *name;
	long *value, low, high;
} numbers[] = {
	{ "mib", &opt.mib, 1, 1 << 20 },
	{ "count", &opt.count, 1, 1L << 40 },
	{ "seconds", &opt.seconds, 0, 1000000 },
	{ "rewrite", &opt.rewrite, 0, 100 },
	{ "check", &opt.check, 0, 1 },
	{ "theta", &opt.theta, 0, 99 },
	{ "value", &opt.value, 16, 32768 },
	{ "jobs", &opt.jobs, 1, 100000 },
	{ "parallel", &opt.parallel, 1, 64 },
	{ "object_kib", &opt.object_kib, 4, 65536 },
	{ "sources", &opt.sources, 1, 1000 },
	{ "percent", &opt.percent, 0, 100 },
	{ "seed", &opt.seed, 0, __LONG_MAX__ },
	{ "samples", &opt.samples, 1, MAX_SAMPLES },
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]), NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };

static void set_number(const char *key, const char *text)
{
	for (int i = 0; i < NUMBERS; i++) {
		if (strcmp(key, numbers[i].name))
			continue;
		*numbers[i].value = number(key, text, numbers[i].low, numbers[i].high);
		return;
	}
	die("unknown argument", key);
}

static void parse(int argc, char **argv)
{
	for (int i = 2; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		if (!value)
			die("argument without =", argv[i]);
		*value++ = 0;
		if (strcmp(argv[i], "dir"))
			set_number(argv[i], value);
		else
			opt.dir = value;
	}
	if (!opt.mib)
		die("mib", "is required");
}

int main(int argc, char **argv)
{
	int kind = 0;
	while (kind < KINDS && (argc < 2 || strcmp(argv[1], kinds[kind].name)))
		kind++;
	if (kind == KINDS)
		die("the first argument", "must be zipf, build or redis");
	opt.rewrite = kinds[kind].rewrite;
	parse(argc, argv);
	/* Only the data may be swapped: this program must not wait for its own text, stack or sample buffers. */
	if (mlockall(MCL_CURRENT))
		die("mlockall", strerror(errno));
	kinds[kind].run();
	emit("{\"event\":\"done\",\"bad\":%llu}", (unsigned long long)bad_total());
	flush_line();
	return bad_total() != 0;
}
