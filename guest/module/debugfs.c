// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counters in debugfs: one file for each source and one for the channel, a name and a number a
 * line.
 */
#include <linux/debugfs.h>
#include <linux/log2.h>
#include <linux/seq_file.h>

#include "tmem.h"

static const char *const counter_names[TMEM_N_COUNTERS] = {
	[TMEM_N_PUTS] = "puts",
	[TMEM_N_PUTS_DONE] = "puts_done",
	[TMEM_N_GETS] = "gets",
	[TMEM_N_HITS] = "hits",
	[TMEM_N_MISSES] = "misses",
	[TMEM_N_ZEROES] = "zeroes",
	[TMEM_N_LOST] = "lost",
	[TMEM_N_NO_ROOM] = "no_room",
	[TMEM_N_OVER_CAP] = "over_cap",
	[TMEM_N_FROZEN] = "frozen",
	[TMEM_N_REFUSED] = "refused",
	[TMEM_N_DROPPED] = "dropped",
	[TMEM_N_CHANNEL_ERRORS] = "channel_errors",
	[TMEM_N_FLUSHES_QUEUED] = "flushes_queued",
	[TMEM_N_FLUSHES_NEEDLESS] = "flushes_needless",
	[TMEM_N_FLUSHES_OVERTAKEN] = "flushes_overtaken",
	[TMEM_N_FLUSHES_SENT] = "flushes_sent",
	[TMEM_N_FLUSH_REQUESTS] = "flush_requests",
	[TMEM_N_FLUSH_WAITS] = "flush_waits",
	[TMEM_N_INJECTED] = "injected",
};

static const char *const channel_counter_names[TMEM_C_COUNTERS] = {
	[TMEM_C_REQUESTS] = "requests",
	[TMEM_C_ERRORS] = "errors",
	[TMEM_C_BAD_REPLIES] = "bad_replies",
	[TMEM_C_STARTS] = "starts",
	[TMEM_C_KICKS] = "kicks",
	[TMEM_C_POLLED] = "polled",
	[TMEM_C_SLEPT] = "slept",
	[TMEM_C_FULL] = "full",
	[TMEM_C_REPEATED] = "repeated",
};

static const char *const wait_names[TMEM_WAITS] = {
	[TMEM_WAIT_PUT] = "wait_put_ns",
	[TMEM_WAIT_GET] = "wait_get_ns",
	[TMEM_WAIT_FLUSH] = "wait_flush_ns",
};

static struct dentry *folder;

void tmem_count_wait(struct tmem_stats *stats, enum tmem_wait which, u64 ns)
{
	int bucket = ns < 1024 ? 0 : ilog2(ns) - 9;

	atomic_long_inc(&stats->wait[which][min(bucket, TMEM_WAIT_BUCKETS - 1)]);
}

void tmem_count_refusal(struct tmem_stats *stats, u32 status)
{
	switch (status) {
	case TMEM_NO_ROOM:
		tmem_count(stats, TMEM_N_NO_ROOM);
		break;
	case TMEM_OVER_CAP:
		tmem_count(stats, TMEM_N_OVER_CAP);
		break;
	case TMEM_FROZEN:
		tmem_count(stats, TMEM_N_FROZEN);
		break;
	default:
		tmem_count(stats, TMEM_N_REFUSED);
	}
}

static int version_show(struct seq_file *out, void *unused)
{
	seq_printf(out, "module %s\nabi %u\n", TMEM_MODULE_VERSION, TMEM_ABI_VERSION);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(version);

static int source_show(struct seq_file *out, void *unused)
{
	struct tmem_stats *stats = out->private;
	int i, j;

	for (i = 0; i < TMEM_N_COUNTERS; i++)
		seq_printf(out, "%s %ld\n", counter_names[i], atomic_long_read(&stats->counter[i]));
	/* name, then pairs of an upper bound and a count; empty buckets are left out */
	for (i = 0; i < TMEM_WAITS; i++) {
		seq_puts(out, wait_names[i]);
		for (j = 0; j < TMEM_WAIT_BUCKETS; j++) {
			long count = atomic_long_read(&stats->wait[i][j]);

			if (count)
				seq_printf(out, " %llu:%ld", 1024ULL << j, count);
		}
		seq_putc(out, '\n');
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(source);

static int channel_show(struct seq_file *out, void *unused)
{
	static const char *const states[] = { "down", "starting", "up" };
	struct tmem_channel *channel = out->private;
	int i;

	seq_printf(out, "name %s\n", channel->ops->name);
	seq_printf(out, "state %s\n", states[READ_ONCE(channel->state)]);
	seq_printf(out, "features %#llx\n", READ_ONCE(channel->features));
	for (i = 0; i < TMEM_C_COUNTERS; i++)
		seq_printf(out, "%s %ld\n", channel_counter_names[i],
			   atomic_long_read(&channel->counter[i]));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(channel);

void tmem_debugfs_add(struct tmem_stats *stats)
{
	debugfs_create_file(stats->name, 0444, folder, stats, &source_fops);
}

void tmem_debugfs_add_channel(struct tmem_channel *channel)
{
	debugfs_create_file("channel", 0444, folder, channel, &channel_fops);
}

void tmem_debugfs_init(void)
{
	folder = debugfs_create_dir("tmem", NULL);
	debugfs_create_file("version", 0444, folder, NULL, &version_fops);
}

void tmem_debugfs_exit(void)
{
	debugfs_remove_recursive(folder);
}
