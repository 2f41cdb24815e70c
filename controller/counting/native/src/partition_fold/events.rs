//! Events: read where they lie where they are plain, by Python's readers where not.

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::joining::Joined;
use super::others::Others;
use super::plain::{plain_evaluation, plain_outcome, PlainEvaluation, PlainOutcome};
use super::refused::{Refused, Refuser};
use super::PartitionFold;
use crate::duplicates::{content_of, content_of_object, NOT_SAMPLED};
use crate::fold::{Class, Counted, Fold, Outcome};
use crate::hashing::digest_of;
use crate::record_batches::{Parts, Records};
use crate::scan::Unplain;

/// Records that are scanned before they are counted, so that Python reads those among them that are
/// not plain in one call: one by one they cost three times as much.
const AT_ONCE: usize = 512;

/// When an outcome must wait: `PartitionTotals.fold_outcomes`.
#[derive(Clone, Copy)]
pub struct Waiting<'a, 'py> {
    pub room: f64,
    pub partner: Option<&'a Bound<'py, PyAny>>,
    pub joinable_until_ms: f64,
}

/// A run of outcomes that is being counted.
pub struct OutcomeRun<'a, 'py> {
    pub waiting: Waiting<'a, 'py>,
    pub limit: f64,
    pub are_indexed: bool,
    pub known: Joined,
    counted: Counted,
    found: Vec<usize>,
}

impl<'a, 'py> OutcomeRun<'a, 'py> {
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
    // - runs of records and of events -

    /// Count evaluations that a reader of Python gave.
    pub fn evaluations_of(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        self.fold.freshest_ms = 0;
        let mut counted = Counted::default();
        self.count_evaluations_of(py, events, &mut counted)?;
        self.counted(py, counted, None)
    }

    /// Count the evaluations in records.
    pub fn evaluations_in(
        &mut self,
        py: Python<'_>,
        records: &Bound<'_, PyAny>,
        read: &Bound<'_, PyAny>,
        refused: &Bound<'_, PyList>,
        latest_ms: i64,
    ) -> PyResult<Py<PyAny>> {
        let mut found = Refused::default();
        let counted = match native(records, read, &self.readers.evaluations) {
            Some(native) => self.plain_evaluations(py, native.get(), read, &mut found, latest_ms),
            None => {
                let (events, refuser) = read_by_python(records, read, latest_ms)?;
                let counted = self.evaluations_of(py, &events);
                found.extend(refuser.borrow_mut().take());
                counted
            }
        }?;
        found.give(&self.types, refused)?;
        Ok(counted)
    }

    fn plain_evaluations(
        &mut self,
        py: Python<'_>,
        records: &Records,
        read: &Bound<'_, PyAny>,
        refused: &mut Refused,
        latest_ms: i64,
    ) -> PyResult<Py<PyAny>> {
        self.fold.freshest_ms = 0;
        let mut counted = Counted::default();
        for begin in (0..records.len()).step_by(AT_ONCE) {
            let end = records.len().min(begin + AT_ONCE);
            let plain = |index| plain_evaluation(&records.parts(py, index), latest_ms);
            let found: Vec<_> = (begin..end).map(plain).collect();
            let mut others = Others::read(py, records, begin, &found, read, latest_ms)?;
            for (index, event) in (begin..end).zip(found) {
                match event {
                    Ok(PlainEvaluation { digest, flag_key, variant, time_ms }) => {
                        let around = self.surroundings.bind(py);
                        let class = self
                            .fold
                            .count_evaluation(&around, digest, flag_key, variant, time_ms)?;
                        counted.add(class);
                    }
                    Err(Unplain::CutOff) => refused.add_cut_off(py, &records.parts(py, index)),
                    Err(Unplain::Other) => {
                        if let Some(event) = others.next(refused) {
                            self.count_evaluation_of(py, event.bind(py), &mut counted)?;
                        }
                    }
                }
            }
        }
        self.counted(py, counted, None)
    }

    /// Count outcomes that a reader of Python gave, until one must wait.
    pub fn outcomes_of(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        waiting: Waiting<'_, '_>,
    ) -> PyResult<Py<PyAny>> {
        self.fold.freshest_ms = 0;
        let mut run = OutcomeRun::new(&self.fold, waiting);
        let stopped_at = self.count_outcomes_of(py, events, &mut run)?;
        self.counted(py, run.counted, stopped_at)
    }

