// SPDX-License-Identifier: Apache-2.0
/*
 * What a kernel build does to memory: many short-lived processes, opt.parallel at once. Each reads the headers and a
 * source through the page cache, fills a working set of its own, goes over it at random, writes an object file and ends.
 * Then one process reads all objects, as a linker does. Files lie in opt.dir, which may be memory as well (tmpfs).
 * Everything read is compared: headers, sources, working sets, objects.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

enum { PARALLEL_MAX = 64, FILE_PAGES = 4, PASSES = 2 };

/* One of the processes that run at once; locked memory that they share with their parent. */
struct slot {
	int pid;		/* its parent's */
	uint64_t started, accesses, file_pages;
	struct series hit, fault;
};

static struct slot *slots;
static uint64_t page_buffer[FILE_PAGES * WORDS];	/* a child's own copy, once it writes to it */

/* Keys that tell every page of every file and working set apart. */
static uint64_t key_of(const char *kind, uint64_t number, uint64_t page)
{
	return (uint64_t)kind[0] << 56 ^ number << 24 ^ page;
}

static void name_file(char path[PATH_MAX], const char *kind, uint64_t number)
{
	snprintf(path, PATH_MAX, "%s/%s-%llu", opt.dir, kind, (unsigned long long)number);
}

static void write_file(const char *kind, uint64_t number, uint64_t pages)
{
	char path[PATH_MAX];
	name_file(path, kind, number);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path, strerror(errno));
	for (uint64_t page = 0; page < pages; page++) {
		make_words(page_buffer, WORDS, key_of(kind, number, page), 0);
		errno = ENOSPC;		/* what a short write means here */
		if (write(fd, page_buffer, PAGE) != PAGE)
			die(path, strerror(errno));
	}
	if (close(fd))
		die(path, strerror(errno));
}

static uint64_t read_file(const char *kind, uint64_t number)
{
	char path[PATH_MAX];
	uint64_t page = 0;
	ssize_t n;
	name_file(path, kind, number);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path, strerror(errno));
	while ((n = read(fd, page_buffer, sizeof(page_buffer))) > 0)
		for (ssize_t at = 0; at + PAGE <= n; at += PAGE, page++)
			verify(page_buffer + at / 8, WORDS, key_of(kind, number, page), 0);
	if (n < 0)
		die(path, strerror(errno));
	close(fd);
	return page;
}

static void remove_files(const char *kind, uint64_t count)
{
	char path[PATH_MAX];
	for (uint64_t number = 0; number < count; number++) {
		name_file(path, kind, number);
		unlink(path);
	}
}

static void work_on(struct slot *slot, uint64_t job, struct rng *rng)
{
	/* from half to one and a half times the size asked for: some files are longer than others */
	uint64_t mean = (uint64_t)opt.mib * (1 << 20) / PAGE, pages = mean / 2 + rng_next(rng) % mean + 1;
	uint64_t *area = anonymous(pages * PAGE);
	for (uint64_t page = 0; page < pages; page++) {
		touch(area + page * WORDS, 1, &slot->hit, &slot->fault);
		make_words(area + page * WORDS, WORDS, key_of("working set", job, page), 0);
	}
	for (uint64_t n = 0; n < PASSES * pages; n++) {
		uint64_t page = rng_next(rng) % pages;
		touch(area + page * WORDS, 0, &slot->hit, &slot->fault);
		verify(area + page * WORDS, WORDS, key_of("working set", job, page), 0);
	}
	slot->accesses += (1 + PASSES) * pages;
}

static _Noreturn void run_job(struct slot *slot, uint64_t job)
{
	struct rng rng = rng_from((uint64_t)opt.seed ^ mix(job));
	uint64_t object_pages = (uint64_t)opt.object_kib * 1024 / PAGE;
	for (uint64_t header = 0; header < (uint64_t)opt.sources; header++)
		slot->file_pages += read_file("header", header);
	slot->file_pages += read_file("source", job % (uint64_t)opt.sources);
	work_on(slot, job, &rng);
	write_file("object", job, object_pages);
	slot->file_pages += object_pages;
	_exit(0);
}

