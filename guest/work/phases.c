// SPDX-License-Identifier: Apache-2.0
/* Latency samples, progress, and what is told at the end of a phase. */

#include "work.h"

/* Samples in one line: every line stays below 64 KiB, the most that a control frame of a port may have. */
enum { LINE_SAMPLES = 8192 };

static struct {
	const char *name;
	uint64_t planned, done, bad_before, started, told;
	uint64_t before[COUNTERS];
} phase;

void series_init(struct series *series)
{
	uint32_t *sample = series->sample ? series->sample : locked((size_t)opt.samples * sizeof(*sample));
	*series = (struct series){ .lcg = mix((uint64_t)opt.seed), .size = (uint64_t)opt.samples, .sample = sample };
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

void announce(const char *kind, const char *unit, uint64_t items)
{
	emit("{\"event\":\"start\",\"kind\":\"%s\",\"unit\":\"%s\",\"items\":%llu,\"seed\":%ld,\"clock_ns\":", kind, unit,
	     (unsigned long long)items, opt.seed);
	emit_clock_cost();
	emit("}");
	flush_line();
}

static void tell(uint64_t now)
{
	phase.told = now;
	emit("{\"event\":\"progress\",\"phase\":\"%s\",\"done\":%llu,\"planned\":%llu,\"bad\":%llu}", phase.name,
	     (unsigned long long)phase.done, (unsigned long long)phase.planned,
	     (unsigned long long)(bad_total() - phase.bad_before));
	flush_line();
}

void phase_start(const char *name, uint64_t planned)
{
	phase.name = name;
	phase.planned = planned;
	phase.done = 0;
	phase.bad_before = bad_total();
	read_counters(phase.before);
	phase.started = now_ns();
	tell(phase.started);
}

void phase_step(uint64_t steps)
{
	uint64_t now = now_ns();
	phase.done += steps;
	if (now - phase.told >= 500000000u)
		tell(now);
}

int phase_over(void)
{
	return opt.seconds && now_ns() - phase.started >= (uint64_t)opt.seconds * 1000000000u;
}

static void emit_series(const char *name, const struct series *series)
{
	size_t kept = series_kept(series);
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
	uint64_t elapsed = now_ns() - phase.started;
	emit("{\"event\":\"phase\",\"phase\":\"%s\",\"done\":%llu,\"nanoseconds\":%llu,\"bad\":%llu,\"counts\":{",
	     phase.name, (unsigned long long)phase.done, (unsigned long long)elapsed,
	     (unsigned long long)(bad_total() - phase.bad_before));
	for (int i = 0; i < n_counts; i++)
		emit("%s\"%s\":%llu", i ? "," : "", counts[i].name, (unsigned long long)counts[i].value);
	emit("},\"vmstat\":");
	emit_counters_since(phase.before);
	emit("}");
	flush_line();
	for (int i = 0; i < n_series; i++)
		emit_series(series[i].name, series[i].series);
}