    /// Count the outcomes in records, until one must wait.
    pub fn outcomes_in(
        &mut self,
        py: Python<'_>,
        records: &Bound<'_, PyAny>,
        read: &Bound<'_, PyAny>,
        refused: &Bound<'_, PyList>,
        latest_ms: i64,
        waiting: Waiting<'_, '_>,
    ) -> PyResult<Py<PyAny>> {
        let mut found = Refused::default();
        let counted = match native(records, read, &self.readers.outcomes) {
            Some(native) => {
                self.plain_outcomes(py, native.get(), read, &mut found, latest_ms, waiting)
            }
            None => {
                let (events, refuser) = read_by_python(records, read, latest_ms)?;
                let counted = self.outcomes_of(py, &events, waiting);
                found.extend(refuser.borrow_mut().take());
                counted
            }
        }?;
        found.give(&self.types, refused)?;
        Ok(counted)
    }

    fn plain_outcomes(
        &mut self,
        py: Python<'_>,
        records: &Records,
        read: &Bound<'_, PyAny>,
        refused: &mut Refused,
        latest_ms: i64,
        waiting: Waiting<'_, '_>,
    ) -> PyResult<Py<PyAny>> {
        self.fold.freshest_ms = 0;
        let mut run = OutcomeRun::new(&self.fold, waiting);
        for begin in (0..records.len()).step_by(AT_ONCE) {
            let end = records.len().min(begin + AT_ONCE);
            let plain = |index| plain_outcome(&records.parts(py, index), latest_ms);
            let found: Vec<_> = (begin..end).map(plain).collect();
            let mut others = Others::read(py, records, begin, &found, read, latest_ms)?;
            for (index, event) in (begin..end).zip(found) {
                let is_counted = match event {
                    Ok(event) => {
                        self.count_plain_outcome(py, &event, &records.parts(py, index), &mut run)?
                    }
                    Err(Unplain::CutOff) => {
                        refused.add_cut_off(py, &records.parts(py, index));
                        true
                    }
                    Err(Unplain::Other) => match others.next(refused) {
                        Some(event) => self.count_outcome_of(py, event.bind(py), &mut run)?,
                        None => true,
                    },
                };
                if !is_counted {
                    let stopped_at = Py::new(py, records.record(py, index)?)?.into_any();
                    return self.counted(py, run.counted, Some(stopped_at));
                }
            }
        }
        self.counted(py, run.counted, None)
    }

    fn count_evaluations_of(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        counted: &mut Counted,
    ) -> PyResult<()> {
        for event in events.try_iter()? {
            self.count_evaluation_of(py, &event?, counted)?;
        }
        Ok(())
    }

    /// Return the record of the outcome that must wait, None when all are counted.
    fn count_outcomes_of(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        run: &mut OutcomeRun<'_, '_>,
    ) -> PyResult<Option<Py<PyAny>>> {
        for event in events.try_iter()? {
            let event = event?;
            if !self.count_outcome_of(py, &event, run)? {
                return Ok(Some(event.get_item(0)?.unbind()));
            }
        }
        Ok(None)
    }

    fn counted(
        &self,
        py: Python<'_>,
        counted: Counted,
        stopped_at: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let Counted { counted, late, ignored } = counted;
        let values = (counted, late, ignored, self.fold.freshest_ms, stopped_at);
        self.types.counted.call1(py, values)
    }

    #[inline]
    fn bucket_of(&self, latency_ms: f64) -> i32 {
        if latency_ms <= 0.001 {
            return self.lowest_bucket;
        }
        ((latency_ms.ln() / self.log_gamma).ceil() as i32).min(self.highest_bucket)
    }

