//! Events: read where they lie where they are plain, by Python's readers where not.

use std::mem::take;

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::joining::Joined;
use super::refused::{KnownProblems, Refused, Refuser};
use super::PartitionFold;
use crate::arms::Bucket;
use crate::duplicates::{content_of_object, NOT_SAMPLED};
use crate::fold::{Class, Counted, Evaluation, Fold, Outcome};
use crate::hashing::digest_of;
use crate::record_batches::Records;

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
    limit: f64,
    pub are_indexed: bool,
    pub known: Joined,
    pub counted: Counted,
    found: Vec<usize>,
}

impl<'a, 'py> OutcomeRun<'a, 'py> {
    pub fn new(fold: &Fold, waiting: Waiting<'a, 'py>) -> Self {
        Self {
            waiting,
            limit: waiting.room + fold.grown() as f64,
            are_indexed: false,
            known: Joined::default(),
            counted: Counted::default(),
            found: Vec::new(),
        }
    }

    /// Whether the next outcome must wait for room.
    #[inline]
    pub fn must_wait(&self, fold: &Fold) -> bool {
        fold.grown() as f64 >= self.limit
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
        let known = take(&mut self.known_problems.of_evaluations);
        let mut found = self.refused(known, refused);
        let counted = match native(records, read, &self.readers.evaluations) {
            Some(native) => self.plain_evaluations(py, native.get(), read, &mut found, latest_ms),
            None => {
                let (events, refuser) = read_by_python(records, read, latest_ms)?;
                let counted = self.evaluations_of(py, &events);
                found.extend(refuser.borrow_mut().take())?;
                counted
            }
        }?;
        self.known_problems.of_evaluations = found.finish()?;
        Ok(counted)
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
        let known = take(&mut self.known_problems.of_outcomes);
        let mut found = self.refused(known, refused);
        let counted = match native(records, read, &self.readers.outcomes) {
            Some(native) => {
                self.plain_outcomes(py, native.get(), read, &mut found, latest_ms, waiting)
            }
            None => {
                let (events, refuser) = read_by_python(records, read, latest_ms)?;
                let counted = self.outcomes_of(py, &events, waiting);
                found.extend(refuser.borrow_mut().take())?;
                counted
            }
        }?;
        self.known_problems.of_outcomes = found.finish()?;
        Ok(counted)
    }

    /// What is to be refused in a run, with what is known of problems.
    fn refused<'py>(&self, known: KnownProblems, list: &Bound<'py, PyList>) -> Refused<'py> {
        Refused::new(&self.types, self.refusal_limits, list, known)
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

    pub fn counted(
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
    pub fn bucket_of(&self, latency_ms: f64) -> Bucket {
        if latency_ms <= 0.001 {
            return self.lowest_bucket;
        }
        ((latency_ms.ln() / self.log_gamma).ceil() as Bucket).min(self.highest_bucket)
    }

    // - one evaluation -

    /// Count one that a reader of Python gave.
    pub fn count_evaluation_of(
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
        let evaluation = Evaluation { digest, flag_key, variant, time_ms };
        counted.add(self.fold.count_evaluation(&around, &evaluation, None)?);
        Ok(())
    }

    // - one outcome -

    /// Count one that a reader of Python gave; return False when it must wait.
    pub fn count_outcome_of(
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
        if run.must_wait(&self.fold) {
            return Ok(false);
        }
        let flags = match named.is_empty() {
            true => self.flags_of(py, digest, time_ms, timestamp_ms, run)?,
            false => Some(named),
        };
        let Some(flags) = flags else { return Ok(false) };
        let flags = borrowed(&flags);
        let conversions: Vec<&str> = conversions.iter().map(String::as_str).collect();
        let outcome = Outcome {
            digest,
            time_ms,
            flags: &flags,
            ahead: &[],
            is_error,
            bucket: latency_ms.map(|latency_ms| self.bucket_of(latency_ms)),
            conversions: &conversions,
        };
        self.count_outcome(py, &outcome, run, || content_of_object(&record))?;
        Ok(true)
    }

    /// Count one, and whether it came before: `content` gives its record's hash and offset.
    #[inline]
    pub fn count_outcome(
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

pub fn borrowed(flags: &[(String, String)]) -> Vec<(&str, &str)> {
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
