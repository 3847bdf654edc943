// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests that run in the kernel when the module is loaded with selftest=1:
 * what lockdep, KASAN and kmemleak kernels are booted for.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/build_bug.h>
#include <linux/kernel.h>
#include <linux/printk.h>
#include <linux/stddef.h>

#include "tmem.h"
#include "tmem_abi.h"

struct test {
	const char *name;
	int (*run)(void);
};

/* The host reads these structures: their layout is checked where it is compiled. */
static int layout(void)
{
	BUILD_BUG_ON(sizeof(struct tmem_request) != 64);
	BUILD_BUG_ON(sizeof(struct tmem_item) != 32);
	BUILD_BUG_ON(offsetof(struct tmem_request, cookie) != 56);
	return 0;
}

static const struct test tests[] = {
	{ "layout", layout },
};

int tmem_selftest_run(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		int err = tests[i].run();

		if (err) {
			pr_err("self-test %s failed: %d\n", tests[i].name, err);
			return err;
		}
	}
	pr_info("%zu self-tests passed\n", ARRAY_SIZE(tests));
	return 0;
}
