//! A build whose rows come batch by batch and may be more than memory holds: each piece that fits becomes a segment.
//! What is done is noted in the hidden folder of the new tree, so that the same build goes on there after it was
//! killed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ingest::{Batch, Ingest, Invalid};
use super::pieces::{Piece, Pieces};
use super::segment;
use crate::control::Call;
use crate::element::Storage;
use crate::error::{Error, Result};
use crate::tree::{FIRST, NewFolders, NewSegment, NewSegments, Params, Tree};

/// What a build is asked to make of its rows. Two builds of equal rows and options make the same tree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BuildOptions {
    /// Dtype of the stored rows.
    pub storage: Storage,
    /// Whether rows are scaled to length 1.
    pub normalize: bool,
    /// What becomes of bad rows.
    pub invalid: Invalid,
    /// The trees' parameters.
    pub params: Params,
    /// Bytes that the build may hold, if that is limited.
    pub memory_limit: Option<u64>,
}

impl BuildOptions {
    /// The rows' collector.
    pub(super) fn ingest(&self) -> Ingest {
        let mut ingest = Ingest::new(self.storage, self.normalize);
        ingest.set_invalid(self.invalid);
        ingest
    }
}

/// A tree on disk that is being built.
pub struct Building {
    options: BuildOptions,
    out: PathBuf,
    new: NewFolders,
    pieces: Pieces,
    done: NewSegments,
    /// What an interrupted build had done: its rows are passed over.
    before: Option<NewSegments>,
}

impl Building {
    /// Starts a tree that will be at `out`, or goes on with one that an equal build began there and did not end.
    /// `memory_limit` is what the options' limit is taken from if that is none: it may differ from run to run.
    ///
    /// Errors: [`Error::Io`] if nothing can be written there, also if something that is no tree lies there.
    pub fn start(out: &Path, options: BuildOptions, memory_limit: Option<u64>) -> Result<Self> {
        let (new, before) = NewFolders::resume(out, &options)?;
        let mut pieces = Pieces::new(options.ingest(), options.memory_limit.or(memory_limit));
        pieces.most = before.most;
        Ok(Building {
            options,
            out: out.to_owned(),
            new,
            pieces,
            done: NewSegments::default(),
            before: (!before.segments.is_empty()).then_some(before),
        })
    }

    /// Rows of an earlier run that need not be built again.
    pub fn rows_before(&self) -> usize {
        self.before.as_ref().map_or(0, |before| before.rows)
    }

    /// Adds a batch of rows of `dim` dims.
    ///
    /// Errors: as [`Ingest::push`]; [`Error::InvalidVectors`] if an interrupted build read other rows, [`Error::Io`].
    pub fn push(&mut self, batch: Batch<'_>, dim: usize, call: &Call) -> Result<()> {
        let mut batch = batch;
        if let Some(before) = &self.before {
            if dim != before.dim {
                return Err(self.other_rows(before));
            }
            let missing = (before.rows - self.done.rows).saturating_mul(dim);
            let (head, tail) = batch.split_at(missing.min(batch.len()));
            self.pieces.input.update(head.bytes());
            self.done.rows += head.len() / dim;
            if self.done.rows < before.rows {
                return Ok(());
            }
            if self.pieces.input.digest() != before.input {
                return Err(self.other_rows(before));
            }
            self.pieces.ingest.pass_over(before.rows, dim);
            self.done = before.clone();
            self.before = None;
            batch = tail;
        }
        let Building { options, new, pieces, done, .. } = self;
        // The first piece that is full tells how many rows one has.
        pieces.push(batch, dim, call, |piece| {
            write(new, options, done, piece, call)?;
            done.most = Some(done.segments[0].rows);
            new.note(options, done)
        })
    }

    fn other_rows(&self, before: &NewSegments) -> Error {
        let expected = format!(
            "the {} rows of dim {} that the build of {} began with, which was interrupted; remove {} to begin anew",
            before.rows,
            before.dim,
            self.out.display(),
            self.new.folder().display()
        );
        Error::vectors(expected, "other rows")
    }

    /// Builds what is left and puts the tree into its place.
    ///
    /// Errors: those of [`Building::push`], and [`Error::BadRows`].
    pub fn finish(mut self, call: &Call) -> Result<Tree> {
        if let Some(before) = &self.before {
            return Err(self.other_rows(before));
        }
        let Building { options, new, pieces, done, .. } = &mut self;
        pieces.finish(|piece| write(new, options, done, piece, call))?;
        done.rows = pieces.ingest.rows();
        call.last_check()?;
        self.new.finish_with(&self.done, self.options.storage, &self.options.params)?;
        Tree::open(&self.out)
    }
}

/// Builds a piece and writes it as the next segment.
fn write(
    new: &mut NewFolders,
    options: &BuildOptions,
    done: &mut NewSegments,
    Piece { first, rows, input }: Piece,
    call: &Call,
) -> Result<()> {
    let writer = new.segment(FIRST + done.segments.len() as u64)?;
    segment(&rows, &options.params, call)?.write(&rows, writer, call)?;
    done.segments.push(NewSegment { first, rows: rows.len() });
    (done.rows, done.dim, done.input) = (first + rows.len(), rows.dim, input);
    Ok(())
}
