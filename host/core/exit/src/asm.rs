// SPDX-License-Identifier: Apache-2.0
//! The few instructions that guests run, as bytes. Encodings are from the Intel SDM, volume 2.
//!
//! Jumps are short: a program has a few dozen bytes.

/// A program under construction.
#[derive(Default, Clone)]
pub struct Asm {
    bytes: Vec<u8>,
}

/// A place in a program.
#[derive(Clone, Copy)]
pub struct Label(usize);

/// A jump whose target is not known yet.
#[must_use]
pub struct Forward(usize);

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = [$($byte:expr),+];)+) => {
        $($(#[$doc])* pub fn $name(&mut self) -> &mut Self { self.raw(&[$($byte),+]) })+
    };
}

impl Asm {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn with_u32(&mut self, opcode: &[u8], value: u32) -> &mut Self {
        self.raw(opcode).raw(&value.to_le_bytes())
    }

    fn with_u16(&mut self, opcode: &[u8], value: u16) -> &mut Self {
        self.raw(opcode).raw(&value.to_le_bytes())
    }

    plain! {
        /// `out dx, al`
        out_dx_al = [0xee];
        /// `out dx, eax` (32- and 64-bit code)
        out_dx_eax = [0xef];
        /// `in al, dx`
        in_al_dx = [0xec];
        /// `cpuid`
        cpuid = [0x0f, 0xa2];
        /// `vmcall` (Intel)
        vmcall = [0x0f, 0x01, 0xc1];
        /// `vmmcall` (AMD)
        vmmcall = [0x0f, 0x01, 0xd9];
        /// `nop`
        nop = [0x90];
        /// `pause`
        pause = [0xf3, 0x90];
        /// `hlt`
        hlt = [0xf4];
        /// `cli`
        cli = [0xfa];
        /// `sti`
        sti = [0xfb];
        /// `iretq`
        iretq = [0x48, 0xcf];
        /// `xor eax, eax`
        zero_eax = [0x31, 0xc0];
        /// `inc eax`
        inc_eax = [0xff, 0xc0];
        /// `inc ebp`
        inc_ebp = [0xff, 0xc5];
        /// `xor ebp, ebp`
        zero_ebp = [0x31, 0xed];
        /// `mov eax, ebp`
        mov_eax_ebp = [0x89, 0xe8];
        /// `mov rdi, rax`
        mov_rdi_rax = [0x48, 0x89, 0xc7];
        /// `shr rdi, 32`
        shr_rdi_32 = [0x48, 0xc1, 0xef, 0x20];
        /// `inc qword [rdi]`
        inc_at_rdi = [0x48, 0xff, 0x07];
        /// `dec ecx`
        dec_ecx = [0xff, 0xc9];
        /// `dec esi`
        dec_esi = [0xff, 0xce];
        /// `dec si` in 16-bit code
        dec_si = [0x4e];
        /// `mov [rbx], eax`
        store_rbx_eax = [0x89, 0x03];
        /// `mov [rbx], rax`
        store_rbx_rax = [0x48, 0x89, 0x03];
        /// `mov [rdi], eax`
        store_rdi_eax = [0x89, 0x07];
        /// `mov rax, [rsi]`
        load_rax_rsi = [0x48, 0x8b, 0x06];
        /// `mov [0], al` through ds, in 16-bit code
        store_ds0_al = [0xa2, 0x00, 0x00];
    }

    /// `mov [rbx + offset], eax`
    pub fn store_rbx_at_eax(&mut self, offset: i8) -> &mut Self {
        self.raw(&[0x89, 0x43, offset as u8])
    }

    /// `mov [rbx + offset], rax`
    pub fn store_rbx_at_rax(&mut self, offset: i8) -> &mut Self {
        self.raw(&[0x48, 0x89, 0x43, offset as u8])
    }

    /// `mov qword [rbx + offset], value` (sign-extended)
    pub fn store_rbx_at_imm(&mut self, offset: i8, value: u32) -> &mut Self {
        self.with_u32(&[0x48, 0xc7, 0x43, offset as u8], value)
    }

    /// `cmp [rbx + offset], eax`
    pub fn cmp_rbx_at_eax(&mut self, offset: i8) -> &mut Self {
        self.raw(&[0x39, 0x43, offset as u8])
    }

    /// `mov eax, value`
    pub fn mov_eax(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0xb8], value)
    }

    /// `mov ecx, value`
    pub fn mov_ecx(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0xb9], value)
    }

    /// `mov edx, value`
    pub fn mov_edx(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0xba], value)
    }

    /// `mov ebx, value` (clears the upper half of rbx)
    pub fn mov_ebx(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0xbb], value)
    }

    /// `mov esi, value` (clears the upper half of rsi)
    pub fn mov_esi(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0xbe], value)
    }

    /// `mov edi, value` (clears the upper half of rdi)
    pub fn mov_edi(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0xbf], value)
    }

    /// `mov dx, value` in 16-bit code
    pub fn mov_dx(&mut self, value: u16) -> &mut Self {
        self.with_u16(&[0xba], value)
    }

    /// `mov si, value` in 16-bit code
    pub fn mov_si(&mut self, value: u16) -> &mut Self {
        self.with_u16(&[0xbe], value)
    }

    /// `add rsi, value`
    pub fn add_rsi(&mut self, value: i8) -> &mut Self {
        self.raw(&[0x48, 0x83, 0xc6, value as u8])
    }

    /// `cmp esi, value`
    pub fn cmp_esi(&mut self, value: u32) -> &mut Self {
        self.with_u32(&[0x81, 0xfe], value)
    }

    /// Here.
    pub fn label(&self) -> Label {
        Label(self.bytes.len())
    }

    fn jump(&mut self, opcode: u8, to: Label) -> &mut Self {
        let distance = to.0 as isize - (self.bytes.len() as isize + 2);
        debug_assert!((-128..128).contains(&distance));
        self.raw(&[opcode, distance as i8 as u8])
    }

    /// `jmp to`
    pub fn jmp(&mut self, to: Label) -> &mut Self {
        self.jump(0xeb, to)
    }

    /// `jnz to` (also `jne`)
    pub fn jnz(&mut self, to: Label) -> &mut Self {
        self.jump(0x75, to)
    }

    /// `jz to` (also `je`)
    pub fn jz(&mut self, to: Label) -> &mut Self {
        self.jump(0x74, to)
    }

    /// `jnz` to a place further on.
    pub fn jnz_forward(&mut self) -> Forward {
        self.raw(&[0x75, 0]);
        Forward(self.bytes.len())
    }

    /// The jump goes here.
    pub fn land(&mut self, from: Forward) -> &mut Self {
        let distance = self.bytes.len() - from.0;
        debug_assert!(distance < 128);
        self.bytes[from.0 - 1] = distance as u8;
        self
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_guest_is_six_bytes() {
        let mut a = Asm::new();
        a.mov_dx(0x3f8);
        let top = a.label();
        a.out_dx_al().jmp(top);
        assert_eq!(a.bytes(), [0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd]);
    }

    #[test]
    fn forward_jumps_land_where_they_are_told() {
        let mut a = Asm::new();
        let over = a.jnz_forward();
        a.nop().nop().land(over).hlt();
        assert_eq!(a.bytes(), [0x75, 2, 0x90, 0x90, 0xf4]);
    }
}
