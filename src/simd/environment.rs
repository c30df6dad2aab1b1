//! The floating-point environment: rounding, subnormals, exceptions. A host may have set another than the default one, and
//! threads inherit that of whoever starts them.
//!
//! x86 (MXCSR) and aarch64 (FPCR) are looked after; elsewhere, and under Miri, the environment is taken to be the default.

/// Runs `f` in the default environment: round to nearest, subnormals kept, no exception trapped. The caller's environment
/// comes back afterwards, on unwinding too, with its sticky flags as they were: `f` raises none that a host could see.
///
/// The pointer to `f` goes through the assembly and `f` runs behind a call, so the compiler moves no arithmetic of `f` out.
#[inline]
pub fn in_default(f: impl FnOnce()) {
    let mut f = Some(f);
    let pointer = (&raw mut f).cast::<()>();
    let _restore = Restore { saved: registers::enter(pointer), pointer };
    invoke(&mut f);
}

#[inline(never)]
fn invoke(f: &mut Option<impl FnOnce()>) {
    if let Some(f) = f.take() {
        f();
    }
}

struct Restore {
    saved: registers::Saved,
    pointer: *mut (),
}

impl Drop for Restore {
    fn drop(&mut self) {
        registers::leave(self.saved, self.pointer);
    }
}

#[cfg(all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse", not(miri)))]
mod registers {
    use std::arch::asm;

    /// MXCSR.
    pub type Saved = u32;

    /// All exceptions masked, round to nearest, neither FTZ nor DAZ.
    const DEFAULT: u32 = 0x1F80;
    /// The sticky flags, which change no result.
    const FLAGS: u32 = 0x3F;

    #[inline]
    pub fn enter(pointer: *mut ()) -> Saved {
        let mut saved = 0u32;
        // SAFETY: the instruction writes the four bytes of `saved`.
        unsafe {
            asm!("stmxcsr [{}] /* {} */", in(reg) &raw mut saved, in(reg) pointer, options(nostack, preserves_flags));
        }
        // Reading costs less than writing.
        if saved & !FLAGS != DEFAULT {
            load(DEFAULT, pointer);
        }
        saved
    }

    #[inline]
    pub fn leave(saved: Saved, pointer: *mut ()) {
        load(saved, pointer);
    }

    #[inline]
    fn load(value: u32, pointer: *mut ()) {
        // SAFETY: the value is the default, which Rust code counts on, or what was there when that code was called.
        unsafe {
            asm!("ldmxcsr [{}] /* {} */", in(reg) &raw const value, in(reg) pointer, options(nostack, preserves_flags));
        }
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod registers {
    use std::arch::asm;

    /// FPCR and FPSR.
    pub type Saved = [u64; 2];

    #[inline]
    pub fn enter(pointer: *mut ()) -> Saved {
        let (control, flags): (u64, u64);
        // SAFETY: the instructions read two registers.
        unsafe {
            asm!(
                "mrs {}, fpcr", "mrs {}, fpsr /* {} */", out(reg) control, out(reg) flags, in(reg) pointer,
                options(nostack, preserves_flags)
            );
        }
        // Reading costs less than writing.
        if control != 0 {
            load_control(0, pointer);
        }
        [control, flags]
    }

    #[inline]
    pub fn leave([control, flags]: Saved, pointer: *mut ()) {
        if control != 0 {
            load_control(control, pointer);
        }
        // SAFETY: the flags are what was there when the code was called.
        unsafe {
            asm!("msr fpsr, {} /* {} */", in(reg) flags, in(reg) pointer, options(nostack, preserves_flags));
        }
    }

    #[inline]
    fn load_control(value: u64, pointer: *mut ()) {
        // SAFETY: the value is the default, which Rust code counts on, or what was there when that code was called.
        unsafe {
            asm!("msr fpcr, {} /* {} */", in(reg) value, in(reg) pointer, options(nostack, preserves_flags));
        }
    }
}

#[cfg(any(
    miri,
    not(any(
        all(any(target_arch = "x86", target_arch = "x86_64"), target_feature = "sse"),
        target_arch = "aarch64"
    ))
))]
mod registers {
    /// Nothing.
    pub type Saved = ();

    pub fn enter(_: *mut ()) -> Saved {}

    pub fn leave((): Saved, _: *mut ()) {}
}
