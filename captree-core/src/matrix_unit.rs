//! Whether this process may use the matrix unit of x86-64, AMX: Linux gives its registers to a process that asks for
//! them, and may refuse.

#![allow(unsafe_code)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// Bits of the processor's features (leaf 7, edx): that it has the registers, and multiplies bytes in them.
    const TILES: u32 = 1 << 24;
    const BYTES: u32 = 1 << 25;

    /// Numbers of the system call, of its request, and of the registers' state.
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;

    pub(crate) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            let wanted = TILES | BYTES;
            __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted && request()
        })
    }

    fn request() -> bool {
        let answer: i64;
        // SAFETY: a system call that changes nothing but which registers the process may use; the kernel overwrites rcx
        // and r11. Kernels that do not know the request refuse it.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => answer,
                in("rdi") REQUEST_PERMISSION,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        answer == 0
    }
}

/// Whether the processor has the unit for bytes, and this process may use it: asked for once.
pub(crate) fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return linux::is_available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return false;
}
