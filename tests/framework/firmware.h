/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firmware of a machine without a guest, for poke.S and order.S: 64 KiB below 1 MiB, where the vCPU comes to in 16-bit
 * mode at its last 16 bytes. ENTER goes on from there with flat segments of 4 GiB, no paging, no interrupts and no
 * stack; TABLES is what that takes, and ends the file.
 */
	.set base, 0xf0000	/* where it is; symbols count from there */

	.macro	ENTER
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
	.endm

	.macro	TABLES
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
	.endm
