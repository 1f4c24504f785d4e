//! What every long call is given: threads to work on, and a side channel for progress and cancellation.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::instructions;
use crate::limits::MAX_THREADS;

/// No thread holds the lock on the pools for so long.
const LOCKED: Duration = Duration::from_millis(100);

/// Who polls answers within this time, or is not waited for.
const ANSWERED: Duration = Duration::from_secs(1);

/// Progress and cancellation: workers report progress and ask whether to stop; the caller polls.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    phase: Mutex<String>,
    asks: Mutex<Option<Sender<SyncSender<()>>>>,
}

impl Control {
    /// Whoever polls from now on hears of [`Control::last_check`]: it is sent what it is to answer to.
    pub fn set_asks(&self, asks: Sender<SyncSender<()>>) {
        *self.asks.lock().unwrap_or_else(PoisonError::into_inner) = Some(asks);
    }

    /// Tells whoever polls that there is nothing more to come.
    pub fn drop_asks(&self) {
        *self.asks.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// [`Control::check`] before what cannot be taken back: the caller polls first, so that what it was told before
    /// now, and has not passed on, counts.
    pub fn last_check(&self) -> Result<()> {
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (answer, answered) = sync_channel(1);
        // Who is gone has nothing to say; and one that waits for a thread of this pool must not be waited for.
        if asks.is_some_and(|asks| asks.send(answer).is_ok()) {
            let _ = answered.recv_timeout(ANSWERED);
        }
        self.check()
    }

    /// Starts a new phase of `total` units of work.
    pub fn phase(&self, name: impl Into<String>, total: u64) {
        *self.phase.lock().unwrap_or_else(|e| e.into_inner()) = name.into();
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Adds finished units to the phase.
    pub fn add(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Asks the workers to stop at the next [`Control::check`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Fails with [`Error::Interrupted`] once [`Control::cancel`] was called.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The phase's name, finished units and total units.
    pub fn snapshot(&self) -> (String, u64, u64) {
        let phase = self.phase.lock().unwrap_or_else(|e| e.into_inner()).clone();
        (phase, self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// One call of the library: the threads it may use, and its [`Control`]. Answers never depend on the number of threads.
pub struct Call {
    pool: Arc<rayon::ThreadPool>,
    control: Control,
}

impl Call {
    /// With `threads` threads, or one per core. Errors: [`Error::InvalidParameter`] for 0 or more than
    /// [`MAX_THREADS`], and for an instruction set in the environment that this processor lacks.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        instructions::check()?;
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::parameter("threads", format!("a number between 1 and {MAX_THREADS}"), threads));
        }
        Ok(Call { pool: pool(threads)?, control: Control::default() })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` inside the pool, so that rayon's parallel iterators use it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

impl Deref for Call {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

/// Pools by process and number of threads: a forked child inherits the map, but none of the threads.
type Pools = BTreeMap<(u32, usize), Arc<rayon::ThreadPool>>;

/// The pool of a size, made when first asked for.
fn pool(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    let key = (std::process::id(), threads);
    if let Some(found) = pools().and_then(|pools| pools.get(&key).cloned()) {
        return Ok(found);
    }
    let made = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("captree-{i}"))
        .build()
        .map_err(|e| Error::io(format!("starting {threads} threads"), std::io::Error::other(e)))?;
    let made = Arc::new(made);
    Ok(pools().map_or(made.clone(), |mut pools| pools.entry(key).or_insert(made).clone()))
}

/// All pools; `None` if they stay locked. A thread holds the lock for a look only, but a child that was forked in that
/// moment has the lock without the thread, for ever: it makes a pool for each call.
fn pools() -> Option<MutexGuard<'static, Pools>> {
    static POOLS: Mutex<Pools> = Mutex::new(BTreeMap::new());
    let start = Instant::now();
    loop {
        match POOLS.try_lock() {
            Ok(pools) => return Some(pools),
            Err(TryLockError::Poisoned(pools)) => return Some(pools.into_inner()),
            Err(TryLockError::WouldBlock) if start.elapsed() > LOCKED => return None,
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_have_the_size_asked_for() {
        assert_eq!(Call::new(Some(3)).unwrap().run(rayon::current_num_threads), 3);
        assert!(matches!(Call::new(Some(0)), Err(Error::InvalidParameter { .. })));
        assert!(matches!(Call::new(Some(MAX_THREADS + 1)), Err(Error::InvalidParameter { .. })));
        assert!(Call::new(None).unwrap().threads() >= 1);
    }
}
