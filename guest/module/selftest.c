// SPDX-License-Identifier: GPL-2.0-only
/*
 * Self-tests: what a request looks like byte by byte, and whether puts, gets and queued flushes of
 * a pool stay in order. The module does not load when one fails.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/highmem.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "tmem.h"

/* ---- requests -------------------------------------------------------------------------------- */

static bool same(const char *what, const void *is, const u8 *should, size_t length)
{
	if (!memcmp(is, should, length))
		return true;
	pr_err("selftest: %s is encoded wrongly\n", what);
	print_hex_dump(KERN_ERR, "is     ", DUMP_PREFIX_OFFSET, 16, 1, is, length, false);
	print_hex_dump(KERN_ERR, "should ", DUMP_PREFIX_OFFSET, 16, 1, should, length, false);
	return false;
}

static bool test_encoding(void)
{
	static const u8 hello[64] = { [0] = 32, [32] = 1, [48] = 3 };
	static const u8 new_pool[64] = {
		[0] = 1, [8] = 8, 7, 6, 5, 4, 3, 2, 1,
		[16] = 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, [36] = 0, 0, 4, [48] = 9
	};
	static const u8 put[64] = {
		[0] = 4, [8] = 1, [16] = 2, [24] = 3, [32] = 0x78, 0x56, 0x34, 0x12, [36] = 1
	};
	static const u8 list[64] = { [0] = 6, [2] = 1, [36] = 128 };
	static const u64 uuid[2] = { 0x0102030405060708ULL, 0x1112131415161718ULL };
	static const u64 object[3] = { 1, 2, 3 };
	struct tmem_call call;
	bool good;

	BUILD_BUG_ON(sizeof(struct tmem_request) != 64);
	BUILD_BUG_ON(sizeof(struct tmem_reply) != 40);
	BUILD_BUG_ON(sizeof(struct tmem_item) != 32);
	BUILD_BUG_ON(sizeof(struct tmem_frame) != 8);
	BUILD_BUG_ON(sizeof(struct virtio_tmem_config) != 16);

	tmem_call_hello(&call, 1, TMEM_FEATURE_BATCH | TMEM_FEATURE_LIST);
	good = same("hello", &call.request, hello, sizeof(hello));
	tmem_call_new_pool(&call, TMEM_POOL_PERSISTENT | TMEM_POOL_ATTACH, uuid, 0x40000);
	good &= same("new pool", &call.request, new_pool, sizeof(new_pool));
	tmem_call_page(&call, TMEM_OP_PUT, NULL, object, 0x12345678, NULL);
	good &= same("put", &call.request, put, sizeof(put));
	good &= tmem_call_sends(&call) && !tmem_call_fetches(&call) &&
		!tmem_call_items_length(&call);
	tmem_call_list(&call, TMEM_OP_FLUSH_PAGE, NULL, NULL, TMEM_BATCH_MAX);
	good &= same("flush of a list", &call.request, list, sizeof(list));
	good &= tmem_call_items_length(&call) == 4096;

	/* a reply to something else, or with what must be 0, is none */
	call.request.cookie = cpu_to_le64(7);
	call.reply.cookie = cpu_to_le64(7);
	good &= tmem_reply_fits(&call);
	call.reply.reserved = cpu_to_le32(1);
	good &= !tmem_reply_fits(&call);
	call.reply.reserved = 0;
	call.reply.cookie = cpu_to_le64(8);
	good &= !tmem_reply_fits(&call);
	if (!good)
		pr_err("selftest: requests and replies\n");
	return good;
}

/* ---- order ----------------------------------------------------------------------------------- */

#define MODEL_PAGES	61u	/* no multiple of a word, fewer than a batch */
#define MODEL_STEPS	20000u

static void fill(struct page *page, u64 value)
{
	u64 *words = kmap_atomic(page);
	size_t i;

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i++)
		words[i] = value ? value + i : 0;
	kunmap_atomic(words);
}

static bool holds(struct page *page, u64 value)
{
	u64 *words = kmap_atomic(page);
	bool good = true;
	size_t i;

	for (i = 0; i < PAGE_SIZE / sizeof(u64); i += 73)
		good &= words[i] == (value ? value + i : 0);
	kunmap_atomic(words);
	return good;
}

/* One step; values[] is what each page must hold, 0 for nothing. False: it does not. */
static bool step(struct tmem_pool *pool, struct page *page, u64 *values,
		 struct rnd_state *random, u64 number)
{
	u32 index = prandom_u32_state(random) % MODEL_PAGES;

