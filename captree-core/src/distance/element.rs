//! Coordinates as the loops read them.

use half::f16;

use super::{Kernels, Loops, Simd};

/// A stored coordinate: [`f16`] or `f32`.
pub(crate) trait Element: crate::store::Element {
    /// The value, exactly.
    fn to_f32(self) -> f32;

    /// Converts a whole row exactly.
    fn widen(row: &[Self], out: &mut [f32]);

    /// Loads one register.
    ///
    /// # Safety
    /// As for the instruction set's loads.
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;

    /// The loops for rows of this type.
    fn loops(kernels: &Kernels) -> Loops<Self>;
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn widen(row: &[Self], out: &mut [f32]) {
        half::slice::HalfFloatSliceExt::convert_to_f32_slice(row, out);
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: `S::load_f16` reads LANES elements with the instructions of `S`, which is what `load` asks for.
        unsafe { S::load_f16(p) }
    }

    fn loops(kernels: &Kernels) -> Loops<Self> {
        kernels.f16
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn widen(row: &[Self], out: &mut [f32]) {
        out.copy_from_slice(row);
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: `S::load_f32` reads LANES elements with the instructions of `S`, which is what `load` asks for.
        unsafe { S::load_f32(p) }
    }

    fn loops(kernels: &Kernels) -> Loops<Self> {
        kernels.f32
    }
}
