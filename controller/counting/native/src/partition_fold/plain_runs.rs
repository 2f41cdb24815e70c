//! Runs of records that are read where they lie: scanned together, looked up together, and counted
//! in their order.

use pyo3::prelude::*;

use super::events::{borrowed, OutcomeRun, Waiting};
use super::others::Others;
use super::plain::{plain_evaluation, plain_outcome, PlainOutcome};
use super::refused::Refused;
use super::PartitionFold;
use crate::duplicates::content_of;
use crate::fold::{Ahead, Counted, Evaluation, Outcome};
use crate::record_batches::{Parts, Records};
use crate::scan::{Named, Unplain};

/// Records that are scanned before they are counted. Python reads those among them that are not
/// plain in one call: one by one they cost three times as much. And what they will touch is looked
/// up for all of them at once: `fold/ahead.rs`.
const AT_ONCE: usize = 512;

impl PartitionFold {
    pub fn plain_evaluations(
        &mut self,
        py: Python<'_>,
        records: &Records,
        read: &Bound<'_, PyAny>,
        refused: &mut Refused<'_>,
        latest_ms: i64,
    ) -> PyResult<Py<PyAny>> {
        self.fold.freshest_ms = 0;
        let mut counted = Counted::default();
        for begin in (0..records.len()).step_by(AT_ONCE) {
            let end = records.len().min(begin + AT_ONCE);
            let plain = |index| plain_evaluation(&records.parts(py, index), latest_ms);
            let mut found: Vec<_> = (begin..end).map(plain).collect();
            refused.leave_unknown(&mut found);
            let mut others = Others::read(py, records, begin, &found, read, latest_ms)?;
            let ahead = self.evaluations_ahead(&found);
            // Events stay in their list. A copy would be read in other pieces than it was written
            // in: then the processor waits until all writes before it are done, which may take
            // longer than the rest of counting one.
            for ((index, event), ahead) in (begin..end).zip(&found).zip(&ahead) {
                match event {
                    Ok(event) => {
                        let around = self.surroundings.bind(py);
                        counted.add(self.fold.count_evaluation(&around, event, ahead.arm)?);
                    }
                    Err(Unplain::Refused(problem)) => {
                        refused.add_known(&records.parts(py, index), *problem, read)?
                    }
                    Err(Unplain::Other) => {
                        if let Some(event) = others.next(refused)? {
                            self.count_evaluation_of(py, event.bind(py), &mut counted)?;
                        }
                    }
                }
            }
        }
        self.counted(py, counted, None)
    }

    pub fn plain_outcomes(
        &mut self,
        py: Python<'_>,
        records: &Records,
        read: &Bound<'_, PyAny>,
        refused: &mut Refused<'_>,
        latest_ms: i64,
        waiting: Waiting<'_, '_>,
    ) -> PyResult<Py<PyAny>> {
        self.fold.freshest_ms = 0;
        let mut run = OutcomeRun::new(&self.fold, waiting);
        for begin in (0..records.len()).step_by(AT_ONCE) {
            let end = records.len().min(begin + AT_ONCE);
            let mut named = Named::default();
            let plain = |index| {
                let parts = records.parts(py, index);
                plain_outcome(&parts, &mut named, latest_ms, |latency_ms| {
                    self.bucket_of(latency_ms)
                })
            };
            let mut found: Vec<_> = (begin..end).map(plain).collect();
            refused.leave_unknown(&mut found);
            let mut others = Others::read(py, records, begin, &found, read, latest_ms)?;
            let ahead = self.outcomes_ahead(&found, &named);
            // In their list, as evaluations.
            for (index, event) in (begin..end).zip(&found) {
                let is_counted = match event {
                    Ok(event) => {
                        let (flags, conversions) = (&event.found.flags, &event.found.conversions);
                        let named = PlainNames {
                            flags: &named.flags[flags.clone()],
                            ahead: &ahead[flags.clone()],
                            conversions: &named.conversions[conversions.clone()],
                        };
                        let parts = records.parts(py, index);
                        self.count_plain_outcome(py, event, named, &parts, &mut run)?
                    }
                    Err(Unplain::Refused(problem)) => {
                        refused.add_known(&records.parts(py, index), *problem, read)?;
                        true
                    }
                    Err(Unplain::Other) => match others.next(refused)? {
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

    fn evaluations_ahead<'a>(
        &self,
        found: &[Result<Evaluation<'a>, Unplain<'a>>],
    ) -> Vec<Ahead<'a>> {
        let mut ahead: Vec<_> = found
            .iter()
            .map(|event| match event {
                Ok(Evaluation { digest, flag_key, variant, time_ms }) => Ahead {
                    digest: *digest,
                    flag_key,
                    variant,
                    time_ms: *time_ms,
                    ..Ahead::default()
                },
                Err(_) => Ahead::default(),
            })
            .collect();
        self.fold.look_ahead(&mut ahead);
        ahead
    }

    /// One for each flag that was named.
    fn outcomes_ahead<'a>(
        &self,
        found: &[Result<PlainOutcome<'a>, Unplain<'a>>],
        named: &Named<'a>,
    ) -> Vec<Ahead<'a>> {
        let mut ahead = vec![Ahead::default(); named.flags.len()];
        for event in found.iter().flatten() {
            let flags = event.found.flags.clone();
            for (ahead, (flag_key, variant)) in
                ahead[flags.clone()].iter_mut().zip(&named.flags[flags])
            {
                let PlainOutcome { digest, time_ms, bucket, .. } = *event;
                let has_latency = bucket.is_some();
                *ahead =
                    Ahead { digest, flag_key, variant, time_ms, has_latency, ..Ahead::default() };
            }
        }
        self.fold.look_ahead(&mut ahead);
        ahead
    }

    /// Count one that lies plain in its record; return False when it must wait.
    #[inline]
    fn count_plain_outcome(
        &mut self,
        py: Python<'_>,
        event: &PlainOutcome<'_>,
        named: PlainNames<'_>,
        parts: &Parts<'_>,
        run: &mut OutcomeRun<'_, '_>,
    ) -> PyResult<bool> {
        let PlainOutcome { digest, time_ms, bucket, ref found } = *event;
        if run.must_wait(&self.fold) {
            return Ok(false);
        }
        let (joined, joined_flags);
        let flags = if named.flags.is_empty() {
            match self.flags_of(py, digest, time_ms, parts.place.timestamp, run)? {
                Some(found) => joined = found,
                None => return Ok(false),
            }
            joined_flags = borrowed(&joined);
            &joined_flags
        } else {
            named.flags
        };
        let outcome = Outcome {
            digest,
            time_ms,
            flags,
            ahead: named.ahead,
            is_error: found.has_error,
            bucket,
            conversions: named.conversions,
        };
        let content = || Ok((content_of(parts.value, &[]), parts.place.offset));
        self.count_outcome(py, &outcome, run, content)?;
        Ok(true)
    }
}

/// What a plain outcome names.
#[derive(Clone, Copy)]
struct PlainNames<'a> {
    flags: &'a [(&'a str, &'a str)], // key and variant
    ahead: &'a [Ahead<'a>],          // of each flag
    conversions: &'a [&'a str],
}
