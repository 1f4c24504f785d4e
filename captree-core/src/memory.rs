//! Memory whose size a caller chooses: asked for politely, so that too much is an error and not the end of the process.

use crate::error::{Error, Result};

/// `rows * columns` copies of a value. Errors: [`Error::MemoryLimit`] if the system has no room for them.
pub(crate) fn filled<T: Clone>(rows: usize, columns: usize, value: T) -> Result<Vec<T>> {
    let mut out = Vec::new();
    let room = rows.checked_mul(columns).is_some_and(|len| out.try_reserve_exact(len).is_ok());
    if !room {
        let bytes = rows as u128 * columns as u128 * size_of::<T>() as u128;
        return Err(Error::MemoryLimit(format!("expected an answer that fits in memory, got {bytes} bytes")));
    }
    out.resize(rows * columns, value);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_an_error() {
        assert_eq!(filled(2, 3, 7).unwrap(), [7; 6]);
        assert!(matches!(filled(usize::MAX, 2, 0i64), Err(Error::MemoryLimit(_))));
        assert!(matches!(filled(1, usize::MAX / 16, 0i64), Err(Error::MemoryLimit(_))));
    }
}
