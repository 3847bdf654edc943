// SPDX-License-Identifier: GPL-2.0-only
/*
 * Source "cleancache": clean pages of files go to an ephemeral pool of the host when the kernel
 * drops them, one pool for each file system that is mounted. For kernels with CONFIG_CLEANCACHE,
 * which went with 5.17 (0a4ee518185e); of the distribution's none has it.
 *
 * A page is put, and invalidated, under a spin lock with interrupts off, and puts are not worth
 * waiting for. So both are queued, puts with a copy of their page, and one work carries them in
 * their order. A get, which may sleep, looks into the queue first: what was last said about its key
 * there is what holds.
 *
 * No page may ever be staler than the file. So whatever is not put is flushed; and when there is no
 * room for a flush, or it is not known whether one was done, the pool as a whole is given up: it
 * misses and takes nothing until the work has made a new one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/cleancache.h>
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "tmem.h"

#define FILE_SYSTEMS	8
#define FLUSHES		2048
#define FILTER_BITS	16

static bool cleancache;
module_param(cleancache, bool, 0444);
MODULE_PARM_DESC(cleancache, "Keep clean file pages in the host (false)");

static unsigned int cleancache_puts = 512;
module_param(cleancache_puts, uint, 0444);
MODULE_PARM_DESC(cleancache_puts, "Pages that can wait to be put; more are dropped (512)");

enum kind { PUT, FLUSH_PAGE, FLUSH_OBJECT };

struct entry {
	struct list_head link;
	enum kind kind;
	bool sending;
	u8 number;			/* of the file system */
	u32 index;
	u64 object[3];
	struct page *page;		/* puts: the copy */
};

struct file_system {
	struct tmem_pool *pool;		/* NULL: free */
	bool spoilt;			/* to be made anew */
	bool dying;			/* unmounted: to be destroyed */
	/* What was ever put, by hash: most of what is invalidated was not. */
	unsigned long *pages, *objects;
};

static struct tmem_stats stats = { .name = "cleancache" };
static struct tmem_channel *the_channel;
static DEFINE_SPINLOCK(lock);		/* guards what follows */
static struct file_system file_systems[FILE_SYSTEMS];
static LIST_HEAD(queued);		/* in order; those that are being sent stay at its head */
static LIST_HEAD(free_puts);
static LIST_HEAD(free_flushes);
static struct entry *entries;
static struct tmem_item *items;		/* of the work */
static void work_function(struct work_struct *work);
static DECLARE_WORK(work, work_function);

/* ---- keys ------------------------------------------------------------------------------------ */

static void key_object(const struct cleancache_filekey *key, u64 object[3])
{
	BUILD_BUG_ON(sizeof(key->u) != 3 * sizeof(u64));
	memcpy(object, &key->u, sizeof(key->u));
}

static u32 hash_object(const u64 object[3])
{
	u64 folded = object[0] ^ hash_64(object[1], 64) ^ hash_64(object[2] + 1, 64);

	return hash_64(folded, FILTER_BITS);
}

static u32 hash_page(const u64 object[3], u32 index)
{
	return hash_64(((u64)hash_object(object) << 32) + index, FILTER_BITS);
}

static bool concerns(const struct entry *entry, u8 number, const u64 object[3], u32 index)
{
	return entry->number == number && !memcmp(entry->object, object, sizeof(entry->object)) &&
	       (entry->kind == FLUSH_OBJECT || entry->index == index);
}

/* The last that was said about a page. */
static struct entry *find(u8 number, const u64 object[3], u32 index)
{
	struct entry *entry;

	lockdep_assert_held(&lock);
	list_for_each_entry_reverse(entry, &queued, link)
		if (concerns(entry, number, object, index))
			return entry;
	return NULL;
}

static struct file_system *usable(int number)
{
	lockdep_assert_held(&lock);
	if (number < 0 || number >= FILE_SYSTEMS || !file_systems[number].pool ||
	    file_systems[number].spoilt || file_systems[number].dying)
		return NULL;
	return &file_systems[number];
}

