//! Records of fetched record batches, where they lie: nothing is copied, and no object is made of a
//! record until somebody asks for it.
//!
//! Only plain batches are taken: format v2, uncompressed, of no transaction, whole, with the right
//! checksum, and records that add up. Whatever else there is stays to aiokafka.
//!
//! Source: Apache Kafka, `DefaultRecordBatch` and `DefaultRecord`.

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySlice, PyTuple};

const HEADER: usize = 61;
const LOG_OVERHEAD: usize = 12; // offset and length
const MAGIC: usize = 16;
const CRC: usize = 17;
const CRC_FROM: usize = 21; // the checksum covers everything from here
const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const ATTRIBUTES: usize = 21;

/// Where one record's parts lie. A negative length is null.
#[derive(Clone, Copy)]
pub struct Place {
    pub offset: i64,
    pub timestamp: i64,
    key: (u32, i32),
    value: (u32, i32),
    headers: (u32, u32), // begin, and how many
}

pub struct Content {
    bytes: Py<PyBytes>,
    places: Vec<Place>,
}

/// Consecutive records of one partition: a sequence for Python.
#[pyclass(frozen, sequence, module = "controller.counting._native")]
pub struct Records {
    content: Arc<Content>,
    begin: usize,
    end: usize,
}

/// One record, with the names that `controller.ports.Record` has.
#[pyclass(frozen, module = "controller.counting._native")]
pub struct Record {
    #[pyo3(get)]
    offset: i64,
    #[pyo3(get)]
    timestamp: i64,
    #[pyo3(get)]
    key: Option<Py<PyBytes>>,
    #[pyo3(get)]
    value: Option<Py<PyBytes>>,
    #[pyo3(get)]
    headers: Py<PyAny>,
}

/// A record's parts, borrowed.
pub struct Parts<'a> {
    pub place: Place,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    bytes: &'a [u8],
}

impl Record {
    /// A record that has a value and nothing else.
    pub fn of_value(py: Python<'_>, value: &[u8]) -> Self {
        let value = Some(PyBytes::new(py, value).unbind());
        let headers = PyTuple::empty(py).into_any().unbind();
        Self { offset: 0, timestamp: 0, key: None, value, headers }
    }
}

impl Parts<'_> {
    /// Whether the value holds a whole event, as its headers have it (`envelope.is_structured`).
    /// None: Python decides.
    pub fn is_structured(&self) -> Option<bool> {
        let (mut at, count) = (self.place.headers.0 as usize, self.place.headers.1);
        let (mut is_structured, mut has_attributes) = (None, false);
        for _ in 0..count {
            let name = bytes_at(self.bytes, &mut at)??;
            let content = bytes_at(self.bytes, &mut at)?;
            if !name.is_ascii() {
                return None;
            }
            if name.eq_ignore_ascii_case(b"content-type") {
                if let (Some(content), None) = (content, is_structured) {
                    is_structured = Some(
                        content == b"application/cloudevents+json"
                            || content == b"application/cloudevents+json; charset=UTF-8"
                            || content == b"application/cloudevents",
                    );
                }
            }
            has_attributes |= name.starts_with(b"ce_");
        }
        // Attributes make a repetition another record, also beside a whole event.
        (!has_attributes && is_structured != Some(false)).then_some(true)
    }
}

impl Records {
    pub fn len(&self) -> usize {
        self.end - self.begin
    }

    pub fn parts<'a>(&'a self, py: Python<'a>, index: usize) -> Parts<'a> {
        let place = self.content.places[self.begin + index];
        let bytes = self.content.bytes.as_bytes(py);
        Parts { place, key: part(bytes, place.key), value: part(bytes, place.value), bytes }
    }

    pub fn record(&self, py: Python<'_>, index: usize) -> PyResult<Record> {
        let parts = self.parts(py, index);
        let mut headers = Vec::new();
        let mut at = parts.place.headers.0 as usize;
        for _ in 0..parts.place.headers.1 {
            let (Some(Some(name)), Some(content)) =
                (bytes_at(parts.bytes, &mut at), bytes_at(parts.bytes, &mut at))
            else {
                return Err(PyValueError::new_err("a header ends behind its record"));
            };
            let name = String::from_utf8_lossy(name);
            headers.push((name, content.map(|content| PyBytes::new(py, content))));
        }
        let owned = |part: Option<&[u8]>| part.map(|part| PyBytes::new(py, part).unbind());
        Ok(Record {
            offset: parts.place.offset,
            timestamp: parts.place.timestamp,
            key: owned(parts.key),
            value: owned(parts.value),
            headers: PyTuple::new(py, headers)?.into_any().unbind(),
        })
    }

    fn slice(&self, begin: usize, end: usize) -> Records {
        let begin = (self.begin + begin).min(self.end);
        let end = (self.begin + end).min(self.end).max(begin);
        Records { content: self.content.clone(), begin, end }
    }
}

#[pymethods]
impl Records {
    fn __len__(&self) -> usize {
        self.len()
    }

    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        index: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(slice) = index.cast::<PySlice>() {
            let part = slice.indices(self.len() as isize)?;
            if part.step != 1 {
                return Err(PyValueError::new_err("records have slices of step 1 only"));
            }
            let end = part.stop.max(part.start) as usize;
            return Ok(Bound::new(py, self.slice(part.start as usize, end))?.into_any());
        }
        let index: isize = index.extract()?;
        let place = if index < 0 { index + self.len() as isize } else { index };
        if place < 0 || place as usize >= self.len() {
            return Err(PyIndexError::new_err("no such record"));
        }
        Ok(Bound::new(py, self.record(py, place as usize)?)?.into_any())
    }
}

