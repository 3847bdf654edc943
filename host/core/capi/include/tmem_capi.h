/* SPDX-License-Identifier: (GPL-2.0-or-later OR Apache-2.0) */
/*
 * Transcendent memory for a monitor that serves its guest's requests itself: an arena of its own for one VM.
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
#define TMEM_CAPI_VERSION	1u

/* Of the library. */
uint32_t tmem_capi_version(void);

struct tmem_capi;

/*
 * Opens the arena at `path`, or makes it, and the VM of that name in it, which may hold `limit` bytes. An arena that is
 * there keeps its pages, and may be of another VM's making: nobody else uses it meanwhile (it is locked), and it must
 * have no VM but this one.
 *
 * NULL on failure, with a reason of one line in `error` (always terminated, cut to `error_size`).
 */
struct tmem_capi *tmem_capi_open(const char *path, uint64_t limit, const char *vm, char *error, size_t error_size);

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

/* What the VM holds and may hold, bytes but for `pages` and `weight`. */
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

#ifdef __cplusplus
}
#endif

#endif
