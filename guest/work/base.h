/* SPDX-License-Identifier: Apache-2.0 */
/* What the hog and the workloads share: output as JSON lines, time, the kernel's counters, latency samples. */
#ifndef BASE_H
#define BASE_H

#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MAX_SAMPLES = 65536 };

/* ---- output ------------------------------------------------------------------------------------------------------ */

void emit(const char *format, ...) __attribute__((format(printf, 1, 2)));
void emit_base64(const void *data, size_t len);
void flush_line(void);
/* An "error" line, and the end of the process with status 2. */
_Noreturn void die(const char *what, const char *why);
/* A whole number within bounds, or die(). */
long number(const char *key, const char *text, long low, long high);

/* ---- time and counters ------------------------------------------------------------------------------------------- */

uint64_t now_ns(void);
long major_faults(void);	/* of this process */
void emit_clock_cost(void);	/* {"min", "median", "p99"} of reading the clock twice, nanoseconds */

enum { COUNTERS = 14 };
void read_counters(uint64_t value[COUNTERS]);
void emit_counters_since(const uint64_t before[COUNTERS]);	/* an object: of /proc/vmstat what swap is about */

uint64_t mix(uint64_t x);

/* ---- latency samples: a reservoir -------------------------------------------------------------------------------- */

struct series {
	uint64_t seen, faults, total_ns, lcg, size;
	uint32_t *sample;	/* `size` of them: bit 31 a major fault, the others nanoseconds */
};
void take_sample(struct series *series, uint64_t ns, int fault);
size_t series_kept(const struct series *series);

#endif
