//! Refused records, in the order of their offsets: `schemas.quarantine.refusal`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use sha2::{Digest, Sha256};

use crate::record_batches::Parts;
use crate::surroundings::Types;

const MAX_BODY: usize = 1024; // `schemas.quarantine.MAX_BODY`

/// What a reader of Python refuses: it is called with a record and why.
#[pyclass(module = "controller.counting._native")]
pub struct Refuser {
    found: Vec<(Py<PyAny>, Py<PyAny>)>,
}

#[pymethods]
impl Refuser {
    fn __call__(&mut self, record: Py<PyAny>, why: Py<PyAny>) {
        self.found.push((record, why));
    }
}

impl Refuser {
    pub fn new(py: Python<'_>) -> PyResult<Bound<'_, Self>> {
        Bound::new(py, Self { found: Vec::new() })
    }

    pub fn take(&mut self) -> Vec<(Py<PyAny>, Py<PyAny>)> {
        std::mem::take(&mut self.found)
    }
}

enum One {
    CutOff(CutOff),
    Other(Py<PyAny>, Py<PyAny>), // record, why
}

/// A record that ends too early.
struct CutOff {
    offset: i64,
    timestamp: i64,
    sha256: [u8; 32],
    size: usize,
    body: Py<PyBytes>, // the first bytes
}

/// What was refused in a run, until its end.
#[derive(Default)]
pub struct Refused {
    found: Vec<One>,
}

impl Refused {
    pub fn add(&mut self, record: Py<PyAny>, why: Py<PyAny>) {
        self.found.push(One::Other(record, why));
    }

    pub fn extend(&mut self, refused: Vec<(Py<PyAny>, Py<PyAny>)>) {
        self.found.extend(refused.into_iter().map(|(record, why)| One::Other(record, why)));
    }

    /// Add a record that ends too early.
    pub fn add_cut_off(&mut self, py: Python<'_>, parts: &Parts<'_>) {
        let value = parts.value.unwrap_or_default();
        self.found.push(One::CutOff(CutOff {
            offset: parts.place.offset,
            timestamp: parts.place.timestamp,
            sha256: Sha256::digest(value).into(),
            size: value.len(),
            body: PyBytes::new(py, &value[..value.len().min(MAX_BODY)]).unbind(),
        }));
    }

    /// Put a `Refusal` of each into a list of Python.
    pub fn give(self, types: &Types, list: &Bound<'_, PyList>) -> PyResult<()> {
        let py = list.py();
        for one in self.found {
            let refusal = match one {
                One::CutOff(one) => types.refusal.call1(
                    py,
                    (
                        one.offset,
                        one.timestamp,
                        &types.cut_off.0,
                        &types.cut_off.1,
                        hex(py, &one.sha256),
                        one.size,
                        one.body,
                        one.size > MAX_BODY,
                    ),
                )?,
                One::Other(record, why) => types.refuse.call1(py, (record, why))?,
            };
            list.append(refusal)?;
        }
        Ok(())
    }
}

fn hex<'py>(py: Python<'py>, bytes: &[u8; 32]) -> Bound<'py, PyString> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (two, byte) in text.chunks_exact_mut(2).zip(bytes) {
        two[0] = DIGITS[usize::from(byte >> 4)];
        two[1] = DIGITS[usize::from(byte & 15)];
    }
    PyString::new(py, std::str::from_utf8(&text).expect("hexadecimal digits"))
}