/* ---- into the queue -------------------------------------------------------------------------- */

static void spoil(struct file_system *fs)
{
	lockdep_assert_held(&lock);
	fs->spoilt = true;
	tmem_count(&stats, TMEM_N_DROPPED);
}

static struct entry *take(struct list_head *from, enum kind kind, u8 number, const u64 object[3],
			  u32 index)
{
	struct entry *entry = list_first_entry_or_null(from, struct entry, link);

	lockdep_assert_held(&lock);
	if (!entry)
		return NULL;
	entry->kind = kind;
	entry->number = number;
	entry->index = index;
	memcpy(entry->object, object, sizeof(entry->object));
	list_move_tail(&entry->link, &queued);
	return entry;
}

static void queue_flush(struct file_system *fs, enum kind kind, u8 number, const u64 object[3],
			u32 index)
{
	tmem_count(&stats, TMEM_N_FLUSHES_QUEUED);
	if (!take(&free_flushes, kind, number, object, index))
		spoil(fs);
	queue_work(tmem_wq, &work);
}

/* With interrupts off. */
static void source_put(int number, struct cleancache_filekey key, pgoff_t index, struct page *page)
{
	struct file_system *fs;
	struct entry *entry;
	unsigned long flags;
	u64 object[3];

	key_object(&key, object);
	spin_lock_irqsave(&lock, flags);
	fs = usable(number);
	if (!fs)
		goto out;
	tmem_count(&stats, TMEM_N_PUTS);
	/* a page that cannot be put could leave an older one behind */
	if (index > U32_MAX) {
		tmem_count(&stats, TMEM_N_DROPPED);
		goto out;
	}
	entry = take(&free_puts, PUT, number, object, index);
	if (!entry) {
		tmem_count(&stats, TMEM_N_DROPPED);
		if (test_bit(hash_page(object, index), fs->pages))
			queue_flush(fs, FLUSH_PAGE, number, object, index);
		goto out;
	}
	__set_bit(hash_page(object, index), fs->pages);
	__set_bit(hash_object(object), fs->objects);
	copy_highpage(entry->page, page);
	queue_work(tmem_wq, &work);
out:
	spin_unlock_irqrestore(&lock, flags);
}

static void source_invalidate_page(int number, struct cleancache_filekey key, pgoff_t index)
{
	struct file_system *fs;
	unsigned long flags;
	u64 object[3];

	if (index > U32_MAX)
		return;
	key_object(&key, object);
	spin_lock_irqsave(&lock, flags);
	fs = usable(number);
	if (fs && test_bit(hash_page(object, index), fs->pages))
		queue_flush(fs, FLUSH_PAGE, number, object, index);
	else if (fs)
		tmem_count(&stats, TMEM_N_FLUSHES_NEEDLESS);
	spin_unlock_irqrestore(&lock, flags);
}

static void source_invalidate_inode(int number, struct cleancache_filekey key)
{
	struct file_system *fs;
	unsigned long flags;
	u64 object[3];

	key_object(&key, object);
	spin_lock_irqsave(&lock, flags);
	fs = usable(number);
	if (fs && test_bit(hash_object(object), fs->objects))
		queue_flush(fs, FLUSH_OBJECT, number, object, 0);
	else if (fs)
		tmem_count(&stats, TMEM_N_FLUSHES_NEEDLESS);
	spin_unlock_irqrestore(&lock, flags);
}

/* ---- gets ------------------------------------------------------------------------------------ */

enum found { ASK_HOST, HIT, MISS };

/*
 * What the queue knows. A put that was not sent yet is taken back: the get removes the page, as it
 * would from the host, where an older one may be; so a flush goes in its place.
 */
static enum found look(u8 number, const u64 object[3], u32 index, struct page *page)
{
	struct entry *entry;

