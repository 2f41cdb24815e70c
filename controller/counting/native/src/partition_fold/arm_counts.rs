//! The totals of an arm, `schemas.totals.ArmCounts`: taken over, and written as they are stored.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arms::{Counts, Histogram};

fn histogram(counts: &Bound<'_, PyAny>) -> PyResult<Histogram> {
    let mut found = Histogram::default();
    for (bucket, count) in counts.cast::<PyDict>()? {
        let count = count.extract()?;
        if count > Histogram::MOST {
            return Err(PyValueError::new_err(format!("no bucket holds {count} values")));
        }
        found.add(bucket.extract()?, count);
    }
    Ok(found)
}

/// Take over an `ArmCounts`.
pub fn taken_over(counts: &Bound<'_, PyAny>) -> PyResult<Counts> {
    let number = |name: &str| -> PyResult<i64> { counts.getattr(name)?.extract() };
    let mut converted = Vec::new();
    for (name, count) in counts.getattr("converted")?.cast::<PyDict>()? {
        converted.push((name.extract::<&str>()?.into(), count.extract()?));
    }
    Ok(Counts {
        evaluations: number("evaluations")?,
        exposures: number("exposures")?,
        switched: number("switched")?,
        outcomes: number("outcomes")?,
        errors: number("errors")?,
        at_risk: number("at_risk")?,
        first_errors: number("first_errors")?,
        converted,
        latency: histogram(&counts.getattr("latency")?)?,
        checked: number("checked")?,
        repeated: number("repeated")?,
    })
}

/// The bytes of an arm's field: `schemas.totals.encode_arm`, to the byte.
pub fn as_stored(counts: &Counts) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    write(&mut bytes, counts);
    bytes
}

/// Add an arm as it is in its bundle: `schemas.totals.bundle_entry`, to the byte.
pub fn write_bundled(bytes: &mut Vec<u8>, field: &str, counts: &Counts) {
    bytes.push(b'"');
    bytes.extend_from_slice(field.as_bytes()); // names need no escapes
    bytes.extend_from_slice(b"\":");
    write(bytes, counts);
}

/// Write an arm's totals. What is zero or empty is left out, and the rest is in the order of the
/// table.
fn write(bytes: &mut Vec<u8>, counts: &Counts) {
    // Each by its name, so that the compiler asks for a new one.
    let Counts {
        evaluations,
        exposures,
        switched,
        outcomes,
        errors,
        at_risk,
        first_errors,
        converted,
        latency,
        checked,
        repeated,
    } = counts;
    let mut json = Json { is_empty: true, bytes };
    json.number("evaluations", *evaluations);
    json.number("exposures", *exposures);
    json.number("switched", *switched);
    json.number("outcomes", *outcomes);
    json.number("errors", *errors);
    json.number("at_risk", *at_risk);
    json.number("first_errors", *first_errors);
    json.by_name("converted", converted);
    json.by_bucket("latency", latency);
    json.number("checked", *checked);
    json.number("repeated", *repeated);
    json.end();
}

/// One JSON object that is being written.
struct Json<'a> {
    is_empty: bool,
    bytes: &'a mut Vec<u8>,
}

