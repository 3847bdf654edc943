/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe: a guest of one process, init of a stock kernel, that asks for pages over every channel there is and says
 * how long each answer took. No driver of ours is in it: devices that carry tmem requests are driven from user space,
 * disks and ports by the kernel's own drivers. See README.md.
 */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tmem_abi.h"

#define PAGE 4096u
#define LARGE (2u << 20)
#define LANES 2		/* vCPUs that can be at work together */

/* Pages that a lane puts and gets, by page size: its keys are those numbers of its own. */
#define SPAN(bytes) ((bytes) == PAGE ? 256u : (bytes) == LARGE ? 2u : 16u)

struct lane;

/* One request, of whatever channel. */
struct call {
	int op;			/* TMEM_OP_* */
	uint32_t bytes;		/* of a page */
	uint32_t index, count;
	uint32_t other;		/* exchange: the page that is got */
	uint32_t offset, length; /* read, write */
	uint8_t **sends;	/* where each page lies, write: the bytes; NULL: nothing is sent */
	uint8_t *fetches;	/* where the first page goes; others behind it */
};

struct channel {
	/* 0, or a status of the ABI, or -1 when there was no answer */
	int (*ask)(struct channel *, struct lane *, const struct call *);
	bool pages_only;	/* whole pages of 4 KiB: no tmem requests cross it */
	int lanes;
	void *own;
	uint32_t pools[3];	/* by page size: 4K, 64K, 2M */
	uint32_t held[LANES][3][256]; /* which page of the corpus lies where */
	bool filled[LANES][3];	/* all of those are there */
};

struct lane {
	int number;
	uint8_t *message;	/* a page: request and items, reply behind them */
	uint64_t message_at;
	uint8_t *fetched;	/* LARGE bytes in one piece */
	uint8_t *frame;		/* room for the largest frame */
	uint8_t *sent[TMEM_BATCH_MAX];
};

/* Where the message of a lane has its reply. */
#define REPLY_AT 2048

extern struct lane lanes[LANES];
extern uint8_t *corpus;
extern uint32_t corpus_pages;

/* main.c */
_Noreturn void die(const char *what);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t now(void);		/* nanoseconds */
void pin(int cpu);

/* memory.c: pages that a device may reach */
uint64_t physical(const void *at);
uint64_t physical_of(const void *at); /* of what lies in large() */
void *pages(size_t bytes);	/* in whole pages of 4 KiB */
void *large(void);		/* 2 MiB in one piece */
void memory_start(void);

/* request.c */
struct tmem_request request_of(const struct channel *, const struct call *, struct tmem_item *);
int size_class(uint32_t bytes);
bool open_pools(struct channel *, int (*plain)(struct channel *, struct tmem_request *, struct tmem_reply *));

/* ring.c: virtio-tmem and vhost-user-tmem */
int ring_count(void);
void ring_find(void);
struct channel *ring_open(int number);
void ring_resets(struct channel *, int rounds);
bool ring_inline(const struct channel *);
const char *ring_doorbell(const struct channel *);
extern int patience;		/* seconds to wait for an answer */

/* stream.c: virtio-serial */
struct channel *stream_open(const char *port);
int port_open(const char *name);

/* shared.c: a disk, and memory that the host has, too */
struct channel *disk_open(const char *serial);
struct channel *shared_open(void);

/* turn.c */
struct turn {
	uint32_t batch, bytes, length, lanes, samples, every, warmup;
};
bool turn(struct channel *, const char *op, const struct turn *);

#endif