	lockdep_assert_held(&lock);
	entry = find(number, object, index);
	if (!entry)
		return ASK_HOST;
	if (entry->kind != PUT)
		return MISS;
	copy_highpage(page, entry->page);
	/* one that is being sent is flushed behind it */
	if (entry->sending)
		queue_flush(&file_systems[number], FLUSH_PAGE, number, object, index);
	else
		entry->kind = FLUSH_PAGE;
	return HIT;
}

/* The page's lock is held: nobody puts or gets it meanwhile. */
static int source_get(int number, struct cleancache_filekey key, pgoff_t index, struct page *page)
{
	enum found found = MISS;
	struct file_system *fs;
	struct tmem_call call;
	unsigned long flags;
	u64 object[3], start;
	int err;

	if (index > U32_MAX)
		return -1;
	key_object(&key, object);
	spin_lock_irqsave(&lock, flags);
	fs = usable(number);
	if (fs) {
		tmem_count(&stats, TMEM_N_GETS);
		if (test_bit(hash_page(object, index), fs->pages))
			found = look(number, object, index, page);
		if (found == ASK_HOST)
			tmem_call_page(&call, TMEM_OP_GET, fs->pool, object, index, page);
	}
	spin_unlock_irqrestore(&lock, flags);
	if (!fs)
		return -1;
	if (found != ASK_HOST) {
		tmem_count(&stats, found == HIT ? TMEM_N_HITS : TMEM_N_MISSES);
		return found == HIT ? 0 : -1;
	}
	start = ktime_get_ns();
	/* the file system is mounted, so its pool stays */
	err = tmem_submit(the_channel, &call);
	if (err) {
		tmem_count(&stats, TMEM_N_CHANNEL_ERRORS);
		return -1;
	}
	tmem_count_wait(&stats, TMEM_WAIT_GET, ktime_get_ns() - start);
	if (tmem_call_status(&call) != TMEM_OK) {
		tmem_count(&stats, TMEM_N_MISSES);
		return -1;
	}
	/* given up meanwhile: what the host has may be older than what was flushed in vain */
	spin_lock_irqsave(&lock, flags);
	fs = usable(number);
	spin_unlock_irqrestore(&lock, flags);
	tmem_count(&stats, fs ? TMEM_N_HITS : TMEM_N_MISSES);
	return fs ? 0 : -1;
}

/* ---- the work -------------------------------------------------------------------------------- */

/* The head of the queue: a put, the flush of a file, or flushes of pages of one file system. */
static u32 take_batch(struct entry **first)
{
	u64 features = READ_ONCE(the_channel->features);
	bool list = features & TMEM_FEATURE_LIST && features & TMEM_FEATURE_BATCH;
	struct entry *entry;
	u32 taken = 0;
	int i;

	spin_lock_irq(&lock);
	*first = list_first_entry_or_null(&queued, struct entry, link);
	if (!*first)
		goto out;
	list_for_each_entry(entry, &queued, link) {
		if (entry->kind != (*first)->kind || entry->number != (*first)->number)
			break;
		for (i = 0; i < 3; i++)
			items[taken].object[i] = cpu_to_le64(entry->object[i]);
		items[taken].index = cpu_to_le32(entry->index);
		entry->sending = true;
		taken++;
		if (entry->kind != FLUSH_PAGE || !list || taken == TMEM_BATCH_MAX)
			break;
	}
out:
	spin_unlock_irq(&lock);
	return taken;
}

