//! Whether this process may use the matrix unit of x86-64, AMX: Linux gives its registers to a process that asks for
//! them, and may refuse.

#![allow(unsafe_code)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// Bits of the processor's features (leaf 7, edx): that it has the registers, and multiplies bytes in them.
    const TILES: u32 = 1 << 24;
    const BYTES: u32 = 1 << 25;

    /// Numbers of the request, and of the registers' state.
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    pub(crate) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            let wanted = TILES | BYTES;
            __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted && request()
        })
    }

    fn request() -> bool {
        // SAFETY: changes nothing but which registers the process may use. Kernels that do not know the request refuse
        // it.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
    }
}

/// Whether the processor has the unit for bytes, and this process may use it: asked for once.
pub(crate) fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return linux::is_available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return false;
}
