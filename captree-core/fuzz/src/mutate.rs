//! A case is a string of bytes: the number of a base tree, then changes to its files, one after the other. Any bytes
//! are a case, and the same bytes are always the same case.

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::bases::Files;

const CURRENT: &str = "CURRENT";
const MANIFEST: &str = "manifest.json";
const TABLE: &str = "checksums.npy";
const CHUNK: usize = 65_536;

/// What becomes of a file that is no file any more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gone {
    Missing,
    Folder,
    DeadLink,
}

/// A damaged folder: the files that differ from the base's, and those that are gone.
#[derive(Debug, Default)]
pub struct Damage {
    pub base: usize,
    pub changed: Files,
    pub gone: Vec<(String, Gone)>,
}

/// Bytes of a case, read from the front; zeros when there are no more.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }

    /// A number below `end`, which is at least 1.
    fn below(&mut self, end: usize) -> usize {
        let bytes = if end <= 256 { 1 } else { 4 };
        self.number(bytes) as usize % end
    }
}

/// Numbers that break things: ends of ranges, signs, floats that are none.
const ODD: [u64; 24] = [
    0,
    1,
    2,
    63,
    64,
    65,
    127,
    128,
    255,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fffe,
    0x3f80_0000,
    0x7fc0_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7c00,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0x3ff0_0000_0000_0000,
];

/// The damage that a case does to one of the bases.
pub fn decode(case: &[u8], bases: &[Files]) -> Damage {
    let mut from = Reader(case);
    // The largest base, the last one, costs as much as all others together: it comes once in sixteen cases.
    let pick = from.below(16);
    let base = if pick == 15 { bases.len() - 1 } else { pick % (bases.len() - 1) };
    let mut files = bases[base].clone();
    let mut damage = Damage { base, ..Damage::default() };
    let mut repair = true;
    while !from.0.is_empty() {
        let names: Vec<String> = files.keys().cloned().collect();
        let Some(name) = names.get(from.below(names.len().max(1))).cloned() else { break };
        let change = from.byte();
        // The odd case leaves checksums as they are.
        repair &= change < 0xf0;
        match change % 10 {
            0..=2 => number(&mut from, &name, &mut files),
            3 => run(&mut from, &name, &mut files),
            4 => header(&mut from, &name, &mut files),
            5 => length(&mut from, &name, &mut files),
            6 => rows(&mut from, &name, &mut files),
            7 => manifest(&mut from, manifest_of(&name, &files), &mut files),
            8 => manifest(&mut from, current(&files), &mut files),
            _ => match from.byte() % 8 {
                0 => damage.gone.push((name, Gone::Missing)),
                1 => damage.gone.push((name, Gone::Folder)),
                2 => damage.gone.push((name, Gone::DeadLink)),
                3 => text(&mut from, manifest_of(&name, &files), &mut files),
                _ => exchange(&mut from, &name, &mut files),
            },
        }
    }
    if repair {
        mend(&mut files);
    }
    damage.changed = files.into_iter().filter(|(name, bytes)| bases[base].get(name) != Some(bytes)).collect();
    damage
}

/// The manifest that counts for the whole tree.
fn current(files: &Files) -> Option<String> {
    let text = String::from_utf8_lossy(files.get(CURRENT)?).into_owned();
    text.split_once(' ').map(|(name, _)| name.to_owned())
}

/// The manifest of a file's segment, or of the tree.
fn manifest_of(name: &str, files: &Files) -> Option<String> {
    match name.rsplit_once('/') {
        Some((segment, _)) if name.starts_with("segments/") => Some(format!("{segment}/{MANIFEST}")),
        _ if name.starts_with("manifest-") => Some(name.to_owned()),
        _ => current(files),
    }
}

/// The first byte of an array's data; of any other file the first one.
fn data_start(file: &[u8]) -> usize {
    if !file.starts_with(b"\x93NUMPY") {
        return 0;
    }
    let length = file.get(8..10).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    (10 + length).min(file.len())
}