impl Json<'_> {
    fn name(&mut self, name: &str) {
        self.bytes.push(if self.is_empty { b'{' } else { b',' });
        self.is_empty = false;
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"\":");
    }

    fn number(&mut self, name: &str, number: i64) {
        if number != 0 {
            self.name(name);
            digits(self.bytes, number);
        }
    }

    /// Names of conversions need no escapes: `schemas.terms.NAME`.
    fn by_name(&mut self, name: &str, counts: &[(Box<str>, i64)]) {
        for (number, (key, count)) in counts.iter().enumerate() {
            if number == 0 {
                self.name(name);
            }
            self.bytes.extend_from_slice(if number == 0 { b"{\"" } else { b",\"" });
            self.bytes.extend_from_slice(key.as_bytes());
            self.bytes.extend_from_slice(b"\":");
            digits(self.bytes, *count);
        }
        if !counts.is_empty() {
            self.bytes.push(b'}');
        }
    }

    /// A histogram. An arm may have a hundred buckets, and most of a save goes into these: so what
    /// is written of one is put together in registers, and stored into room made for all of them.
    fn by_bucket(&mut self, name: &str, counts: &Histogram) {
        if counts.len() == 0 {
            return;
        }
        self.name(name);
        let start = self.bytes.len();
        let mut at = start;
        self.bytes.resize(start + counts.len() * (BUCKET_ROOM + DIGITS), 0);
        for (bucket, count) in counts.iter() {
            at += match short(i64::from(bucket)) {
                Some(short) => short.store(&mut self.bytes[at..], *b",\"", *b"\":"),
                None => store(
                    &mut self.bytes[at..],
                    &[b",\"", digits_of(i64::from(bucket)).text(), b"\":"],
                ),
            };
            at += match short(count as i64) {
                Some(short) => short.store_alone(&mut self.bytes[at..]),
                None => store(&mut self.bytes[at..], &[digits_of(count as i64).text()]),
            };
        }
        self.bytes[start] = b'{';
        self.bytes.truncate(at);
        self.bytes.push(b'}');
    }

    fn end(self) {
        self.bytes.extend_from_slice(if self.is_empty { b"{}" } else { b"}" });
    }
}

/// Bytes of the longest `,"bucket":`.
const BUCKET_ROOM: usize = 10;

/// A number of at most four bytes, in the lower ones of a word, and how many these are.
#[derive(Clone, Copy)]
struct Short {
    text: u32,
    size: u32,
}

const LEAST_SHORT: i64 = -400;
/// The texts of numbers from `LEAST_SHORT` on: of the buckets that durations have, and of most of
/// their counts. Four bytes each, because few of them stay in the processor's nearest cache.
static SHORT: [u32; 1_401] = {
    let mut texts = [0; 1_401];
    let mut place = 0;
    while place < texts.len() {
        let digits = digits_of(LEAST_SHORT + place as i64);
        let mut at = DIGITS;
        while at > digits.begin {
            at -= 1;
            texts[place] = texts[place] << 8 | digits.bytes[at] as u32;
        }
        place += 1;
    }
    texts
};

#[inline]
fn short(number: i64) -> Option<Short> {
    let text = *SHORT.get(usize::try_from(number - LEAST_SHORT).ok()?)?;
    Some(Short { text, size: 4 - text.leading_zeros() / 8 })
}

impl Short {
    /// Store it between two pairs of bytes; return how many bytes that were. Up to eight are
    /// touched.
    #[inline]
    fn store(self, to: &mut [u8], before: [u8; 2], after: [u8; 2]) -> usize {
        let after = u64::from(u16::from_le_bytes(after)) << (16 + 8 * self.size);
        let word = u64::from(u16::from_le_bytes(before)) | u64::from(self.text) << 16 | after;
        to[..8].copy_from_slice(&word.to_le_bytes());
        self.size as usize + 4
    }

    /// Store it; return how many bytes that were. Four are touched.
    #[inline]
    fn store_alone(self, to: &mut [u8]) -> usize {
        to[..4].copy_from_slice(&self.text.to_le_bytes());
        self.size as usize
    }
}

/// Store texts one after the other; return how many bytes that were.
fn store(to: &mut [u8], texts: &[&[u8]]) -> usize {
    let mut at = 0;
    for text in texts {
        to[at..at + text.len()].copy_from_slice(text);
        at += text.len();
    }
    at
}

/// Write a number; formatting by `core::fmt` would take most of a save.
fn digits(bytes: &mut Vec<u8>, number: i64) {
    bytes.extend_from_slice(digits_of(number).text());
}

/// Bytes of the longest number, with its sign.
const DIGITS: usize = 20;

/// The digits of a number, right-aligned, with its sign.
struct Digits {
    bytes: [u8; DIGITS],
    begin: usize,
}

impl Digits {
    fn text(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }
}

const fn digits_of(number: i64) -> Digits {
    let mut bytes = [0; DIGITS];
    let mut begin = DIGITS;
    let mut rest = number.unsigned_abs();
    loop {
        begin -= 1;
        bytes[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        begin -= 1;
        bytes[begin] = b'-';
    }
    Digits { bytes, begin }
}