    // - one evaluation -

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
        let around = self.surroundings.bind(py);
        let (flag_key, variant) = (text(&flag_key)?, text(&variant)?);
        counted.add(self.fold.count_evaluation(&around, digest, flag_key, variant, time_ms)?);
        Ok(())
    }

    // - one outcome -

    /// Count one that a reader of Python gave; return False when it must wait.
    fn count_outcome_of(
        &mut self,
        py: Python<'_>,
        event: &Bound<'_, PyAny>,
        run: &mut OutcomeRun<'_, '_>,
    ) -> PyResult<bool> {
        let event = event.cast::<PyTuple>()?;
        let record = event.get_item(0)?;
        let context_id = event.get_item(1)?;
        let time_ms: i64 = event.get_item(2)?.extract()?;
        let named: Vec<(String, String)> = event.get_item(3)?.extract()?;
        let is_error: bool = event.get_item(4)?.extract()?;
        let latency_ms: Option<f64> = event.get_item(5)?.extract()?;
        let conversions: Vec<String> = event.get_item(6)?.extract()?;
        let timestamp_ms: i64 = match named.is_empty() && run.waiting.partner.is_some() {
            true => record.getattr(intern!(py, "timestamp"))?.extract()?,
            false => 0,
        };
        let digest = digest_of(text(&context_id)?.as_bytes());
        let is_unnamed = named.is_empty();
        let Some(joined) = self.flags_of(py, digest, time_ms, timestamp_ms, is_unnamed, run)?
        else {
            return Ok(false);
        };
        let flags = borrowed(if is_unnamed { &joined } else { &named });
        let conversions: Vec<&str> = conversions.iter().map(String::as_str).collect();
        let outcome = Outcome {
            digest,
            time_ms,
            flags: &flags,
            is_error,
            bucket: latency_ms.map(|latency_ms| self.bucket_of(latency_ms)),
            conversions: &conversions,
        };
        self.count_outcome(py, &outcome, run, || content_of_object(&record))?;
        Ok(true)
    }

    /// Count one that lies plain in its record; return False when it must wait.
    #[inline]
    fn count_plain_outcome(
        &mut self,
        py: Python<'_>,
        event: &PlainOutcome<'_>,
        parts: &Parts<'_>,
        run: &mut OutcomeRun<'_, '_>,
    ) -> PyResult<bool> {
        let PlainOutcome { digest, time_ms, ref found } = *event;
        let is_unnamed = found.flags.is_empty();
        let timestamp_ms = parts.place.timestamp;
        let Some(joined) = self.flags_of(py, digest, time_ms, timestamp_ms, is_unnamed, run)?
        else {
            return Ok(false);
        };
        let joined = borrowed(&joined);
        let outcome = Outcome {
            digest,
            time_ms,
            flags: if is_unnamed { &joined } else { &found.flags },
            is_error: found.has_error,
            bucket: found.duration_seconds.map(|seconds| self.bucket_of(seconds * 1000.0)),
            conversions: &found.conversions,
        };
        let content = || Ok((content_of(parts.value, &[]), parts.place.offset));
        self.count_outcome(py, &outcome, run, content)?;
        Ok(true)
    }

    /// Count one, and whether it came before: `content` gives its record's hash and offset.
    #[inline]
    fn count_outcome(
        &mut self,
        py: Python<'_>,
        outcome: &Outcome<'_>,
        run: &mut OutcomeRun<'_, '_>,
        content: impl FnOnce() -> PyResult<(u64, i64)>,
    ) -> PyResult<()> {
        let around = self.surroundings.bind(py);
        let class = self.fold.count_outcome(&around, outcome, &mut run.found)?;
        run.counted.add(class);
        if class == Class::Counted && outcome.digest & NOT_SAMPLED == 0 {
            let (content, offset) = content()?;
            let came_before = self.recent_records.came_before(content, offset);
            self.fold.count_repetition(&run.found, came_before);
        }
        Ok(())
    }
}

fn borrowed(flags: &[(String, String)]) -> Vec<(&str, &str)> {
    flags.iter().map(|(flag_key, variant)| (flag_key.as_str(), variant.as_str())).collect()
}

/// Records that are read natively, None for those that Python reads.
fn native<'a, 'py>(
    records: &'a Bound<'py, PyAny>,
    read: &Bound<'py, PyAny>,
    reader: &Py<PyAny>,
) -> Option<&'a Bound<'py, Records>> {
    read.is(reader).then(|| records.cast::<Records>().ok())?
}

/// The events of records, as a reader of Python gives them, and what gets the records that it
/// refuses while they are taken.
pub fn read_by_python<'py>(
    records: &Bound<'py, PyAny>,
    read: &Bound<'py, PyAny>,
    latest_ms: i64,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, Refuser>)> {
    let py = records.py();
    let refuser = Refuser::new(py)?;
    let named = PyDict::new(py);
    named.set_item(intern!(py, "latest_ms"), latest_ms)?;
    Ok((read.call((records, &refuser), Some(&named))?, refuser))
}

fn text<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    value
        .cast::<PyString>()
        .map_err(|_| PyTypeError::new_err("an event's names are text"))?
        .to_str()
}
