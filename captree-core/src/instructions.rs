//! Which instruction set the kernels use: the best that this CPU has or, for tests and benchmarks, the one that the
//! environment variable `CAPTREE_KERNELS` names. No answer depends on it.

use std::sync::OnceLock;

use crate::error::{Error, Result};

const VARIABLE: &str = "CAPTREE_KERNELS";

/// What may be asked for, and whether this CPU has all of it that any kernel wants.
fn known() -> [(&'static str, bool); 5] {
    #[cfg(target_arch = "x86_64")]
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    #[cfg(target_arch = "x86_64")]
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("bmi2");
    #[cfg(not(target_arch = "x86_64"))]
    let (avx2, avx512) = (false, false);
    let neon = cfg!(all(target_arch = "aarch64", target_endian = "little"));
    let amx = avx512 && crate::matrix_unit::is_available();
    [("portable", true), ("avx2", avx2), ("avx512", avx512), ("amx", amx), ("neon", neon)]
}

/// The name that was asked for, if one was. Read once: what runs never changes while the process lives.
fn asked() -> Option<&'static str> {
    static ASKED: OnceLock<Option<String>> = OnceLock::new();
    ASKED.get_or_init(|| std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())).as_deref()
}

/// Fails if something was asked for that this CPU has not.
pub(crate) fn check() -> Result<()> {
    let Some(name) = asked() else { return Ok(()) };
    if known().contains(&(name, true)) {
        return Ok(());
    }
    let here: Vec<&str> = known().into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    Err(Error::parameter(VARIABLE, format!("one of {} on this processor", here.join(", ")), name))
}

/// The first kernels, or the first ones of the instruction set that was asked for. The last ones run anywhere.
pub(crate) fn choose<K: Copy>(available: &[K], name: impl Fn(&K) -> &'static str) -> K {
    let last = available[available.len() - 1];
    match asked() {
        None => available[0],
        Some(asked) => {
            let named = |start: &str| available.iter().copied().find(|kernels| name(kernels).starts_with(start));
            // Only some kernels use the matrix unit; the others are those of the processors that have one.
            let instead = || if asked == "amx" { named("avx512") } else { None };
            named(asked).or_else(instead).unwrap_or(last)
        }
    }
}
