//! Events: read where they lie where they are plain, by Python's readers where not.

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::joining::Joined;
use super::PartitionFold;
use crate::batches::Records;
use crate::duplicates::{content_of, content_of_object, NOT_SAMPLED};
use crate::fold::{Class, Counted, Fold, Outcome};
use crate::hashing::digest_of;
use crate::scan;
use crate::surroundings::Around;

/// Furthest that an event's time may be ahead of its record's: `schemas.envelope.MAX_AHEAD_MS`.
const MAX_AHEAD_MS: i64 = 5 * 60 * 1000;
/// When an outcome must wait: `PartitionTotals.fold_outcomes`.
#[derive(Clone, Copy)]
pub struct Waiting<'a, 'py> {
    pub room: f64,
    pub join: Option<&'a Bound<'py, PyAny>>,
    pub joinable_until_ms: f64,
}

/// A batch of outcomes that is being counted.
pub struct OutcomeBatch<'a, 'py> {
    pub waiting: Waiting<'a, 'py>,
    pub limit: f64,
    pub are_indexed: bool,
    pub known: Joined,
    counted: Counted,
    found: Vec<usize>,
}

impl<'a, 'py> OutcomeBatch<'a, 'py> {
    fn new(fold: &Fold, waiting: Waiting<'a, 'py>) -> Self {
        Self {
            waiting,
            limit: waiting.room + fold.grown() as f64,
            are_indexed: false,
            known: Joined::default(),
            counted: Counted::default(),
            found: Vec::new(),
        }
    }
}

impl PartitionFold {
    pub fn evaluations_of(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        self.fold.fresh = 0;
        let mut counted = Counted::default();
        for event in events.try_iter()? {
            self.count_evaluation_of(py, &event?, &mut counted)?;
        }
        self.counted(py, counted, None)
    }

    pub fn evaluations_in(
        &mut self,
        py: Python<'_>,
        batch: &Bound<'_, PyAny>,
        read: &Bound<'_, PyAny>,
        refuse: &Bound<'_, PyAny>,
        latest_ms: i64,
    ) -> PyResult<Py<PyAny>> {
        let Some(records) = native(batch, read, &self.readers.0) else {
            return self.evaluations_of(py, &read_all(batch, read, refuse, latest_ms)?);
        };
        let records = records.get();
        self.fold.fresh = 0;
        let mut counted = Counted::default();
        for index in 0..records.len() {
            if self.count_evaluation_in(py, records, index, latest_ms, &mut counted)? {
                continue;
            }
            let one = PyList::new(py, [records.record(py, index)?])?;
            for event in read_all(one.as_any(), read, refuse, latest_ms)?.try_iter()? {
                self.count_evaluation_of(py, &event?, &mut counted)?;
            }
        }
        self.counted(py, counted, None)
    }

    pub fn outcomes_of(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        waiting: Waiting<'_, '_>,
    ) -> PyResult<Py<PyAny>> {
        self.fold.fresh = 0;
        let mut batch = OutcomeBatch::new(&self.fold, waiting);
        for event in events.try_iter()? {
            let event = event?;
            if !self.count_outcome_of(py, &event, &mut batch)? {
                return self.counted(py, batch.counted, Some(event.get_item(0)?.unbind()));
            }
        }
        self.counted(py, batch.counted, None)
    }

    pub fn outcomes_in(
        &mut self,
        py: Python<'_>,
        batch: &Bound<'_, PyAny>,
        read: &Bound<'_, PyAny>,
        refuse: &Bound<'_, PyAny>,
        latest_ms: i64,
        waiting: Waiting<'_, '_>,
    ) -> PyResult<Py<PyAny>> {
        let Some(records) = native(batch, read, &self.readers.1) else {
            return self.outcomes_of(py, &read_all(batch, read, refuse, latest_ms)?, waiting);
        };
        let records = records.get();
        self.fold.fresh = 0;
        let mut batch = OutcomeBatch::new(&self.fold, waiting);
        for index in 0..records.len() {
            match self.count_outcome_in(py, records, index, latest_ms, &mut batch)? {
                Some(true) => continue,
                Some(false) => {
                    let record = Py::new(py, records.record(py, index)?)?.into_any();
                    return self.counted(py, batch.counted, Some(record));
                }
                None => {}
            }
            let one = PyList::new(py, [records.record(py, index)?])?;
            for event in read_all(one.as_any(), read, refuse, latest_ms)?.try_iter()? {
                let event = event?;
                if !self.count_outcome_of(py, &event, &mut batch)? {
                    return self.counted(py, batch.counted, Some(event.get_item(0)?.unbind()));
                }
            }
        }
        self.counted(py, batch.counted, None)
    }

