//! Progress and cancellation of long work, shared between the worker threads and whoever waits for them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A long call's side channel: workers report progress and ask whether to stop; the caller polls.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    phase: Mutex<String>,
}

impl Control {
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
