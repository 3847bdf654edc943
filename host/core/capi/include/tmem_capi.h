/* SPDX-License-Identifier: (GPL-2.0-or-later OR Apache-2.0) */
/*
 * Transcendent memory for a monitor that serves its guests' requests itself: arenas, and devices of VMs in them.
 *
 * libtmem_capi.a, written in Rust (host/core/capi); link it with -lpthread -lm -ldl. What a guest sends and is
 * answered: guest/abi/tmem_abi.h.
 *
 * Every function may be called by any thread at any time, but for tmem_capi_close(), which is the last call. None ends
 * or unwinds into the caller: what goes wrong inside is an answer.
 */
#ifndef TMEM_CAPI_H
#define TMEM_CAPI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header; raised when anything in it changes. */
#define TMEM_CAPI_VERSION	2u

/* Of the library. */
uint32_t tmem_capi_version(void);

struct tmem_capi;

/* Other devices of this process may open the arena, and other VMs may have pages in it. */
#define TMEM_CAPI_SHARE		(1u << 0)

struct tmem_capi_options {
	uint64_t limit;		/* what the VMs of the arena may hold, bytes */
	uint64_t features;	/* TMEM_FEATURE_* that HELLO may agree on, of those that the library has */
	uint32_t flags;		/* TMEM_CAPI_SHARE */
	uint32_t reserved;	/* 0 */
};

/*
 * Opens the arena at `path`, or makes it, and the VM of that name in it: a device, which is a channel of that VM. An
 * arena that is there keeps its pools; no other process has it meanwhile (it is locked).
 *
 * Without TMEM_CAPI_SHARE nobody else has it, and it must have no VM but this one. With it, devices that name the same
 * VM are channels to the same pools, and those that name others have pools of their own, and common ones where both are
 * authorised. All name the same limit, and those of one VM the same features.
 *
 * NULL on failure, with a reason of one line in `error` (always terminated, cut to `error_size`).
 */
struct tmem_capi *tmem_capi_open(const char *path, const char *vm, const struct tmem_capi_options *options, char *error,
				 size_t error_size);

/* Pages stay in the arena. NULL is nothing. */
void tmem_capi_close(struct tmem_capi *tmem);

/* TMEM_FEATURE_* that HELLO may agree on. */
uint64_t tmem_capi_features(const struct tmem_capi *tmem);

/*
 * Executes one request where it lies. All pieces stay valid and mapped during the call; the guest may change them
 * meanwhile, and both lists may name the same memory.
 *
 * Bytes of `writable` that the reply and its data take; -1 if not even the reply has room: nothing was done then.
 */
ssize_t tmem_capi_execute(struct tmem_capi *tmem, const struct iovec *readable, size_t readable_count,
			  const struct iovec *writable, size_t writable_count);

/* The guest's device was reset: HELLO comes first again. Pools and pages stay. */
void tmem_capi_reset(struct tmem_capi *tmem);

/* What the VM holds and may hold, over all its devices; bytes but for `pages` and `weight`. */
struct tmem_capi_status {
	uint64_t limit;		/* of the arena */
	uint64_t pages;
	uint64_t held;		/* charged: slots of those pages, with their headers */
	uint64_t compressed;	/* data in them */
	uint64_t arena;		/* what the file takes from the host */
	uint64_t reservation;
	uint64_t cap;		/* UINT64_MAX: none but the limit */
	uint32_t weight;
	uint32_t frozen;	/* 1: puts are refused */
};

/* 0, or -1 when the VM is gone. */
int tmem_capi_status(const struct tmem_capi *tmem, struct tmem_capi_status *status);

/* Calls `each` for every counter of requests, answers and pages. The name is a word in lower case. */
void tmem_capi_counters(const struct tmem_capi *tmem, void (*each)(void *opaque, const char *name, uint64_t value),
			void *opaque);

#define TMEM_CAPI_RESERVATION	(1u << 0)
#define TMEM_CAPI_CAP		(1u << 1)
#define TMEM_CAPI_WEIGHT	(1u << 2)
#define TMEM_CAPI_FROZEN	(1u << 3)

struct tmem_capi_quota {
	uint32_t set;		/* TMEM_CAPI_*: which of the following to change */
	uint32_t weight;	/* 1 to 1000000 */
	uint64_t reservation;
	uint64_t cap;		/* UINT64_MAX: none */
	uint32_t frozen;
	uint32_t reserved;
};

/* 0, or -1 with nothing changed and a reason in `error`. */
int tmem_capi_set_quota(struct tmem_capi *tmem, const struct tmem_capi_quota *quota, char *error, size_t error_size);

/*
 * Whether the VM may make or join the shared pool of that uuid from now on; at first it may use none. Kept in the arena.
 *
 * 0, or -1 with nothing changed and a reason in `error`.
 */
int tmem_capi_authorise(struct tmem_capi *tmem, const uint8_t uuid[16], int allow, char *error, size_t error_size);

/*
 * From now on each `every`-th page that the VM asks for is answered as lost, and stays where it is; 0: none. For tests
 * of guests.
 */
void tmem_capi_lose(struct tmem_capi *tmem, uint32_t every);

#ifdef __cplusplus
}
#endif

#endif
