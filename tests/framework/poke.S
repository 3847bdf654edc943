/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firmware of a machine without a guest: its vCPU reads and writes what a mailbox in memory names. See bare_machine.py.
 */
#include "firmware.h"

	.set asked, 0x7000	/* a byte: the turn that is asked for */
	.set done, 0x7004	/* a byte: the last that was done */
	.set what, 0x7008	/* index in the table below */
	.set where, 0x700c
	.set value, 0x7010	/* to be written, or read */

	ENTER
1:	movb	asked, %bl
	cmpb	done, %bl
	jne	2f
	pause
	jmp	1b
2:	movl	what, %ecx
	movl	where, %edx
	movl	value, %eax
	jmp	*actions + base(, %ecx, 4)

port_in_1:	inb	%dx, %al
	jmp	answer
port_in_2:	inw	%dx, %ax
	jmp	answer
port_in_4:	inl	%dx, %eax
	jmp	answer
port_out_1:	outb	%al, %dx
	jmp	answer
port_out_2:	outw	%ax, %dx
	jmp	answer
port_out_4:	outl	%eax, %dx
	jmp	answer
read_1:	movb	(%edx), %al
	jmp	answer
read_2:	movw	(%edx), %ax
	jmp	answer
read_4:	movl	(%edx), %eax
	jmp	answer
write_1:	movb	%al, (%edx)
	jmp	answer
write_2:	movw	%ax, (%edx)
	jmp	answer
write_4:	movl	%eax, (%edx)
answer:
	movl	%eax, value
	movb	%bl, done
	jmp	1b

	.balign	8
actions:
	.long	port_in_1 + base, port_in_2 + base, port_in_4 + base
	.long	port_out_1 + base, port_out_2 + base, port_out_4 + base
	.long	read_1 + base, read_2 + base, read_4 + base
	.long	write_1 + base, write_2 + base, write_4 + base
	TABLES
