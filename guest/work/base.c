// SPDX-License-Identifier: Apache-2.0
/* Compiled into the hog and into the workloads. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

/* --- output ------------------------------------------------------------------------------------------------------- */

static char out[16 * 1024];
static size_t out_len;

static void drain(void)
{
	for (size_t done = 0; done < out_len;) {
		ssize_t n = write(STDOUT_FILENO, out + done, out_len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(2);	/* nobody is listening */
		done += (size_t)n;
	}
	out_len = 0;
}

void emit(const char *format, ...)
{
	for (int attempt = 0; attempt < 2; attempt++) {
		va_list ap;
		va_start(ap, format);
		int n = vsnprintf(out + out_len, sizeof(out) - out_len, format, ap);
		va_end(ap);
		if (n >= 0 && (size_t)n < sizeof(out) - out_len) {
			out_len += (size_t)n;
			return;
		}
		drain();
	}
	abort();	/* no piece of a line is that long */
}

void emit_base64(const void *data, size_t len)
{
	static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const uint8_t *p = data;
	for (size_t i = 0; i < len; i += 3) {
		uint32_t v = (uint32_t)p[i] << 16;
		if (i + 1 < len)
			v |= (uint32_t)p[i + 1] << 8;
		if (i + 2 < len)
			v |= p[i + 2];
		if (sizeof(out) - out_len < 4)
			drain();
		out[out_len++] = digit[v >> 18];
		out[out_len++] = digit[v >> 12 & 63];
		out[out_len++] = i + 1 < len ? digit[v >> 6 & 63] : '=';
		out[out_len++] = i + 2 < len ? digit[v & 63] : '=';
	}
}

void flush_line(void)
{
	emit("\n");
	drain();
}

void die(const char *what, const char *why)
{
	out_len = 0;
	emit("{\"event\":\"error\",\"error\":\"");
	for (const char *part[] = { what, ": ", why }, **p = part; p < part + 3; p++)
		for (const char *c = *p; *c; c++)
			emit("%c", *c == '"' || *c == '\\' || (unsigned char)*c < ' ' || *c & 0x80 ? '?' : *c);
	emit("\"}");
	flush_line();
	_exit(2);
}

long number(const char *key, const char *text, long low, long high)
{
	char *end;
	errno = 0;
	long v = strtol(text, &end, 10);
	if (errno || end == text || *end || v < low || v > high)
		die(key, "not a number in its range");
	return v;
}

/* --- time and counters -------------------------------------------------------------------------------------------- */

uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

long major_faults(void)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return r.ru_majflt;
}

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

void emit_clock_cost(void)
{
	enum { TRIALS = 1000 };
	uint32_t cost[TRIALS];
	for (int i = 0; i < TRIALS; i++) {
		uint64_t t0 = now_ns();
		cost[i] = (uint32_t)(now_ns() - t0);
	}
	qsort(cost, TRIALS, sizeof(cost[0]), compare_u32);
	emit("{\"min\":%u,\"median\":%u,\"p99\":%u}", cost[0], cost[TRIALS / 2], cost[TRIALS * 99 / 100]);
}

static const char *const counter_name[COUNTERS] = {
	"pswpin", "pswpout", "pgfault", "pgmajfault", "swap_ra", "swap_ra_hit", "pgscan_direct", "pgscan_kswapd",
	"pgsteal_direct", "pgsteal_kswapd", "allocstall_normal", "allocstall_dma32", "allocstall_movable", "oom_kill",
};

void read_counters(uint64_t value[COUNTERS])
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

void emit_counters_since(const uint64_t before[COUNTERS])
{
	uint64_t after[COUNTERS];
	read_counters(after);
	for (int i = 0; i < COUNTERS; i++)
		emit("%s\"%s\":%llu", i ? "," : "{", counter_name[i], (unsigned long long)(after[i] - before[i]));
	emit("}");
}

uint64_t mix(uint64_t x)	/* splitmix64's finaliser */
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* --- samples ------------------------------------------------------------------------------------------------------ */

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
	if (slot >= series->size) {
		series->lcg = series->lcg * 6364136223846793005u + 1442695040888963407u;
		slot = (series->lcg >> 11) % series->seen;
	}
	if (slot < series->size)
		series->sample[slot] = value;
}

size_t series_kept(const struct series *series)
{
	return series->seen < series->size ? series->seen : series->size;
}
