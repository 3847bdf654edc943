// SPDX-License-Identifier: Apache-2.0
/*
 * A vhost-user-blk client for the channel bench: Red Hat's libblkio drives the device, this file only submits and times.
 *
 * qemu-img bench cannot write pages that compress (its buffer is one repeated byte) and prints one time for a whole
 * run. This client writes the pages of a file, waits for completions by event or by polling, and prints the latency of
 * single requests. `comparators.py build` compiles it against the Debian 13 tree.
 *
 * usage: tmem-blkio-client SOCKET read|write event|poll DEPTH COUNT sequential|random SEED PAGES-FILE samples|verify
 *   PAGES-FILE  the contents: page i of the device is page (i modulo pages in the file); a multiple of 4096 bytes
 *   samples     print {"requests","seconds","latency_ns":[at most MAX_SAMPLES, evenly spread]}
 *   verify      read every page in order and compare; prints {"requests","seconds","bad"}
 * Exit status 1 with one line on stderr when anything fails.
 */
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_DEPTH = 128, MAX_SAMPLES = 20000 };

struct slot {
    uint64_t index;
    uint64_t start_ns;
    char *buffer; /* of reads; writes go straight from the pages */
};

struct run {
    struct blkioq *queue;
    char *pages;
    uint64_t file_pages;
    uint64_t device_pages;
    uint64_t count;
    uint64_t submitted;
    uint64_t random;
    int is_write;
    int is_random;
    int verify;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "tmem-blkio-client: %s: %s\n", what, why);
    exit(1);
}

static void check(int result, const char *what)
{
    if (result < 0)
        fail(what, blkio_get_error_msg());
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* xorshift64 (Marsaglia 2003): cheap, and the same sequence for the same seed on every machine. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void submit(struct run *run, struct slot *slot)
{
    slot->index = (run->is_random ? next_random(&run->random) : run->submitted) % run->device_pages;
    run->submitted++;
    slot->start_ns = now_ns();
    if (run->is_write) {
        char *page = run->pages + slot->index % run->file_pages * PAGE;
        blkioq_write(run->queue, slot->index * PAGE, page, PAGE, slot, 0);
    } else {
        blkioq_read(run->queue, slot->index * PAGE, slot->buffer, PAGE, slot, 0);
    }
}

static uint64_t load_pages(const char *path, struct blkio *b, struct blkio_mem_region *region, unsigned depth)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    off_t done = 0;

    if (file < 0 || fstat(file, &info) < 0)
        fail(path, strerror(errno));
    if (info.st_size < PAGE || info.st_size % PAGE)
        fail(path, "not a whole number of pages");
    check(blkio_alloc_mem_region(b, region, (size_t)info.st_size + (size_t)depth * PAGE), "memory region");
    check(blkio_map_mem_region(b, region), "map memory region");
    while (done < info.st_size) {
        ssize_t n = pread(file, (char *)region->addr + done, (size_t)(info.st_size - done), done);
        if (n <= 0)
            fail(path, n ? strerror(errno) : "the file shrank");
        done += n;
    }
    close(file);
    return (uint64_t)info.st_size / PAGE;
}

/* Takes whatever is complete, sleeping for the first when waiting for events. */
static int reap(struct run *run, struct blkio_completion *done, int fd, int poll)
{
    int n = blkioq_do_io(run->queue, done, 0, MAX_DEPTH, NULL);

    while (n == 0 && !poll) {
        uint64_t event;
        if (read(fd, &event, sizeof event) < 0 && errno != EINTR)
            fail("completion event", strerror(errno));
        n = blkioq_do_io(run->queue, done, 0, MAX_DEPTH, NULL);
    }
    check(n, "do_io");
    return n;
}

int main(int argc, char **argv)
{
    static struct slot slots[MAX_DEPTH];
    static struct blkio_completion done[MAX_DEPTH];
    struct blkio_mem_region region;
    struct run run = {0};
    struct blkio *b;
    uint64_t *samples, capacity, finished = 0, bad = 0, begin, end, stride, kept = 0;
    unsigned depth;
    int fd, poll;

    if (argc != 10)
        fail("usage", "SOCKET read|write event|poll DEPTH COUNT sequential|random SEED PAGES-FILE samples|verify");
    run.is_write = !strcmp(argv[2], "write");
    poll = !strcmp(argv[3], "poll");
    depth = (unsigned)strtoul(argv[4], NULL, 10);
    run.count = strtoull(argv[5], NULL, 10);
    run.is_random = !strcmp(argv[6], "random");
    run.random = strtoull(argv[7], NULL, 10) | 1; /* xorshift never leaves 0 */
    run.verify = !strcmp(argv[9], "verify");
    if (depth < 1 || depth > MAX_DEPTH || run.count < 1)
        fail("usage", "depth is 1 to 128 and count at least 1");

    check(blkio_create("virtio-blk-vhost-user", &b), "create");
    check(blkio_set_str(b, "path", argv[1]), "path");
    check(blkio_connect(b), "connect");
    check(blkio_get_uint64(b, "capacity", &capacity), "capacity");
    check(blkio_start(b), "start");
    run.device_pages = capacity / PAGE;
    if (!run.device_pages)
        fail("capacity", "the device holds no page");
    run.queue = blkio_get_queue(b, 0);
    run.file_pages = load_pages(argv[8], b, &region, depth);
    run.pages = region.addr;
    fd = blkioq_get_completion_fd(run.queue);
    if (!poll) {
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
            fail("completion fd", strerror(errno));
    }
    blkioq_set_completion_fd_enabled(run.queue, !poll);

    stride = (run.count + MAX_SAMPLES - 1) / MAX_SAMPLES;
    samples = calloc(run.count / stride + 1, sizeof *samples);
    if (!samples)
        fail("samples", strerror(errno));
    begin = now_ns();
    for (unsigned i = 0; i < depth && run.submitted < run.count; i++) {
        slots[i].buffer = run.pages + (run.file_pages + i) * PAGE;
        submit(&run, &slots[i]);
    }
    while (finished < run.count) {
        int n = reap(&run, done, fd, poll);
        uint64_t at = n ? now_ns() : 0;
        for (int i = 0; i < n; i++) {
            struct slot *slot = done[i].user_data;
            if (done[i].ret)
                fail(run.is_write ? "write" : "read", strerror(-done[i].ret));
            if (finished++ % stride == 0)
                samples[kept++] = at - slot->start_ns;
            if (run.verify && memcmp(slot->buffer, run.pages + slot->index % run.file_pages * PAGE, PAGE))
                bad++;
            if (run.submitted < run.count)
                submit(&run, slot);
        }
    }
    end = now_ns();

    printf("{\"requests\":%" PRIu64 ",\"seconds\":%.9f", run.count, (double)(end - begin) / 1e9);
    if (run.verify) {
        printf(",\"bad\":%" PRIu64, bad);
    } else {
        printf(",\"latency_ns\":[");
        for (uint64_t i = 0; i < kept; i++)
            printf("%s%" PRIu64, i ? "," : "", samples[i]);
        printf("]");
    }
    printf("}\n");
    blkio_unmap_mem_region(b, &region);
    blkio_free_mem_region(b, &region);
    blkio_destroy(&b);
    free(samples);
    return 0;
}