    fn counted(
        &self,
        py: Python<'_>,
        counted: Counted,
        stopped_at: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let Counted { counted, late, ignored, .. } = counted;
        self.types.0.call1(py, (counted, late, ignored, self.fold.fresh, stopped_at))
    }

    #[inline]
    fn bucket_of(&self, latency_ms: f64) -> i32 {
        if latency_ms <= 0.001 {
            return self.buckets.0;
        }
        ((latency_ms.ln() / self.log_gamma).ceil() as i32).min(self.buckets.1)
    }

    // - evaluations -

    /// Count one that a reader of Python gave.
    fn count_evaluation_of(
        &mut self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
        counted: &mut Counted,
    ) -> PyResult<()> {
        let event = event.cast::<PyTuple>()?;
        let (context_id, flag_key) = (event.get_item(0)?, event.get_item(1)?);
        let (variant, time_ms) = (event.get_item(2)?, event.get_item(3)?.extract()?);
        let digest = digest_of(text(&context_id)?.as_bytes());
        let (flags_to_count, is_bundled) = (self.flags_to_count.bind(py), self.is_bundled.bind(py));
        let around = Around { flags_to_count, is_bundled };
        counted.add(self.fold.count_evaluation(
            &around,
            digest,
            text(&flag_key)?,
            text(&variant)?,
            time_ms,
        )?);
        Ok(())
    }

    /// Count a record that is plain; return whether it is.
    #[inline]
    fn count_evaluation_in(
        &mut self,
        py: Python<'_>,
        records: &Records,
        index: usize,
        latest_ms: i64,
        counted: &mut Counted,
    ) -> PyResult<bool> {
        let parts = records.parts(py, index);
        let Some(event) = parts.value.and_then(scan::evaluation) else { return Ok(false) };
        let timestamp_ms = parts.place.timestamp;
        let time_ms = event.time_ms.unwrap_or(timestamp_ms);
        let context_id = event.context_id.or_else(|| parts.key.and_then(scan::context_of_key));
        let Some(context_id) = context_id else { return Ok(false) };
        if !is_plausible(time_ms, timestamp_ms, latest_ms) || parts.is_structured() != Some(true) {
            return Ok(false);
        }
        let digest = digest_of(context_id.as_bytes());
        let (flags_to_count, is_bundled) = (self.flags_to_count.bind(py), self.is_bundled.bind(py));
        let around = Around { flags_to_count, is_bundled };
        counted.add(self.fold.count_evaluation(
            &around,
            digest,
            event.flag_key,
            event.variant,
            time_ms,
        )?);
        Ok(true)
    }

    // - outcomes -

    /// Count one that a reader of Python gave; return False when it must wait.
    fn count_outcome_of(
        &mut self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
        batch: &mut OutcomeBatch<'_, '_>,
    ) -> PyResult<bool> {
        let event = event.cast::<PyTuple>()?;
        let record = event.get_item(0)?;
        let context_id = event.get_item(1)?;
        let time_ms: i64 = event.get_item(2)?.extract()?;
        let named: Vec<(String, String)> = event.get_item(3)?.extract()?;
        let is_error: bool = event.get_item(4)?.extract()?;
        let latency_ms: Option<f64> = event.get_item(5)?.extract()?;
        let conversions: Vec<String> = event.get_item(6)?.extract()?;
        let timestamp_ms: i64 = match named.is_empty() && batch.waiting.join.is_some() {
            true => record.getattr(intern!(py, "timestamp"))?.extract()?,
            false => 0,
        };
        let digest = digest_of(text(&context_id)?.as_bytes());
        let bucket = latency_ms.map(|latency_ms| self.bucket_of(latency_ms));
        let Some(joined) =
            self.flags_of(py, digest, time_ms, timestamp_ms, named.is_empty(), batch)?
        else {
            return Ok(false);
        };
        let flags = if named.is_empty() { &joined } else { &named };
        let outcome =
            Outcome { digest, time_ms, flags, is_error, bucket, conversions: &conversions };
        let class = self.count_outcome(py, &outcome, batch)?;
        if class == Class::Counted && digest & NOT_SAMPLED == 0 {
            let (content, offset) = content_of_object(&record)?;
            let came_before = self.records.came_before(content, offset);
            self.fold.count_repetition(&batch.found, came_before);
        }
        Ok(true)
    }

