//! Element types of stored vectors.

pub(crate) use crate::distance::Element;

/// How a tree stores its vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// IEEE half precision: 2 bytes per coordinate.
    Float16,
    /// IEEE single precision: 4 bytes per coordinate.
    Float32,
}

impl Storage {
    /// numpy's name of the dtype.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Float16 => "float16",
            Storage::Float32 => "float32",
        }
    }

    /// Bytes per coordinate.
    pub fn bytes(self) -> usize {
        match self {
            Storage::Float16 => 2,
            Storage::Float32 => 4,
        }
    }
}