static void start_job(struct slot *slot, uint64_t job)
{
	int parent = getpid();
	slot->started = now_ns();
	int pid = fork();
	if (pid < 0)
		die("fork", strerror(errno));
	if (pid) {
		slot->pid = pid;
		return;
	}
	/* whoever ends this program ends all of it */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(2);
	run_job(slot, job);
}

/* The rest dies with this process. */
static void end_job(struct series *durations)
{
	int status;
	int pid = waitpid(-1, &status, 0);
	uint64_t now = now_ns();
	for (int i = 0; i < opt.parallel; i++) {
		if (slots[i].pid != pid)
			continue;
		slots[i].pid = 0;
		take_sample(durations, now - slots[i].started, 0);
	}
	if (pid < 0)
		die("wait", strerror(errno));
	if (WIFSIGNALED(status))
		die("a job was killed", WTERMSIG(status) == SIGKILL ? "memory and swap may be full"
								    : strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status))
		_exit(2);	/* it has said why */
}

static struct slot *free_slot(void)
{
	for (int i = 0; i < opt.parallel; i++)
		if (!slots[i].pid)
			return slots + i;
	return 0;
}

static uint64_t compile(void)
{
	struct series durations = { 0 };
	uint64_t jobs = (uint64_t)opt.jobs, started = 0, ended = 0, accesses = 0, file_pages = 0, faults = 0;
	struct named_series told[1 + 2 * PARALLEL_MAX] = { { "job", &durations } };
	int n_told = 1;

	series_init(&durations);
	phase_start("compile", jobs);
	while (ended < started || (started < jobs && !phase_over())) {
		struct slot *slot = free_slot();
		if (slot && started < jobs && !phase_over()) {
			start_job(slot, started++);
			continue;
		}
		end_job(&durations);
		ended++;
		phase_step(1);
	}
	for (int i = 0; i < opt.parallel; i++) {
		accesses += slots[i].accesses;
		file_pages += slots[i].file_pages;
		faults += slots[i].fault.seen;
		told[n_told++] = (struct named_series){ "hit", &slots[i].hit };
		told[n_told++] = (struct named_series){ "fault", &slots[i].fault };
	}
	phase_end((struct named_count[]){ { "jobs", ended }, { "accesses", accesses }, { "faults", faults },
					  { "file_pages", file_pages } }, 4, told, n_told);
	return ended;
}

static void link_objects(uint64_t objects)
{
	uint64_t pages = 0;
	phase_start("link", objects);
	for (uint64_t object = 0; object < objects; object++) {
		pages += read_file("object", object);
		phase_step(1);
	}
	if (pages != objects * ((uint64_t)opt.object_kib * 1024 / PAGE))
		report_bad("objects", objects, 0, pages, objects * ((uint64_t)opt.object_kib * 1024 / PAGE));
	phase_end((struct named_count[]){ { "file_pages", pages } }, 1, 0, 0);
}

void run_build(void)
{
	uint64_t sources = (uint64_t)opt.sources, objects;

	if (!opt.dir)
		die("dir", "is required: a folder for the files");
	/* samples are for each of them */
	opt.samples = (opt.samples + opt.parallel - 1) / opt.parallel;
	slots = locked((size_t)opt.parallel * sizeof(*slots));
	for (int i = 0; i < opt.parallel; i++) {
		series_init(&slots[i].hit);
		series_init(&slots[i].fault);
	}
	announce("build", "jobs", (uint64_t)opt.jobs);
	phase_start("prepare", 2 * sources);
	for (uint64_t i = 0; i < sources; i++) {
		write_file("header", i, (uint64_t)opt.object_kib * 1024 / PAGE);
		write_file("source", i, (uint64_t)opt.object_kib * 1024 / PAGE);
		phase_step(2);
	}
	phase_end(0, 0, 0, 0);
	objects = compile();
	link_objects(objects);
	remove_files("header", sources);
	remove_files("source", sources);
	remove_files("object", objects);
}