/// One number of an array becomes another.
fn number(from: &mut Reader<'_>, name: &str, files: &mut Files) {
    let Some(file) = files.get_mut(name) else { return };
    let (start, width) = (data_start(file), [1, 2, 4, 8][from.below(4)]);
    let places = (file.len() - start) / width;
    if places == 0 {
        return;
    }
    let at = start + from.below(places) * width;
    let kind = from.byte();
    let old = file[at..at + width].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let new = match kind % 4 {
        0 => ODD[from.below(ODD.len())],
        1 => old.wrapping_add(u64::from(from.byte())).wrapping_sub(128),
        2 => old ^ 1 << from.below(8 * width),
        _ => from.number(width),
    };
    file[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Some bytes of a file become others.
fn run(from: &mut Reader<'_>, name: &str, files: &mut Files) {
    let Some(file) = files.get_mut(name).filter(|file| !file.is_empty()) else { return };
    let (at, len, value) = (from.below(file.len()), 1 + from.below(200), from.byte());
    let end = (at + len).min(file.len());
    file[at..end].fill(value);
}

/// A byte of a file's first ones, where the .npy header is.
fn header(from: &mut Reader<'_>, name: &str, files: &mut Files) {
    let Some(file) = files.get_mut(name).filter(|file| !file.is_empty()) else { return };
    let end = data_start(file).max(1).min(file.len());
    file[from.below(end)] = from.byte();
}

/// A file ends early, or goes on.
fn length(from: &mut Reader<'_>, name: &str, files: &mut Files) {
    let Some(file) = files.get_mut(name) else { return };
    let len = match from.byte() % 4 {
        0 => file.len() + 1 + from.below(200),
        1 => file.len().saturating_sub(1 + from.below(200)),
        2 => from.below(file.len() + 1),
        _ => 0,
    };
    file.resize(len, from.byte());
}

/// An array gets another number of rows, in header, data and manifest alike.
fn rows(from: &mut Reader<'_>, name: &str, files: &mut Files) {
    let Some(old) = files.get(name).cloned() else { return };
    let start = data_start(&old);
    let Some((manifest, mut body)) = manifest_of(name, files).and_then(|m| body(files, &m).map(|b| (m, b))) else {
        return;
    };
    let Some(entry) = entry(&mut body, name) else { return };
    let shape: Vec<usize> = entry["shape"].as_array().into_iter().flatten().filter_map(to_usize).collect();
    let Some(first) = shape.first().copied().filter(|n| (1..1 << 20).contains(n)) else { return };
    let stride = (old.len() - start) / first;
    let count = match from.byte() % 4 {
        0 => first + 1,
        1 => first - 1,
        2 => from.below(2 * first + 2),
        _ => 0,
    };
    let text = |n: usize| {
        let axes: Vec<String> = std::iter::once(n).chain(shape[1..].iter().copied()).map(|a| a.to_string()).collect();
        format!("({}{})", axes.join(", "), if axes.len() == 1 { "," } else { "" })
    };
    let header = String::from_utf8_lossy(&old[10.min(start)..start]).into_owned();
    let new = header.replace(&text(first), &text(count));
    let mut file = old[..10.min(start)].to_vec();
    file.extend(format!("{:<width$}\n", new.trim_end(), width = (start - 10.min(start)).saturating_sub(1)).bytes());
    file.extend(&old[start..]);
    file.resize(start + count * stride, 0);
    entry["shape"][0] = count.into();
    entry["bytes"] = file.len().into();
    files.insert(name.to_owned(), file);
    put_body(files, &manifest, &body);
}

/// One value of a manifest becomes another.
fn manifest(from: &mut Reader<'_>, name: Option<String>, files: &mut Files) {
    let Some((name, mut body)) = name.and_then(|name| body(files, &name).map(|body| (name, body))) else { return };
    let places = count(&body);
    let (place, kind) = (from.below(places), from.byte());
    let Some(value) = nth(&mut body, &mut { place }) else { return };
    let odd = ODD[from.below(ODD.len())];
    *value = match (kind % 8, value.as_u64(), value.as_f64()) {
        (0 | 1, Some(n), _) => n.wrapping_add(u64::from(from.byte())).wrapping_sub(128).into(),
        (0 | 1, None, Some(x)) => (x * (f64::from(from.byte()) / 64.0 - 1.0)).into(),
        (2, _, _) => f64::from_bits(odd).into(),
        (3, _, _) => Value::Null,
        (4, _, _) => String::from_utf8_lossy(&from.number(8).to_le_bytes()).into_owned().into(),
        (5, _, _) => Value::Array(vec![value.clone(), value.clone()]),
        (6, _, _) => (odd as i64).wrapping_neg().into(),
        _ => odd.into(),
    };
    put_body(files, &name, &body);
}

/// A byte of a manifest's text.
fn text(from: &mut Reader<'_>, name: Option<String>, files: &mut Files) {
    let Some(file) = name.and_then(|name| files.get_mut(&name)).filter(|file| !file.is_empty()) else { return };
    let at = from.below(file.len());
    file[at] = from.byte();
}

/// Two files change places.
fn exchange(from: &mut Reader<'_>, name: &str, files: &mut Files) {
    let names: Vec<String> = files.keys().cloned().collect();
    let other = &names[from.below(names.len())];
    if let (Some(a), Some(b)) = (files.get(name).cloned(), files.get(other).cloned()) {
        files.insert(name.to_owned(), b);
        files.insert(other.clone(), a);
    }
}

fn to_usize(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn body(files: &Files, manifest: &str) -> Option<Value> {
    serde_json::from_slice::<Value>(files.get(manifest)?).ok()?.get("body").cloned()
}

fn put_body(files: &mut Files, manifest: &str, body: &Value) {
    let text = body.to_string();
    let checksum = hex(text.as_bytes());
    let whole =
        format!("{{\"format\": \"captree\", \"version\": 1, \"checksum\": \"{checksum}\", \"body\": {text}}}\n");
    files.insert(manifest.to_owned(), whole.into_bytes());
}

fn hex(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

fn entry<'a>(body: &'a mut Value, file: &str) -> Option<&'a mut Value> {
    let name = file.rsplit('/').next()?.strip_suffix(".npy")?;
    body.get_mut("arrays")?.as_array_mut()?.iter_mut().find(|entry| entry["name"] == name)
}

/// Makes every checksum right again, as somebody would who forges a tree.
fn mend(files: &mut Files) {
    let names: Vec<String> = files.keys().cloned().collect();
    names.iter().filter_map(|name| name.strip_suffix(MANIFEST)).for_each(|segment| mend_segment(segment, files));
    names.iter().filter(|name| name.starts_with("manifest-")).for_each(|name| mend_tree(name, files));
    if let Some((name, text)) = current(files).and_then(|name| files.get(&name).map(|text| (name, text))) {
        let line = format!("{name} {}\n", hex(text));
        files.insert(CURRENT.to_owned(), line.into_bytes());
    }
}

/// The checksums of the deleted rows, and of the tree's manifest itself.
fn mend_tree(manifest: &str, files: &mut Files) {
    let Some(mut body) = body(files, manifest) else { return };
    let set = &body["deleted"];
    let file = set["number"].as_u64().and_then(|number| files.get(&format!("deleted/{number:06}.roaring")));
    if let (Some(checksum), true) = (file.map(|file| hex(file)), set.is_object()) {
        body["deleted"]["checksum"] = checksum.into();
    }
    put_body(files, manifest, &body);
}

/// The checksums of the arrays of a segment, of their table, and of the manifest. `segment` ends in a slash.
fn mend_segment(segment: &str, files: &mut Files) {
    let manifest = format!("{segment}{MANIFEST}");
    let Some(mut body) = body(files, &manifest) else { return };
    let arrays = body["arrays"].as_array().into_iter().flatten();
    let names = arrays.filter_map(|entry| entry["name"].as_str()).map(|name| format!("{segment}{name}.npy"));
    let chunks = names.filter_map(|name| files.get(&name)).flat_map(|file| file.chunks(CHUNK));
    let sums: Vec<u8> = chunks.flat_map(|chunk| xxh3_64(chunk).to_le_bytes()).collect();
    if let Some(table) = files.get_mut(&format!("{segment}{TABLE}")) {
        let start = data_start(table);
        // As many as before: a file of another size is one of the changes.
        let fits = sums.len().min(table.len() - start);
        table[start..start + fits].copy_from_slice(&sums[..fits]);
        let chunks: Vec<Value> = table.chunks(CHUNK).map(|chunk| hex(chunk).into()).collect();
        if body["checksums"].is_object() {
            body["checksums"]["chunks"] = Value::Array(chunks);
        }
    }
    put_body(files, &manifest, &body);
}

/// How many values a manifest has, the nested ones included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, left)),
        Value::Object(fields) => fields.iter_mut().find_map(|(_, item)| nth(item, left)),
        _ => None,
    }
}
