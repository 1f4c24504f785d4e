//! Damaged and forged tree folders, opened, verified and asked.
//!
//! `captree-fuzz [--seconds S] [--cases N] [--seed S] [--corpus FILE] [--save FILE]`
//!
//! Runs the cases of the corpus, a text file with a case a line in hexadecimal digits, then changed ones until the time
//! or the number is up. A case that reaches code that no other did is kept and changed further; that needs a build that
//! counts branches (`make fuzz`), others try blindly. `--save` writes a corpus that reaches as much. Exit status 1, and
//! the case, at the first one that ends in a panic, a hang, too much memory or a wrong answer. Touches the files it is
//! given and a folder of its own in the system's place for temporary ones.

mod allocation;
mod bases;
mod coverage;
mod mutate;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use captree_core::Call;

use bases::Files;
use coverage::Seen;
use target::{Outcome, Target};

#[global_allocator]
static ALLOCATOR: allocation::Counted = allocation::Counted;

/// A case that takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);

/// Most bytes of a case.
const LONGEST: usize = 160;

struct Options {
    seconds: f64,
    cases: u64,
    seed: u64,
    corpus: Option<PathBuf>,
    save: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut found = Options { seconds: 60.0, cases: u64::MAX, seed: fastrand::u64(..), corpus: None, save: None };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name}: expected a value, got none"))?;
        let wrong = |what: &str| format!("{name}: expected {what}, got {value}");
        match name.as_str() {
            "--seconds" => found.seconds = value.parse().map_err(|_| wrong("a number"))?,
            "--cases" => found.cases = value.parse().map_err(|_| wrong("a whole number"))?,
            "--seed" => found.seed = value.parse().map_err(|_| wrong("a whole number"))?,
            "--corpus" => found.corpus = Some(value.into()),
            "--save" => found.save = Some(value.into()),
            _ => return Err(format!("expected --seconds, --cases, --seed, --corpus or --save, got {name}")),
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("captree-fuzz: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    // In memory where the system has such a place: a case is some files of a few kilobytes.
    let shared = Path::new("/dev/shm");
    let place = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    let place = place.map_err(|e| text(&e))?;
    let call = Call::new(Some(1)).map_err(|e| text(&e))?;
    let bases = bases::build(place.path(), &call).map_err(|e| text(&e))?;
    let target = Target::new(place.path(), &bases).map_err(|e| text(&e))?;
    let mut cases = Vec::new();
    if let Some(path) = &options.corpus {
        let lines = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for line in lines.lines().filter(|line| !line.starts_with('#')) {
            cases.push(from_hex(line).ok_or_else(|| format!("expected hexadecimal digits, got {line}"))?);
        }
    }
    let mut session = Session::new(&target, &bases);
    for pick in 0..16 {
        if session.attempt(vec![pick])? != Outcome::Sound {
            return Err(format!("case {pick:02x}: expected a sound tree, as it was built"));
        }
    }
    let given = cases.len();
    for case in cases {
        session.attempt(case)?;
    }
    println!("seed {}, {given} cases of the corpus, {}", options.seed, session.branches());
    let mut random = fastrand::Rng::with_seed(options.seed);
    let began = Instant::now();
    while session.tried < options.cases && began.elapsed().as_secs_f64() < options.seconds {
        let case = session.next(&mut random);
        session.attempt(case)?;
    }
    println!(
        "{} cases in {:.0} s: {:?}; {}, {} cases kept",
        session.tried,
        began.elapsed().as_secs_f64(),
        session.outcomes,
        session.branches(),
        session.kept.len(),
    );
    match &options.save {
        Some(path) => session.save(path),
        None => Ok(()),
    }
}

fn to_hex(case: &[u8]) -> String {
    case.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}

/// The cases so far.
struct Session<'a> {
    target: &'a Target<'a>,
    bases: &'a [Files],
    seen: Seen,
    kept: Vec<Vec<u8>>,
    tried: u64,
    outcomes: BTreeMap<Outcome, u64>,
    watched: Arc<AtomicU64>,
    current: PathBuf,
}

