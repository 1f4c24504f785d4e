//! Which branches of the code ran, where it was compiled to count them (`make fuzz`: `-C passes=sancov-module`).
//! Without that the counters are none, and cases are tried blindly.

#![allow(unsafe_code)]

use std::sync::Mutex;

/// Counters of one object file: where they start, and how many they are.
static REGIONS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by the constructors that the compiler adds, before `main`.
///
/// # Safety
/// `start..stop` are the bytes of counters that live as long as the program.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    if let Ok(mut regions) = REGIONS.lock() {
        regions.push((start as usize, stop as usize - start as usize));
    }
}

/// Told where the counted code is, which nobody asks here.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_pcs_init(_start: *const usize, _stop: *const usize) {}

/// The branches that were ever seen, and how often each at most, by powers of two.
pub struct Seen(Vec<u8>);

impl Seen {
    /// None yet.
    pub fn new() -> Self {
        let regions = REGIONS.lock().map_or(0, |regions| regions.iter().map(|(_, len)| len).sum());
        Seen(vec![0; regions])
    }

    /// Branches that were seen.
    pub fn len(&self) -> usize {
        self.0.iter().filter(|bits| **bits != 0).count()
    }

    /// Whether there is anything to see.
    pub fn is_blind(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what ran since the last call, and says whether some of it is new.
    pub fn update(&mut self) -> bool {
        let Ok(regions) = REGIONS.lock() else { return false };
        let (mut new, mut at) = (false, 0);
        for (start, len) in regions.iter() {
            for i in 0..*len {
                let counter = (start + i) as *mut u8;
                // SAFETY: the compiler's counters live as long as the program; racing increments of other threads may
                // be lost, and a byte is read and written whole.
                let count = unsafe { counter.read_volatile() };
                if count != 0 {
                    // SAFETY: as above.
                    unsafe { counter.write_volatile(0) };
                    let bit = 1u8 << count.ilog2();
                    new |= self.0[at + i] & bit == 0;
                    self.0[at + i] |= bit;
                }
            }
            at += len;
        }
        new
    }
}
