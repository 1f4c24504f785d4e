//! The one place that releases the GIL, catches Ctrl-C and panics, and reports progress. Work runs in the call's thread
//! pool from its first step on: rayon's global pool does not survive a fork.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, channel};
use std::time::Duration;

use pyo3::prelude::*;

use super::errors;
use crate::control::Call;
use crate::error::{Error, Result};

/// How often a waiting call looks at signals and reports progress.
const POLL: Duration = Duration::from_millis(50);

/// Multiply-adds below which a call is over before anybody would press Ctrl-C.
const SHORT: u128 = 200_000_000;

/// Whether `caps` queries over `rows` rows of `dim` dims are surely a short call.
pub(super) fn is_short(caps: usize, rows: usize, dim: usize) -> bool {
    caps as u128 * rows as u128 * dim as u128 <= SHORT
}

/// Runs short work while this thread waits, without the GIL.
pub(super) fn run_short<R: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    work: impl FnOnce(&Call) -> Result<R> + Send,
) -> PyResult<R> {
    let result = py.detach(|| {
        guarded(|| {
            let call = Call::new(threads)?;
            call.run(|| work(&call))
        })
    });
    result.map_err(|e| to_py(py, e))
}

/// Runs work on a thread of its own, without the GIL, while this one answers Ctrl-C and reports progress.
pub(super) fn run<R: Send>(
    py: Python<'_>,
    threads: Option<usize>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Call) -> Result<R> + Send,
) -> PyResult<R> {
    let call = Call::new(threads).map_err(|e| errors::to_py(py, &e))?;
    let mut raised: Option<PyErr> = None;
    let result = std::thread::scope(|scope| {
        let (events, mut receiver) = channel::<SyncSender<()>>();
        call.set_asks(events);
        let worker = std::thread::Builder::new().name("captree-call".into()).spawn_scoped(scope, {
            let call = &call;
            move || {
                let result = guarded(|| call.run(|| work(call)));
                call.drop_asks();
                result
            }
        });
        let worker = worker.map_err(|e| Failure::Core(Error::io("starting a thread", e)))?;
        let report = |raised: &mut Option<PyErr>| {
            let called = progress.map_or(Ok(()), |callback| callback.call1(call.snapshot()).map(|_| ()));
            if let Err(e) = py.check_signals().and(called)
                && raised.is_none()
            {
                call.cancel();
                *raised = Some(e);
            }
        };
        loop {
            // A receiver may move to the detached closure but not be shared with it: hand over the only reference.
            let only = &mut receiver;
            match py.detach(move || only.recv_timeout(POLL)) {
                Ok(answer) => {
                    report(&mut raised);
                    let _ = answer.send(());
                }
                Err(RecvTimeoutError::Timeout) => report(&mut raised),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let result = py.detach(|| worker.join()).unwrap_or_else(|_| Err(Failure::Panic("the worker vanished".into())));
        if result.is_ok() {
            report(&mut raised);
        }
        result
    });
    match raised {
        Some(e) => Err(e),
        None => result.map_err(|e| to_py(py, e)),
    }
}

/// Why work did not succeed.
enum Failure {
    Core(Error),
    Panic(String),
}

fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R, Failure> {
    // Trees are immutable and everything else dies with the call, so a panic leaves nothing half-changed behind.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Core),
        Err(payload) => Err(Failure::Panic(
            payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "unknown panic".to_owned()),
        )),
    }
}

fn to_py(py: Python<'_>, failure: Failure) -> PyErr {
    match failure {
        Failure::Core(e) => errors::to_py(py, &e),
        Failure::Panic(what) => errors::defect(py, &what),
    }
}
