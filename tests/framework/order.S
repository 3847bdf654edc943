/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firmware of a machine without a guest: for each turn its vCPU writes one word, then looks at another, with the barrier
 * between that Linux has there on x86 (smp_mb()). The host does the reverse; see order.c.
 *
 * How it gets there is as in poke.S.
 */
	.set base, 0xf0000	/* where it is; symbols count from there */
	.set turn, 0x10000	/* a page each: no two share a cache line */
	.set mine, 0x11000
	.set theirs, 0x12000
	.set seen, 0x13000
	.set done, 0x14000
	.set stack, 0x8000

	.text
	.code16
start:
	cli
	lgdtl	%cs:table_at
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$8, $(flat + base)

	.code32
flat:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
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

	.balign	8
segments:
	.quad	0
	.quad	0x00cf9a000000ffff	/* code */
	.quad	0x00cf92000000ffff	/* data */
table_at:
	.word	. - segments - 1
	.long	segments + base

	.org	0xfff0
	.code16
	ljmpw	$0xf000, $start
	.org	0x10000