	switch (prandom_u32_state(random) % 8) {
	case 0:
	case 1:
	case 2:
		values[index] = number << 20;
		fill(page, values[index]);
		return !tmem_pool_put(pool, index, page);
	case 3:
	case 4:
	case 5:
		tmem_pool_flush(pool, index);
		values[index] = 0;
		/*
		 * now and then the slot is used again before the work has run, now and then while
		 * it does
		 */
		if (!(prandom_u32_state(random) % 64))
			cond_resched();
		return true;
	default:
		fill(page, ~0ULL);
		return !tmem_pool_get(pool, index, page) && holds(page, values[index]);
	}
}

static bool run_model(struct tmem_pool *pool, struct page *page)
{
	static u64 values[MODEL_PAGES];
	struct rnd_state random;
	u32 index;
	u64 number;

	memset(values, 0, sizeof(values));
	prandom_seed_state(&random, 20111031);
	for (number = 1; number <= MODEL_STEPS; number++) {
		if (!step(pool, page, values, &random, number)) {
			pr_err("selftest: step %llu of the model\n", number);
			return false;
		}
		/* lets the work in with what is pending */
		if (!(number % 512))
			mod_delayed_work(tmem_wq, &pool->work, 0);
		if (!(number % 4096) && !tmem_pool_drain(pool)) {
			pr_err("selftest: flushes are left over\n");
			return false;
		}
	}
	for (index = 0; index < MODEL_PAGES; index++)
		if (tmem_pool_get(pool, index, page) || !holds(page, values[index])) {
			pr_err("selftest: page %u at the end\n", index);
			return false;
		}
	return true;
}

/* What the host does not have is an error, not zeroes and not an older page. */
static bool test_loss(struct tmem_channel *channel, struct tmem_pool *pool, struct page *page)
{
	struct tmem_call call;
	bool good = true;

	tmem_call_pool(&call, TMEM_OP_FLUSH_OBJECT, pool);
	good &= !tmem_submit(channel, &call) && tmem_call_status(&call) == TMEM_OK;
	fill(page, 1);
	good &= !tmem_pool_put(pool, 5, page);
	/* behind the pool's back */
	tmem_call_page(&call, TMEM_OP_FLUSH_PAGE, pool, NULL, 5, NULL);
	good &= !tmem_submit(channel, &call) && tmem_call_status(&call) == TMEM_OK;
	good &= tmem_pool_get(pool, 5, page) == -EIO;
	good &= tmem_pool_put(pool, pool->count, page) == -EIO &&
		tmem_pool_get(pool, pool->count, page) == -EIO;
	/*
	 * a put that did not reach the host: its page is lost, also the one that was there before
	 */
	good &= !tmem_pool_put(pool, 6, page);
	tmem_channel_stop(channel);
	good &= tmem_pool_put(pool, 6, page) == -EIO;
	good &= !tmem_channel_start(channel);
	good &= tmem_pool_get(pool, 6, page) == -EIO;
	good &= !tmem_pool_put(pool, 6, page) && !tmem_pool_get(pool, 6, page) && holds(page, 1);
	if (!good)
		pr_err("selftest: pages that are lost\n");
	return good;
}

static bool test_pool(void)
{
	static const u64 uuid[2] = { 1, 2 };
	static struct tmem_channel channel;
	static struct tmem_stats stats = { .name = "selftest" };
	struct tmem_pool *pool;
	struct page *page;
	bool good = false;

	page = alloc_page(GFP_KERNEL);
	if (!page)
		return false;
	tmem_channel_init(&channel, NULL);
	pool = tmem_pool_create(&channel, &stats, uuid, MODEL_PAGES);
	if (IS_ERR(pool))
		goto err_page;
	if (tmem_local_open(&channel, MODEL_PAGES, false))
		goto err_pool;
	good = run_model(pool, page) && test_loss(&channel, pool, page);
	if (good && !atomic_long_read(&stats.counter[TMEM_N_FLUSHES_OVERTAKEN])) {
		pr_err("selftest: no put overtook a flush, so nothing was tested\n");
		good = false;
	}
	tmem_pool_destroy(pool);
	tmem_local_close(&channel);
	__free_page(page);
	return good;

err_pool:
	tmem_pool_destroy(pool);
err_page:
	__free_page(page);
	return false;
}

static const struct {
	const char *name;
	bool (*run)(void);
} tests[] = {
	{ "encoding", test_encoding },
	{ "pool", test_pool },
};

int tmem_selftest_run(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(tests); i++)
		if (!tests[i].run()) {
			pr_err("self-test %s failed\n", tests[i].name);
			return -EINVAL;
		}
	pr_info("%zu self-tests passed\n", ARRAY_SIZE(tests));
	return 0;
}
