// SPDX-License-Identifier: Apache-2.0
//! The guest of a fleet: plays its trace for ever, computes between requests, and writes to each
//! page before it goes, so that what comes back can be told from what was there before.

use super::trace::Op;
use crate::asm::Asm;
use crate::kinds::{ANSWER_OFFSET, Program, wait_halted};
use crate::machine::{PORT, place};
use crate::memory::{Memory, PAGE};

/// Where the number of a request lies that another thread serves, after the request itself.
const NUMBER_OFFSET: i8 = 8;
/// As an address.
pub const NUMBER: usize = place::REQUEST + NUMBER_OFFSET as usize;

/// Address of a frame.
pub fn frame_at(frame: u32) -> usize {
    place::PAGES + frame as usize * PAGE
}

/// Address of the trace, after the frames.
fn trace_at(frames: u32) -> usize {
    frame_at(frames)
}

/// Bytes of memory that a guest needs.
pub fn memory_len(frames: u32, trace: usize) -> usize {
    (trace_at(frames) + trace * 8).next_multiple_of(PAGE)
}

/// Writes the trace: in each entry the request, and in the upper half the frame's address.
pub fn write_trace(memory: &Memory, frames: u32, ops: &[Op]) {
    for (i, op) in ops.iter().enumerate() {
        let entry = (frame_at(op.frame) as u64) << 32 | u64::from(op.word());
        memory.write_u64(trace_at(frames) + i * 8, entry);
    }
}

/// The program. `loops`: turns of an empty loop between two requests; `waits`: requests are served by
/// another thread, and the guest halts meanwhile.
pub fn program(frames: u32, ops: usize, loops: u32, waits: bool) -> Program {
    let start = trace_at(frames) as u32;
    let end = start + ops as u32 * 8;
    let mut a = Asm::new();
    a.mov_esi(start).zero_ebp().mov_ebx(place::REQUEST as u32).mov_edx(PORT.into());
    let next = a.label();
    a.load_rax_rsi().add_rsi(8).cmp_esi(end);
    let over = a.jnz_forward();
    a.mov_esi(start).land(over);
    // The page changes: a put sends something that was never sent before.
    a.mov_rdi_rax().shr_rdi_32().inc_at_rdi();
    compute(&mut a, loops);
    let mut handler = 0;
    if waits {
        a.store_rbx_eax().inc_ebp().mov_eax_ebp().store_rbx_at_eax(NUMBER_OFFSET).out_dx_eax();
        handler = wait_halted(&mut a, next);
    } else {
        a.out_dx_eax().jmp(next);
    }
    debug_assert_eq!(ANSWER_OFFSET as usize, place::ANSWER - place::REQUEST);
    Program { code: a, handler }
}

fn compute(a: &mut Asm, loops: u32) {
    if loops > 0 {
        a.mov_ecx(loops);
        let top = a.label();
        a.dec_ecx().jnz(top);
    }
}

/// A program that only computes, `loops` turns for each exit: how long a turn takes is measured.
pub fn computing(loops: u32) -> Asm {
    let mut a = Asm::new();
    a.mov_edx(PORT.into());
    let again = a.label();
    compute(&mut a, loops);
    a.out_dx_eax().jmp(again);
    a
}