    /// Count a record that is plain: None when it is not, False when it must wait.
    #[inline]
    fn count_outcome_in(
        &mut self,
        py: Python<'_>,
        records: &Records,
        index: usize,
        latest_ms: i64,
        batch: &mut OutcomeBatch<'_, '_>,
    ) -> PyResult<Option<bool>> {
        let parts = records.parts(py, index);
        let Some(event) = parts.value.and_then(scan::outcome) else { return Ok(None) };
        let timestamp_ms = parts.place.timestamp;
        let time_ms = event.time_ms.unwrap_or(timestamp_ms);
        let context_id = match event.context_id {
            Some(context_id) => Some(context_id),
            None if event.is_known => parts.key.and_then(scan::context_of_key),
            None => None,
        };
        let Some(context_id) = context_id else { return Ok(None) };
        if !is_plausible(time_ms, timestamp_ms, latest_ms) || parts.is_structured() != Some(true) {
            return Ok(None);
        }
        let digest = digest_of(context_id.as_bytes());
        let bucket = event.duration_seconds.map(|seconds| self.bucket_of(seconds * 1000.0));
        let is_unnamed = event.flags.is_empty();
        let Some(joined) = self.flags_of(py, digest, time_ms, timestamp_ms, is_unnamed, batch)?
        else {
            return Ok(Some(false));
        };
        let class = if is_unnamed {
            let names: Vec<String> = event.conversions.iter().map(ToString::to_string).collect();
            let outcome = Outcome {
                digest,
                time_ms,
                flags: &joined,
                is_error: event.has_error,
                bucket,
                conversions: &names,
            };
            self.count_outcome(py, &outcome, batch)?
        } else {
            let outcome = Outcome {
                digest,
                time_ms,
                flags: &event.flags,
                is_error: event.has_error,
                bucket,
                conversions: &event.conversions,
            };
            self.count_outcome(py, &outcome, batch)?
        };
        if class == Class::Counted && digest & NOT_SAMPLED == 0 {
            let content = content_of(parts.value, &[]);
            let came_before = self.records.came_before(content, parts.place.offset);
            self.fold.count_repetition(&batch.found, came_before);
        }
        Ok(Some(true))
    }

    #[inline]
    fn count_outcome<Text: AsRef<str>>(
        &mut self,
        py: Python<'_>,
        outcome: &Outcome<'_, Text>,
        batch: &mut OutcomeBatch<'_, '_>,
    ) -> PyResult<Class> {
        let (flags_to_count, is_bundled) = (self.flags_to_count.bind(py), self.is_bundled.bind(py));
        let around = Around { flags_to_count, is_bundled };
        let class = self.fold.count_outcome(&around, outcome, &mut batch.found)?;
        batch.counted.add(class);
        Ok(class)
    }
}

#[inline]
fn is_plausible(time_ms: i64, timestamp_ms: i64, latest_ms: i64) -> bool {
    time_ms >= 0
        && (0..=latest_ms).contains(&timestamp_ms)
        && time_ms <= latest_ms
        && time_ms <= timestamp_ms.saturating_add(MAX_AHEAD_MS)
}

/// The records of a batch that is read natively, None for one that Python reads.
fn native<'a, 'py>(
    batch: &'a Bound<'py, PyAny>,
    read: &Bound<'py, PyAny>,
    reader: &Py<PyAny>,
) -> Option<&'a Bound<'py, Records>> {
    read.is(reader).then(|| batch.cast::<Records>().ok())?
}

fn read_all<'py>(
    batch: &Bound<'py, PyAny>,
    read: &Bound<'py, PyAny>,
    refuse: &Bound<'py, PyAny>,
    latest_ms: i64,
) -> PyResult<Bound<'py, PyAny>> {
    let py = batch.py();
    let named = PyDict::new(py);
    named.set_item(intern!(py, "latest_ms"), latest_ms)?;
    read.call((batch, refuse), Some(&named))
}

fn text<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    value
        .cast::<PyString>()
        .map_err(|_| PyTypeError::new_err("an event's names are text"))?
        .to_str()
}
