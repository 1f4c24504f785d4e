//! Thread pools, one per size, made when first asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::{Error, Result};

/// Most threads a caller may ask for: a typo must not exhaust the machine.
const MAX_THREADS: usize = 4096;

/// The threads a call may use. Answers never depend on their number.
#[derive(Clone)]
pub struct Threads(Arc<rayon::ThreadPool>);

impl Threads {
    /// `count` threads, or one per core. Errors: [`Error::InvalidParameter`] for 0 or more than 4096.
    pub fn new(count: Option<usize>) -> Result<Self> {
        let count = count.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        if count == 0 || count > MAX_THREADS {
            return Err(Error::InvalidParameter(format!("expected threads between 1 and {MAX_THREADS}, got {count}")));
        }
        // A forked child inherits the map but none of the threads, so pools are kept per process.
        type Pools = HashMap<(u32, usize), Threads>;
        static POOLS: OnceLock<Mutex<Pools>> = OnceLock::new();
        let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
        let key = (std::process::id(), count);
        if let Some(found) = pools.get(&key) {
            return Ok(found.clone());
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("captree-{i}"))
            .build()
            .map_err(|e| Error::io(format!("starting {count} threads"), std::io::Error::other(e)))?;
        let threads = Threads(Arc::new(pool));
        pools.insert(key, threads.clone());
        Ok(threads)
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` inside the pool, so that rayon's parallel iterators use it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_have_the_size_asked_for() {
        assert_eq!(Threads::new(Some(3)).unwrap().run(rayon::current_num_threads), 3);
        assert!(matches!(Threads::new(Some(0)), Err(Error::InvalidParameter(_))));
        assert!(matches!(Threads::new(Some(5000)), Err(Error::InvalidParameter(_))));
        assert!(Threads::new(None).unwrap().count() >= 1);
    }
}