/// Read plain batches from `begin` on; return their records from `offset` on, the place behind
/// them, and the offset behind the last batch. The place is `begin` when the first is not plain.
#[pyfunction]
pub fn read_batches(
    content: Bound<'_, PyBytes>,
    begin: usize,
    offset: i64,
) -> (Records, usize, i64) {
    let bytes = content.as_bytes();
    let (mut at, mut next_offset) = (begin, -1);
    let mut places = Vec::new();
    if u32::try_from(bytes.len()).is_ok() {
        while let Some((end, next)) = read_batch(bytes, at, offset, next_offset, &mut places) {
            (at, next_offset) = (end, next);
        }
    }
    let end = places.len();
    let content = Arc::new(Content { bytes: content.unbind(), places });
    (Records { content, begin: 0, end }, at, next_offset)
}

/// Read one plain batch; return the place behind it and the offset behind it.
fn read_batch(
    bytes: &[u8],
    at: usize,
    offset: i64,
    least: i64,
    places: &mut Vec<Place>,
) -> Option<(usize, i64)> {
    let header = bytes.get(at..at + HEADER)?;
    let base = i64::from_be_bytes(header[..8].try_into().ok()?);
    let length = usize::try_from(i32::from_be_bytes(header[8..12].try_into().ok()?)).ok()?;
    let end = at + LOG_OVERHEAD + length;
    let attributes = i16::from_be_bytes(header[ATTRIBUTES..ATTRIBUTES + 2].try_into().ok()?);
    let delta = i64::from(i32::from_be_bytes(header[23..27].try_into().ok()?));
    let first_ms = i64::from_be_bytes(header[27..35].try_into().ok()?);
    let most_ms = i64::from_be_bytes(header[35..43].try_into().ok()?);
    let count = i32::from_be_bytes(header[57..61].try_into().ok()?);
    let is_plain = header[MAGIC] == 2
        && attributes & (CODEC_MASK | TRANSACTIONAL | CONTROL) == 0
        && length >= HEADER - LOG_OVERHEAD
        && end <= bytes.len()
        && base >= least.max(0)
        && delta >= 0
        && base.checked_add(delta)?.checked_add(1).is_some()
        && i64::from(count) <= delta + 1;
    let checksum = u32::from_be_bytes(header[CRC..CRC + 4].try_into().ok()?);
    if !is_plain || crc32c::crc32c(bytes.get(at + CRC_FROM..end)?) != checksum {
        return None;
    }
    let append_ms = (attributes & LOG_APPEND_TIME != 0).then_some(most_ms);
    let before = places.len();
    if read_records(
        &bytes[..end],
        at + HEADER,
        count,
        (base, delta, first_ms),
        append_ms,
        offset,
        places,
    )
    .is_none()
    {
        places.truncate(before);
        return None;
    }
    Some((end, base + delta + 1))
}

/// Read the records of one batch, which fill `bytes` from `at` on; None where they do not add up.
fn read_records(
    bytes: &[u8],
    mut at: usize,
    count: i32,
    (base, delta, first_ms): (i64, i64, i64),
    append_ms: Option<i64>,
    offset: i64,
    places: &mut Vec<Place>,
) -> Option<()> {
    let mut last = -1;
    for _ in 0..count {
        let length = usize::try_from(varint(bytes, &mut at)?).ok()?;
        let end = at.checked_add(length).filter(|end| *end <= bytes.len())?;
        let record = &bytes[..end];
        at += 1; // attributes, which are unused
        let timestamp = first_ms.checked_add(varint(record, &mut at)?)?;
        let record_delta = varint(record, &mut at)?;
        if record_delta <= last || record_delta > delta {
            return None;
        }
        last = record_delta;
        let key = part_at(record, &mut at)?;
        let value = part_at(record, &mut at)?;
        let headers = u32::try_from(varint(record, &mut at)?).ok()?;
        let first_header = u32::try_from(at).ok()?;
        for _ in 0..headers {
            std::str::from_utf8(bytes_at(record, &mut at)??).ok()?;
            bytes_at(record, &mut at)?;
        }
        if at != end || record[end - length] >= 0x80 {
            return None;
        }
        if base + record_delta >= offset {
            places.push(Place {
                offset: base + record_delta,
                timestamp: append_ms.unwrap_or(timestamp),
                key,
                value,
                headers: (first_header, headers),
            });
        }
    }
    (at == bytes.len()).then_some(())
}

#[inline]
fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}

/// Go past a part with its length; return where it lies.
fn part_at(bytes: &[u8], at: &mut usize) -> Option<(u32, i32)> {
    let length = i32::try_from(varint(bytes, at)?).ok()?;
    let begin = u32::try_from(*at).ok()?;
    let end = at.checked_add(usize::try_from(length.max(0)).ok()?)?;
    if end > bytes.len() {
        return None;
    }
    *at = end;
    Some((begin, length))
}

/// Read a part with its length; the inner None is null.
fn bytes_at<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Option<&'a [u8]>> {
    part_at(bytes, at).map(|place| part(bytes, place))
}

fn part(bytes: &[u8], (begin, length): (u32, i32)) -> Option<&[u8]> {
    let length = usize::try_from(length).ok()?;
    bytes.get(begin as usize..begin as usize + length)
}
