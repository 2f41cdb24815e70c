//! Refused records as they are written, in the order of their offsets: `schemas.quarantine`.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use data_encoding::{Encoding, BASE64, HEXLOWER};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use sha2::{Digest, Sha256};

use super::events::read_by_python;
use crate::record_batches::{Parts, Record};
use crate::scan::{Problem, Unplain};
use crate::surroundings::Types;

/// What one record of the quarantine topic holds at most: `schemas.quarantine`.
#[derive(FromPyObject, Clone, Copy)]
#[pyo3(from_item_all)]
pub struct Limits {
    pub refusals: usize,
    pub body: usize, // bytes of each value
    pub json: usize, // bytes of all refusals
}

/// Problems of one partition whose words are kept. Senders choose what some of them quote.
const MOST_KNOWN: usize = 128;

/// What Python says of problems, by their examples.
pub type KnownProblems = HashMap<Vec<u8>, Arc<Why>>;

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

/// What was refused in a run, until its end.
pub struct Refused<'py> {
    types: Arc<Types>,
    limits: Limits,
    list: Bound<'py, PyList>, // gets `WrittenRefusals`
    why: Option<Arc<Why>>,    // of the last one: a faulty sender makes one fault
    known: KnownProblems,
    example: Vec<u8>,
    open: Refusals,
}

/// What follows from a `RecordRefused`, and from its arguments alone.
pub struct Why {
    refused: Py<PyAny>,
    args: Py<PyAny>,
    reason: Py<PyAny>,
    json: Vec<u8>, // reason and detail
}

/// What becomes the next `WrittenRefusals` of Python.
#[derive(Default)]
struct Refusals {
    count: usize,
    first_offset: i64,
    last_offset: i64,
    latest_ms: i64,
    by_reason: Vec<(Py<PyAny>, usize)>, // the last one has the last reason
    json: Vec<u8>,
}

/// What is written of a record itself.
struct Content<'a> {
    offset: i64,
    timestamp_ms: i64,
    value: &'a [u8],
}

impl<'py> Refused<'py> {
    pub fn new(
        types: &Arc<Types>,
        limits: Limits,
        list: &Bound<'py, PyList>,
        known: KnownProblems,
    ) -> Self {
        let (types, list) = (types.clone(), list.clone());
        let (example, open) = (Vec::new(), Refusals::default());
        Self { types, limits, list, why: None, known, example, open }
    }

    pub fn extend(&mut self, refused: Vec<(Py<PyAny>, Py<PyAny>)>) -> PyResult<()> {
        refused.iter().try_for_each(|(record, why)| self.add(record, why))
    }

    /// Add a record that Python refused.
    pub fn add(&mut self, record: &Py<PyAny>, why: &Py<PyAny>) -> PyResult<()> {
        let py = self.list.py();
        let (record, why) = (record.bind(py), why.bind(py));
        let value = record.getattr(intern!(py, "value"))?;
        let value: Option<&[u8]> = value.extract()?;
        let content = Content {
            offset: record.getattr(intern!(py, "offset"))?.extract()?,
            timestamp_ms: record.getattr(intern!(py, "timestamp"))?.extract()?,
            value: value.unwrap_or_default(),
        };
        let why = match self.why.take() {
            Some(known) if known.is_of(why)? => known,
            _ => self.read(why)?.into(),
        };
        self.push(&content, &why)?;
        self.why = Some(why);
        Ok(())
    }

