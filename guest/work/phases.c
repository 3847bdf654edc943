// SPDX-License-Identifier: Apache-2.0
/* Latency samples, progress, and what is told at the end of a phase. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "work.h"

/* Samples in one line: every line stays below 64 KiB, the most that a control frame of a port may have. */
enum { LINE_SAMPLES = 8192 };

static const char *const counter_name[] = {
	"pswpin", "pswpout", "pgfault", "pgmajfault", "pgscan_direct", "pgscan_kswapd", "allocstall_normal",
	"allocstall_dma32", "allocstall_movable", "oom_kill",
};
enum { COUNTERS = sizeof(counter_name) / sizeof(counter_name[0]) };

static struct {
	const char *name;
	uint64_t planned, done, bad_before, started, told;
	uint64_t before[COUNTERS];
} phase;

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

void series_init(struct series *series)
{
	uint32_t *sample = series->sample ? series->sample : locked((size_t)opt.samples * sizeof(*sample));
	*series = (struct series){ .lcg = mix((uint64_t)opt.seed), .sample = sample };
}

/* Vitter's algorithm R: each access has the same chance to be in the reservoir. */
void take_sample(struct series *series, uint64_t ns, int fault)
{
	uint32_t value = ns > 0x7fffffffu ? 0x7fffffffu : (uint32_t)ns;
	uint64_t slot = series->seen++;
	series->total_ns += ns;
	if (fault) {
		value |= 0x80000000u;
		series->faults++;
	}
	if (slot >= (uint64_t)opt.samples) {
		series->lcg = series->lcg * 6364136223846793005u + 1442695040888963407u;
		slot = (series->lcg >> 11) % series->seen;
	}
	if (slot < (uint64_t)opt.samples)
		series->sample[slot] = value;
}

void touch(volatile uint64_t *word, int write_it, struct series *hit, struct series *fault)
{
	long before = major_faults();
	uint64_t t0 = now_ns();
	if (write_it)
		*word = 0;
	else
		(void)*word;
	uint64_t t1 = now_ns();
	int major = major_faults() != before;
	take_sample(major ? fault : hit, t1 - t0, major);
}

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

void announce(const char *kind, const char *unit, uint64_t items)
{
	enum { TRIALS = 1000 };
	uint32_t cost[TRIALS];
	for (int i = 0; i < TRIALS; i++) {
		uint64_t t0 = now_ns();
		cost[i] = (uint32_t)(now_ns() - t0);
	}
	qsort(cost, TRIALS, sizeof(cost[0]), compare_u32);
	emit("{\"event\":\"start\",\"kind\":\"%s\",\"unit\":\"%s\",\"items\":%llu,\"seed\":%ld,"
	     "\"clock_ns\":{\"min\":%u,\"median\":%u,\"p99\":%u}}", kind, unit, (unsigned long long)items, opt.seed,
	     cost[0], cost[TRIALS / 2], cost[TRIALS * 99 / 100]);
	flush_line();
}

void phase_start(const char *name, uint64_t planned)
{
	phase.name = name;
	phase.planned = planned;
	phase.done = 0;
	phase.bad_before = bad_total();
	read_counters(phase.before);
	phase.started = phase.told = now_ns();
}

void phase_step(uint64_t steps)
{
	uint64_t now = now_ns();
	phase.done += steps;
	if (now - phase.told < 500000000u)
		return;
	phase.told = now;
	emit("{\"event\":\"progress\",\"phase\":\"%s\",\"done\":%llu,\"planned\":%llu,\"bad\":%llu}", phase.name,
	     (unsigned long long)phase.done, (unsigned long long)phase.planned,
	     (unsigned long long)(bad_total() - phase.bad_before));
	flush_line();
}

int phase_over(void)
{
	return opt.seconds && now_ns() - phase.started >= (uint64_t)opt.seconds * 1000000000u;
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
		emit("%c%c%c%c", digit[v >> 18], digit[v >> 12 & 63], i + 1 < len ? digit[v >> 6 & 63] : '=',
		     i + 2 < len ? digit[v & 63] : '=');
	}
}

static void emit_series(const char *name, const struct series *series)
{
	size_t kept = series->seen < (uint64_t)opt.samples ? series->seen : (size_t)opt.samples;
	for (size_t at = 0; at == 0 || at < kept; at += LINE_SAMPLES) {
		size_t n = kept - at < LINE_SAMPLES ? kept - at : LINE_SAMPLES;
		emit("{\"event\":\"samples\",\"phase\":\"%s\",\"series\":\"%s\",\"part\":%zu,\"seen\":%llu,"
		     "\"faults\":%llu,\"total_ns\":%llu,\"samples\":\"", phase.name, name, at / LINE_SAMPLES,
		     (unsigned long long)series->seen, (unsigned long long)series->faults,
		     (unsigned long long)series->total_ns);
		emit_base64(series->sample + at, n * sizeof(series->sample[0]));
		emit("\"}");
		flush_line();
	}
}

void phase_end(const struct named_count *counts, int n_counts, const struct named_series *series, int n_series)
{
	uint64_t elapsed = now_ns() - phase.started, after[COUNTERS];
	read_counters(after);
	emit("{\"event\":\"phase\",\"phase\":\"%s\",\"done\":%llu,\"nanoseconds\":%llu,\"bad\":%llu,\"counts\":{",
	     phase.name, (unsigned long long)phase.done, (unsigned long long)elapsed,
	     (unsigned long long)(bad_total() - phase.bad_before));
	for (int i = 0; i < n_counts; i++)
		emit("%s\"%s\":%llu", i ? "," : "", counts[i].name, (unsigned long long)counts[i].value);
	emit("},\"vmstat\":{");
	for (int i = 0; i < COUNTERS; i++)
		emit("%s\"%s\":%llu", i ? "," : "", counter_name[i], (unsigned long long)(after[i] - phase.before[i]));
	emit("}}");
	flush_line();
	for (int i = 0; i < n_series; i++)
		emit_series(series[i].name, series[i].series);
}
