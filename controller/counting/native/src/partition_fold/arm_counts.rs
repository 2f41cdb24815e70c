//! The totals of an arm, `schemas.totals.ArmCounts`: taken over, and written as they are stored.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arms::{Bucket, Counts, Histogram};

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

    /// A histogram. An arm may have a hundred buckets, and most of a save goes into these: so each
    /// is written with two moves into room that was made for all of them.
    fn by_bucket(&mut self, name: &str, counts: &Histogram) {
        if counts.len() == 0 {
            return;
        }
        self.name(name);
        let start = self.bytes.len();
        let mut at = start;
        self.bytes.resize(start + counts.len() * (1 + BUCKET_ROOM + DIGITS), 0);
        for (bucket, count) in counts.iter() {
            self.bytes[at] = b',';
            at += 1;
            let place = usize::try_from(i32::from(bucket) - i32::from(LEAST_BUCKET));
            let place = place.unwrap_or(usize::MAX);
            let (text, size) = BUCKETS.get(place).copied().unwrap_or_else(|| text_of(bucket));
            self.bytes[at..at + BUCKET_ROOM].copy_from_slice(&text);
            at += usize::from(size);
            if (0..10).contains(&count) {
                self.bytes[at] = b'0' + count as u8;
                at += 1;
            } else {
                let (found, begin) = digits_of(count as i64);
                let size = DIGITS - begin;
                self.bytes[at..at + size].copy_from_slice(&found[begin..]);
                at += size;
            }
        }
        self.bytes[start] = b'{';
        self.bytes.truncate(at);
        self.bytes.push(b'}');
    }

    fn end(self) {
        self.bytes.extend_from_slice(if self.is_empty { b"{}" } else { b"}" });
    }
}

const LEAST_BUCKET: Bucket = -400;
/// Bytes of the longest `"bucket":`.
const BUCKET_ROOM: usize = 14;
/// `"bucket":` of the buckets that durations have, from `LEAST_BUCKET` on, and its size.
static BUCKETS: [([u8; BUCKET_ROOM], u8); 1_401] = {
    let mut texts = [([0; BUCKET_ROOM], 0); 1_401];
    let mut place = 0;
    while place < texts.len() {
        texts[place] = text_of(LEAST_BUCKET + place as Bucket);
        place += 1;
    }
    texts
};

const fn text_of(bucket: Bucket) -> ([u8; BUCKET_ROOM], u8) {
    let (found, begin) = digits_of(bucket as i64);
    let mut text = [0; BUCKET_ROOM];
    text[0] = b'"';
    let mut size = 1;
    let mut from = begin;
    while from < DIGITS {
        text[size] = found[from];
        size += 1;
        from += 1;
    }
    text[size] = b'"';
    text[size + 1] = b':';
    (text, size as u8 + 2)
}

/// Write a number; formatting by `core::fmt` would take most of a save.
fn digits(bytes: &mut Vec<u8>, number: i64) {
    let (found, begin) = digits_of(number);
    bytes.extend_from_slice(&found[begin..]);
}

/// Bytes of the longest number, with its sign.
const DIGITS: usize = 20;

/// The digits of a number, right-aligned, and where they begin.
const fn digits_of(number: i64) -> ([u8; DIGITS], usize) {
    let mut found = [0; DIGITS];
    let mut at = DIGITS;
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        found[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        found[at] = b'-';
    }
    (found, at)
}