    /// Leave problems to Python that are not known, once many are: it reads such records together,
    /// and to read the example of each would cost more.
    pub fn leave_unknown<T>(&mut self, events: &mut [Result<T, Unplain<'_>>]) {
        if self.known.len() < MOST_KNOWN {
            return;
        }
        for event in events {
            if let Err(Unplain::Refused(problem)) = event {
                if self.known_why(*problem).is_none() {
                    *event = Err(Unplain::Other);
                }
            }
        }
    }

    /// Add a record of which is known why it is refused; `read` is the reader that refuses it.
    pub fn add_known(
        &mut self,
        parts: &Parts<'_>,
        problem: Problem<'_>,
        read: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let content = Content {
            offset: parts.place.offset,
            timestamp_ms: parts.place.timestamp,
            value: parts.value.unwrap_or_default(),
        };
        let why = self.why_of(problem, read)?;
        self.push(&content, &why)
    }

    fn why_of(&mut self, problem: Problem<'_>, read: &Bound<'_, PyAny>) -> PyResult<Arc<Why>> {
        if let Some(known) = self.known_why(problem) {
            return Ok(known.clone());
        }
        let py = read.py();
        let records = PyList::new(py, [Py::new(py, Record::of_value(py, &self.example))?])?;
        let (events, refuser) = read_by_python(records.as_any(), read, i64::MAX)?;
        let events = events.try_iter()?.count();
        let refused = refuser.borrow_mut().take();
        let [(_, why)] = refused.as_slice() else {
            let problem = format!("a reader refuses {problem:?}; it gave {events} events");
            return Err(PyValueError::new_err(problem));
        };
        let why = Arc::new(self.read(why.bind(py))?);
        if self.known.len() < MOST_KNOWN {
            self.known.insert(self.example.clone(), why.clone());
        }
        Ok(why)
    }

    fn known_why(&mut self, problem: Problem<'_>) -> Option<&Arc<Why>> {
        self.example.clear();
        problem.write_example(&mut self.example);
        self.known.get(&self.example)
    }

    fn push(&mut self, content: &Content<'_>, why: &Why) -> PyResult<()> {
        let before = self.open.json.len();
        if before > 0 {
            self.open.json.push(b',');
        }
        content.write(&why.json, self.limits.body, &mut self.open.json);
        let Limits { refusals, json, .. } = self.limits;
        if before > 0 && (self.open.count == refusals || self.open.json.len() > json) {
            let json = self.open.json.split_off(before + 1);
            self.open.json.truncate(before);
            self.end()?;
            self.open.json = json;
        }
        self.open.count(content, &why.reason, self.list.py());
        Ok(())
    }

    fn read(&self, why: &Bound<'py, PyAny>) -> PyResult<Why> {
        let py = why.py();
        Ok(Why {
            refused: why.clone().unbind(),
            args: why.getattr(intern!(py, "args"))?.unbind(),
            reason: why.getattr(intern!(py, "reason"))?.unbind(),
            json: self.types.why_as_json.bind(py).call1((why,))?.extract()?,
        })
    }

    /// Give to Python what has been added; return what is known of problems now.
    pub fn finish(mut self) -> PyResult<KnownProblems> {
        self.end()?;
        Ok(self.known)
    }

    fn end(&mut self) -> PyResult<()> {
        let Refusals { count, first_offset, last_offset, latest_ms, by_reason, json } =
            std::mem::take(&mut self.open);
        if count == 0 {
            return Ok(());
        }
        let py = self.list.py();
        let counts = PyDict::new(py);
        for (reason, count) in by_reason {
            let before: usize = match counts.get_item(&reason)? {
                Some(before) => before.extract()?,
                None => 0,
            };
            counts.set_item(reason, before + count)?;
        }
        let json = PyBytes::new(py, &json);
        let values = (count, first_offset, last_offset, latest_ms, counts, json);
        self.list.append(self.types.refusals.bind(py).call1(values)?)
    }
}

impl Why {
    fn is_of(&self, why: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = why.py();
        Ok(self.refused.is(why) || self.args.bind(py).eq(why.getattr(intern!(py, "args"))?)?)
    }
}

impl Refusals {
    fn count(&mut self, content: &Content<'_>, reason: &Py<PyAny>, py: Python<'_>) {
        if self.count == 0 {
            self.first_offset = content.offset;
            self.latest_ms = content.timestamp_ms;
        }
        self.count += 1;
        self.last_offset = content.offset;
        self.latest_ms = self.latest_ms.max(content.timestamp_ms);
        match self.by_reason.last_mut() {
            Some((last, count)) if last.is(reason) => *count += 1,
            _ => self.by_reason.push((reason.clone_ref(py), 1)),
        }
    }
}

impl Content<'_> {
    /// Write the fields of `schemas.quarantine.Refusal`, in their order.
    fn write(&self, why: &[u8], most_body: usize, json: &mut Vec<u8>) {
        let &Self { offset, timestamp_ms, value } = self;
        let (size, body) = (value.len(), &value[..value.len().min(most_body)]);
        json.reserve(2 * body.len() + why.len() + 256);
        put(json, format_args!("{{\"offset\":{offset},\"timestamp_ms\":{timestamp_ms},"));
        json.extend_from_slice(why);
        json.extend_from_slice(b",\"sha256\":\"");
        encode(&HEXLOWER, &Sha256::digest(value), json);
        put(json, format_args!("\",\"size\":{size},\"body\":\""));
        encode(&BASE64, body, json);
        put(json, format_args!("\",\"is_trimmed\":{}}}", size > most_body));
    }
}

fn put(json: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    json.write_fmt(text).expect("a vector takes all that is written")
}

fn encode(encoding: &Encoding, bytes: &[u8], json: &mut Vec<u8>) {
    let begin = json.len();
    json.resize(begin + encoding.encode_len(bytes.len()), 0);
    encoding.encode_mut(bytes, &mut json[begin..]);
}