impl<'a> Session<'a> {
    fn new(target: &'a Target<'a>, bases: &'a [Files]) -> Self {
        let current = std::env::temp_dir().join(format!("captree-fuzz-{}.case", std::process::id()));
        let watched = Arc::new(AtomicU64::new(0));
        watch(Arc::clone(&watched), current.clone());
        let outcomes = BTreeMap::new();
        Session { target, bases, seen: Seen::new(), kept: Vec::new(), tried: 0, outcomes, watched, current }
    }

    fn branches(&self) -> String {
        if self.seen.is_blind() { "branches not counted".into() } else { format!("{} branches", self.seen.len()) }
    }

    /// Tries a case, and keeps it if it is new.
    fn attempt(&mut self, case: Vec<u8>) -> Result<Outcome, String> {
        // There if the process dies: what no handler could write any more.
        fs::write(&self.current, to_hex(&case)).map_err(|e| e.to_string())?;
        self.watched.fetch_add(1, Ordering::Relaxed);
        let damage = mutate::decode(&case, self.bases);
        self.seen.update();
        let outcome = self.target.run(&damage).map_err(|wrong| {
            let changed: Vec<&String> = damage.changed.keys().collect();
            let (base, gone, case) = (damage.base, &damage.gone, to_hex(&case));
            format!("{wrong}\nthe case is {case}: base {base}, changed {changed:?}, gone {gone:?}")
        })?;
        self.tried += 1;
        *self.outcomes.entry(outcome).or_default() += 1;
        let new = self.seen.update();
        // Blindly, those that get past `open` are the ones to go on from.
        let good = if self.seen.is_blind() { outcome != Outcome::Refused && self.kept.len() < 2000 } else { new };
        if good || self.kept.is_empty() {
            self.kept.push(case);
        }
        Ok(outcome)
    }

    /// Writes the kept cases, short ones first, without those that reach nothing more.
    fn save(&mut self, path: &Path) -> Result<(), String> {
        let mut kept = std::mem::take(&mut self.kept);
        kept.sort_by_key(Vec::len);
        self.seen = Seen::new();
        kept.into_iter().try_for_each(|case| self.attempt(case).map(drop))?;
        let lines: String = self.kept.iter().map(|case| to_hex(case) + "\n").collect();
        fs::write(path, lines).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// A new case: one that was kept, changed in a few places, or one of random bytes.
    fn next(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        if random.u8(..) < 64 {
            return (0..random.usize(3..40)).map(|_| random.u8(..)).collect();
        }
        let mut case = self.kept[random.usize(..self.kept.len())].clone();
        for _ in 0..random.usize(1..5) {
            let at = random.usize(..case.len().max(1));
            match random.u8(..6) {
                0 if !case.is_empty() => case[at] = random.u8(..),
                1 if !case.is_empty() => case[at] ^= 1 << random.u8(..8),
                2 if !case.is_empty() => case[at] = case[at].wrapping_add(1),
                3 if !case.is_empty() => drop(case.drain(at..(at + random.usize(1..9)).min(case.len()))),
                4 => {
                    let other = &self.kept[random.usize(..self.kept.len())];
                    case.truncate(at);
                    case.extend(&other[at.min(other.len())..]);
                }
                _ => case.extend((0..random.usize(1..12)).map(|_| random.u8(..))),
            }
        }
        case.truncate(LONGEST);
        case
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.tried == self.watched.load(Ordering::Relaxed) {
            let _ = fs::remove_file(&self.current);
        }
    }
}

/// Ends the process when a case hangs.
fn watch(watched: Arc<AtomicU64>, current: PathBuf) {
    std::thread::spawn(move || {
        loop {
            let before = watched.load(Ordering::Relaxed);
            std::thread::sleep(HANGS);
            if before > 0 && watched.load(Ordering::Relaxed) == before {
                eprintln!("captree-fuzz: a case hangs: {}", fs::read_to_string(&current).unwrap_or_default());
                std::process::exit(1);
            }
        }
    });
}
