// SPDX-License-Identifier: Apache-2.0
// The least that can be written around KVM_RUN: six bytes of real-mode guest that do nothing but exit
// on a port, and a loop that reads the time stamp counter at each. It shares no line with the bench
// it is a check of.
//
//   exit-reference WARMUP SAMPLES CPU
//
// Prints the ticks of each sample, one a line.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <x86intrin.h>

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static const uint8_t guest[] = { 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd };
	struct kvm_userspace_memory_region region = { .memory_size = 0x1000 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0, .rflags = 2 };
	long warmup, samples, i;
	int kvm, vm, vcpu, size;
	struct kvm_run *run;
	uint64_t *ticks, last = 0;
	cpu_set_t set;
	void *memory;

	if (argc != 4) {
		fprintf(stderr, "usage: exit-reference WARMUP SAMPLES CPU\n");
		return 2;
	}
	warmup = atol(argv[1]);
	samples = atol(argv[2]);
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[3]), &set);
	need(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
	ticks = calloc(samples, sizeof(*ticks));
	memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ticks && memory != MAP_FAILED, "memory");
	memcpy(memory, guest, sizeof(guest));
	region.userspace_addr = (uintptr_t)memory;

	need((kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) >= 0, "/dev/kvm");
	need((vm = ioctl(kvm, KVM_CREATE_VM, 0)) >= 0, "KVM_CREATE_VM");
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
	need((vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)) >= 0, "KVM_CREATE_VCPU");
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "the vCPU's mapping");
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");

	for (i = -warmup - 1; i < samples; i++) {
		uint64_t now;

		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "the guest left with reason %u\n", run->exit_reason);
			return 1;
		}
		now = __rdtsc();
		if (i >= 0)
			ticks[i] = now - last;
		last = now;
	}
	for (i = 0; i < samples; i++)
		printf("%llu\n", (unsigned long long)ticks[i]);
	return 0;
}