static int send_batch(const struct entry *first, u32 taken)
{
	struct tmem_pool *pool = file_systems[first->number].pool;
	struct tmem_call call;
	u64 start = ktime_get_ns();
	int err;

	if (first->kind == PUT) {
		tmem_call_page(&call, TMEM_OP_PUT, pool, first->object, first->index, first->page);
	} else if (first->kind == FLUSH_OBJECT) {
		tmem_call_page(&call, TMEM_OP_FLUSH_OBJECT, pool, first->object, 0, NULL);
		call.request.count = 0;
	} else if (taken == 1) {
		tmem_call_page(&call, TMEM_OP_FLUSH_PAGE, pool, first->object, first->index, NULL);
	} else {
		tmem_call_list(&call, TMEM_OP_FLUSH_PAGE, pool, items, taken);
	}
	err = tmem_submit(the_channel, &call);
	if (err) {
		tmem_count(&stats, TMEM_N_CHANNEL_ERRORS);
		return err;
	}
	tmem_count_wait(&stats, first->kind == PUT ? TMEM_WAIT_PUT : TMEM_WAIT_FLUSH,
			ktime_get_ns() - start);
	if (first->kind == PUT) {
		/* refused: whatever was there is gone (rule 1) */
		if (tmem_call_status(&call) == TMEM_OK)
			tmem_count(&stats, TMEM_N_PUTS_DONE);
		else
			tmem_count_refusal(&stats, tmem_call_status(&call));
		return 0;
	}
	tmem_count(&stats, TMEM_N_FLUSH_REQUESTS);
	atomic_long_add(taken, &stats.counter[TMEM_N_FLUSHES_SENT]);
	return tmem_call_status(&call) == TMEM_OK ? 0 : -EPROTO;
}

static void release_batch(u32 taken, bool failed)
{
	struct entry *entry;

	spin_lock_irq(&lock);
	while (taken--) {
		entry = list_first_entry(&queued, struct entry, link);
		/* whether it was done is not known */
		if (failed)
			spoil(&file_systems[entry->number]);
		entry->sending = false;
		list_move(&entry->link, entry->page ? &free_puts : &free_flushes);
	}
	spin_unlock_irq(&lock);
}

/* With nothing queued for it that would still matter. Stays spoilt when the host cannot be told. */
static void renew(struct file_system *fs)
{
	struct tmem_call call;

	tmem_call_pool(&call, TMEM_OP_DESTROY_POOL, fs->pool);
	if (fs->pool->attached && tmem_submit(the_channel, &call))
		return;
	WRITE_ONCE(fs->pool->attached, false);
	fs->pool->attached_once = false;
	if (tmem_pool_attach(fs->pool, tmem_submit))
		return;
	spin_lock_irq(&lock);
	bitmap_zero(fs->pages, 1 << FILTER_BITS);
	bitmap_zero(fs->objects, 1 << FILTER_BITS);
	fs->spoilt = false;
	spin_unlock_irq(&lock);
}

static void forget(struct file_system *fs)
{
	struct tmem_pool *pool = fs->pool;
	unsigned long *pages = fs->pages, *objects = fs->objects;

	spin_lock_irq(&lock);
	memset(fs, 0, sizeof(*fs));
	spin_unlock_irq(&lock);
	tmem_pool_destroy(pool);
	kvfree(pages);
	kvfree(objects);
}

static void work_function(struct work_struct *unused)
{
	struct entry *first;
	u32 taken;
	int i;

	while ((taken = take_batch(&first))) {
		release_batch(taken, send_batch(first, taken));
		cond_resched();
	}
	for (i = 0; i < FILE_SYSTEMS; i++) {
		struct file_system *fs = &file_systems[i];
		bool spoilt, dying;

		spin_lock_irq(&lock);
		spoilt = fs->pool && fs->spoilt;
		dying = fs->pool && fs->dying;
		/* what was queued before is stale in a new pool; nothing more comes for this one */
		if ((spoilt || dying) && !list_empty(&queued)) {
			queue_work(tmem_wq, &work);
			spoilt = false;
			dying = false;
		}
		spin_unlock_irq(&lock);
		if (dying)
			forget(fs);
		else if (spoilt && tmem_channel_is_up(the_channel))
			renew(fs);
	}
}

static void resume(struct tmem_pool *pool)
{
	queue_work(tmem_wq, &work);
}

/* ---- file systems ---------------------------------------------------------------------------- */

