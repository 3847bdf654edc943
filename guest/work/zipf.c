// SPDX-License-Identifier: Apache-2.0
/*
 * A cache in anonymous memory larger than RAM: pages written once, then read as a zipf distribution says. Some accesses
 * write a page anew (opt.rewrite percent). Every page read is compared; at the end all are read once.
 */
#include "work.h"

static uint64_t *area;
static uint16_t *version;	/* of each page; locked in memory */

static void put_page(uint64_t page)
{
	make_words(area + page * WORDS, WORDS, page, version[page]);
}

void run_zipf(void)
{
	uint64_t pages = (uint64_t)opt.mib * (1 << 20) / PAGE, accesses = opt.count ? (uint64_t)opt.count : pages;
	struct series hit = { 0 }, fault = { 0 };
	struct zipf zipf = zipf_over(pages, opt.theta);
	struct rng rng = rng_from((uint64_t)opt.seed);
	uint64_t rewrites = 0;

	version = locked(pages * sizeof(version[0]));
	series_init(&hit);
	series_init(&fault);
	area = anonymous(pages * PAGE);
	announce("zipf", "pages", pages);

	phase_start("fill", pages);
	for (uint64_t page = 0; page < pages; page++) {
		touch(area + page * WORDS, 1, &hit, &fault);
		put_page(page);
		phase_step(1);
	}
	phase_end((struct named_count[]){ { "pages", pages } }, 1,
		  (struct named_series[]){ { "hit", &hit }, { "fault", &fault } }, 2);

	series_init(&hit);
	series_init(&fault);
	phase_start("access", accesses);
	for (uint64_t n = 0; n < accesses && !phase_over(); n++) {
		uint64_t page = zipf_next(&zipf, &rng);
		touch(area + page * WORDS, 0, &hit, &fault);
		verify(area + page * WORDS, WORDS, page, version[page]);
		if (rng_next(&rng) % 100 < (uint64_t)opt.rewrite) {
			version[page]++;
			put_page(page);
			rewrites++;
		}
		phase_step(1);
	}
	phase_end((struct named_count[]){ { "accesses", hit.seen + fault.seen }, { "faults", fault.seen },
					  { "rewrites", rewrites } }, 3,
		  (struct named_series[]){ { "hit", &hit }, { "fault", &fault } }, 2);

	if (!opt.check)
		return;
	phase_start("check", pages);
	for (uint64_t page = 0; page < pages; page++) {
		verify(area + page * WORDS, WORDS, page, version[page]);
		phase_step(1);
	}
	phase_end((struct named_count[]){ { "pages", pages } }, 1, 0, 0);
}
