//! The totals of an arm, `schemas.totals.ArmCounts`: taken over, and written as they are stored.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arms::{Counts, Histogram};

fn histogram(counts: &Bound<'_, PyAny>) -> PyResult<Histogram> {
    let mut found = Histogram::default();
    for (bucket, count) in counts.cast::<PyDict>()? {
        found.add(bucket.extract()?, count.extract()?);
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

/// Write an arm as it is in its bundle: `schemas.totals.bundle_entry`, to the byte.
pub fn write_bundled(bytes: &mut Vec<u8>, field: &str, counts: &Counts) {
    bytes.clear();
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
    // Names of conversions need no escapes: `schemas.terms.NAME`.
    json.object("converted", converted.iter(), |bytes, name| {
        bytes.extend_from_slice(name.as_bytes());
    });
    json.object("latency", latency.counts.iter(), |bytes, bucket| {
        digits(bytes, i64::from(*bucket));
    });
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

    fn object<'a, K: 'a>(
        &mut self,
        name: &str,
        counts: impl Iterator<Item = &'a (K, i64)>,
        write: impl Fn(&mut Vec<u8>, &K),
    ) {
        let mut is_first = true;
        for (key, count) in counts {
            if is_first {
                self.name(name);
            }
            self.bytes.extend_from_slice(if is_first { b"{\"" } else { b",\"" });
            is_first = false;
            write(self.bytes, key);
            self.bytes.extend_from_slice(b"\":");
            digits(self.bytes, *count);
        }
        if !is_first {
            self.bytes.push(b'}');
        }
    }

    fn end(self) {
        self.bytes.extend_from_slice(if self.is_empty { b"{}" } else { b"}" });
    }
}

/// Write a number; formatting by `core::fmt` would take most of a save.
fn digits(bytes: &mut Vec<u8>, number: i64) {
    let mut found = [0; 20];
    let mut at = found.len();
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
        bytes.push(b'-');
    }
    bytes.extend_from_slice(&found[at..]);
}