static int source_init_fs(size_t page_size)
{
	/* "tmem-cc", and a number each */
	u64 uuid[2] = { 0x63632d6d656d74ULL, 0 };
	struct file_system made = { };
	int number, err;

	if (page_size != PAGE_SIZE)
		return -1;
	made.pages = kvcalloc(BITS_TO_LONGS(1 << FILTER_BITS), sizeof(long), GFP_KERNEL);
	made.objects = kvcalloc(BITS_TO_LONGS(1 << FILTER_BITS), sizeof(long), GFP_KERNEL);
	if (!made.pages || !made.objects)
		goto err_free;
	/* mounts and the work are the only ones that come and go, and a number is taken at once */
	spin_lock_irq(&lock);
	for (number = 0; number < FILE_SYSTEMS; number++)
		if (!file_systems[number].pool && !file_systems[number].dying)
			break;
	if (number < FILE_SYSTEMS)
		file_systems[number].dying = true;
	spin_unlock_irq(&lock);
	if (number == FILE_SYSTEMS)
		goto err_free;
	uuid[1] = number + 1;
	made.pool = tmem_pool_create(the_channel, &stats, uuid, 0);
	if (IS_ERR(made.pool))
		goto err_number;
	made.pool->resume = resume;
	err = tmem_pool_attach(made.pool, tmem_submit);
	/* a host that is away now may come */
	made.spoilt = err;
	spin_lock_irq(&lock);
	file_systems[number] = made;
	spin_unlock_irq(&lock);
	return number;

err_number:
	spin_lock_irq(&lock);
	file_systems[number].dying = false;
	spin_unlock_irq(&lock);
err_free:
	kvfree(made.pages);
	kvfree(made.objects);
	return -1;
}

/* Others write to its files, too: their kernels would have to share the pool. */
static int source_init_shared_fs(uuid_t *uuid, size_t page_size)
{
	return -1;
}

static void source_invalidate_fs(int number)
{
	spin_lock_irq(&lock);
	if (number >= 0 && number < FILE_SYSTEMS && file_systems[number].pool)
		file_systems[number].dying = true;
	spin_unlock_irq(&lock);
	queue_work(tmem_wq, &work);
}

static const struct cleancache_ops operations = {
	.init_fs = source_init_fs,
	.init_shared_fs = source_init_shared_fs,
	.get_page = source_get,
	.put_page = source_put,
	.invalidate_page = source_invalidate_page,
	.invalidate_inode = source_invalidate_inode,
	.invalidate_fs = source_invalidate_fs,
};

/* ---- life ------------------------------------------------------------------------------------ */

int tmem_cleancache_init(struct tmem_channel *channel)
{
	unsigned int i;

	if (!cleancache)
		return 0;
	the_channel = channel;
	if (!cleancache_puts || cleancache_puts > 1 << 20)
		return -EINVAL;
	entries = kvcalloc(cleancache_puts + FLUSHES, sizeof(*entries), GFP_KERNEL);
	items = kcalloc(TMEM_BATCH_MAX, sizeof(*items), GFP_KERNEL);
	if (!entries || !items)
		goto err_exit;
	for (i = 0; i < cleancache_puts + FLUSHES; i++)
		list_add_tail(&entries[i].link, i < cleancache_puts ? &free_puts : &free_flushes);
	for (i = 0; i < cleancache_puts; i++) {
		entries[i].page = alloc_page(GFP_KERNEL);
		if (!entries[i].page)
			goto err_exit;
	}
	tmem_debugfs_add(&stats);
	return 0;

err_exit:
	tmem_cleancache_exit();
	return -ENOMEM;
}

/* Only before registration. */
void tmem_cleancache_exit(void)
{
	unsigned int i;

	for (i = 0; entries && i < cleancache_puts; i++)
		if (entries[i].page)
			__free_page(entries[i].page);
	kvfree(entries);
	kfree(items);
}

void tmem_cleancache_register(void)
{
	if (!cleancache)
		return;
	__module_get(THIS_MODULE);
	if (cleancache_register_ops(&operations)) {
		pr_err("somebody else has cleancache\n");
		module_put(THIS_MODULE);
	}
}
