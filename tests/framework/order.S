/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firmware of a machine without a guest: for each turn its vCPU writes one word, then looks at another, with the barrier
 * between that Linux has there on x86 (smp_mb()). The host does the reverse; see order.c.
 */
#include "firmware.h"

	.set turn, 0x10000	/* a page each: no two share a cache line */
	.set mine, 0x11000
	.set theirs, 0x12000
	.set seen, 0x13000
	.set done, 0x14000
	.set stack, 0x8000

	ENTER
	movl	$stack, %esp
	xorl	%ebx, %ebx
1:	movl	turn, %eax
	cmpl	%eax, %ebx
	je	1b
	movl	%eax, %ebx
	movl	%ebx, mine
	lock addl $0, -4(%esp)
	movl	theirs, %ecx
	movl	%ecx, seen
	movl	%ebx, done
	jmp	1b

	TABLES
