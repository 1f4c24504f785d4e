//! The types an array can hold, and how NumPy calls them.

use bytemuck::Pod;

/// A NumPy dtype, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// A plain number, such as `<f4`.
    Scalar(&'static str),
    /// A packed record: field names and their scalar dtypes, in memory order.
    Record(&'static [(&'static str, &'static str)]),
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::Scalar(code) => scalar_size(code),
            Dtype::Record(fields) => {
                let (mut total, mut i) = (0, 0);
                while i < fields.len() {
                    total += scalar_size(fields[i].1);
                    i += 1;
                }
                total
            }
        }
    }

    /// As the manifest shows it: `<f4`, or `[('parent', '<i8'), ('rows', '<i8')]`.
    pub fn name(self) -> String {
        match self {
            Dtype::Scalar(code) => code.to_owned(),
            Dtype::Record(fields) => {
                let fields: Vec<String> = fields.iter().map(|(name, code)| format!("('{name}', '{code}')")).collect();
                format!("[{}]", fields.join(", "))
            }
        }
    }

    /// The Python literal of a `.npy` header's `descr`.
    pub(super) fn literal(self) -> String {
        match self {
            Dtype::Scalar(code) => format!("'{code}'"),
            Dtype::Record(_) => self.name(),
        }
    }
}

/// Bytes of a scalar code such as `<f4`: its last digit.
const fn scalar_size(code: &str) -> usize {
    let code = code.as_bytes();
    assert!(code.len() == 3 && code[2].is_ascii_digit(), "a scalar dtype is byte order, kind, one digit");
    (code[2] - b'0') as usize
}

/// A type whose arrays can be stored: plain old data with a NumPy dtype.
///
/// Implement it for a `#[repr(C)]` [`Pod`] struct by naming its fields; that the sizes agree is checked at compile
/// time.
///
/// ```
/// use captree_core::store::{Dtype, Element};
///
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// #[repr(C)]
/// struct Node {
///     parent: i64,
///     rows: i64,
/// }
///
/// impl Element for Node {
///     const DTYPE: Dtype = Dtype::Record(&[("parent", "<i8"), ("rows", "<i8")]);
/// }
/// ```
pub trait Element: Pod + Send + Sync {
    /// The dtype under which arrays of this type are stored.
    const DTYPE: Dtype;
}

macro_rules! scalars {
    ($($type:ty => $code:literal),* $(,)?) => {$(
        impl Element for $type {
            const DTYPE: Dtype = Dtype::Scalar($code);
        }
    )*};
}

scalars! {
    i8 => "|i1", u8 => "|u1", i16 => "<i2", u16 => "<u2", i32 => "<i4", u32 => "<u4", i64 => "<i8", u64 => "<u8",
    half::f16 => "<f2", f32 => "<f4", f64 => "<f8",
}
