//! The fold as Python has it: `controller.counting.folding.engine.Fold`.
//!
//! Here is each method, in a few lines. What the longer ones do is in `plain_runs.rs`, `events.rs`
//! (with `plain.rs`, `others.rs` and `refused.rs`), `joining.rs` and `saves.rs`; `arm_counts.rs`
//! takes totals over and writes them, and in `faults.rs` a panic ends.

mod arm_counts;
mod events;
mod faults;
mod joining;
mod others;
mod plain;
mod plain_runs;
mod refused;
mod saves;

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyType};

use crate::arms::Bucket;
use crate::bloom::BloomFilter;
use crate::duplicates::RecentRecords;
use crate::flags::OpenFlags;
use crate::fold::Fold;
use crate::surroundings::{counted_flag, PySurroundings, Readers, Types};
use events::Waiting;
use joining::Joined;
use refused::{KnownProblems, Limits};

/// What is known of problems; the two readers say different things of one.
#[derive(Default)]
struct KnownByReader {
    of_evaluations: KnownProblems,
    of_outcomes: KnownProblems,
}

#[pyclass(module = "controller.counting._native")]
pub struct PartitionFold {
    fold: Fold,
    fault: Option<String>, // what a panic said: then each call raises a `fault_type`
    fault_type: Py<PyType>,
    recent_records: RecentRecords,
    surroundings: PySurroundings,
    largest_bundle: usize, // bytes, as written so far
    log_gamma: f64,
    lowest_bucket: Bucket,
    highest_bucket: Bucket,
    indexed_per_turn: usize,
    most_changed: usize, // flags that are named as changed
    readers: Readers,
    types: Arc<Types>,
    refusal_limits: Limits,
    known_problems: KnownByReader,
    arms: [Py<PyAny>; 2], // Arm.TREATMENT and Arm.CONTROL
}

#[pymethods]
impl PartitionFold {
    #[new]
    #[pyo3(signature = (flags_to_count, *, counts_exposures, exact_limit, window_ms, bundle_of,
                        indexed_per_turn, most_changed, lowest_bucket, highest_bucket, log_gamma,
                        readers, types, refusal_limits, arms, fault_type))]
    #[allow(clippy::too_many_arguments)] // named in Python, and called in one place
    fn new(
        flags_to_count: Py<PyAny>,
        counts_exposures: bool,
        exact_limit: usize,
        window_ms: Option<i64>,
        bundle_of: Py<PyAny>,
        indexed_per_turn: usize,
        most_changed: usize,
        lowest_bucket: Bucket,
        highest_bucket: Bucket,
        log_gamma: f64,
        readers: Readers,
        types: Types,
        refusal_limits: Limits,
        arms: [Py<PyAny>; 2],
        fault_type: Py<PyType>,
    ) -> Self {
        Self {
            fold: Fold::new(counts_exposures, exact_limit, window_ms),
            fault: None,
            fault_type,
            recent_records: RecentRecords::default(),
            surroundings: PySurroundings { flags_to_count, bundle_of },
            largest_bundle: 0,
            log_gamma,
            lowest_bucket,
            highest_bucket,
            indexed_per_turn,
            most_changed,
            readers,
            types: types.into(),
            refusal_limits,
            known_problems: Default::default(),
            arms,
        }
    }

    fn set_time(&mut self, now_ms: i64, latest_ms: i64) -> PyResult<()> {
        self.contain(|this| {
            if let Some(recent) = &mut this.fold.recent {
                recent.set_time(now_ms, latest_ms);
            }
            Ok(())
        })
    }

    // - events -

    fn count_evaluations(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        self.contain(|this| this.evaluations_of(py, events))
    }

    fn read_evaluations(
        &mut self,
        py: Python<'_>,
        records: &Bound<'_, PyAny>,
        read: &Bound<'_, PyAny>,
        refused: &Bound<'_, PyList>,
        latest_ms: i64,
    ) -> PyResult<Py<PyAny>> {
        self.contain(|this| this.evaluations_in(py, records, read, refused, latest_ms))
    }

    #[pyo3(signature = (events, room, partner, joinable_until_ms))]
    fn count_outcomes(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        room: f64,
        partner: Option<&Bound<'_, PyAny>>,
        joinable_until_ms: f64,
    ) -> PyResult<Py<PyAny>> {
        let waiting = Waiting { room, partner, joinable_until_ms };
        self.contain(|this| this.outcomes_of(py, events, waiting))
    }

    #[pyo3(signature = (records, read, refused, latest_ms, room, partner, joinable_until_ms))]
    #[allow(clippy::too_many_arguments)] // those of `engine.Fold`
    fn read_outcomes(
        &mut self,
        py: Python<'_>,
        records: &Bound<'_, PyAny>,
        read: &Bound<'_, PyAny>,
        refused: &Bound<'_, PyList>,
        latest_ms: i64,
        room: f64,
        partner: Option<&Bound<'_, PyAny>>,
        joinable_until_ms: f64,
    ) -> PyResult<Py<PyAny>> {
        let waiting = Waiting { room, partner, joinable_until_ms };
        self.contain(|this| this.outcomes_in(py, records, read, refused, latest_ms, waiting))
    }

    fn begin_batch(&mut self) -> PyResult<()> {
        self.contain(|this| {
            this.fold.actions.end_batch();
            Ok(())
        })
    }

    #[getter]
    fn joins(&self) -> bool {
        self.fold.joins
    }

    #[setter]
    fn set_joins(&mut self, joins: bool) {
        self.fold.joins = joins;
    }

    // - restoring -

    fn restore_arm(
        &mut self,
        name: &str,
        counts: &Bound<'_, PyAny>,
        bundle: Option<u32>,
    ) -> PyResult<()> {
        self.contain(|this| {
            this.take_over_arm(name, arm_counts::taken_over(counts)?, bundle);
            Ok(())
        })
    }

    fn restore_set(&mut self, number: u32, name: &str) -> PyResult<()> {
        self.contain(|this| this.take_over_set(number, name))
    }

    fn restore_filter(&mut self, number: u32, words: &[u8], keys: u64) -> PyResult<()> {
        self.contain(|this| {
            let filter = BloomFilter::of(words, keys)
                .ok_or_else(|| PyValueError::new_err("a filter has a power of two of words"))?;
            this.fold.sets.add_filter(number, filter);
            Ok(())
        })
    }

    fn restore_members(&mut self, py: Python<'_>, entries: &[u8]) -> PyResult<()> {
        self.contain(|this| {
            let sets = &mut this.fold.sets;
            py.detach(|| sets.add_members(entries));
            Ok(())
        })
    }

    fn restore_exposures(&mut self, slices: BTreeMap<i64, Vec<u8>>) -> PyResult<()> {
        self.contain(|this| {
            if let Some(recent) = &mut this.fold.recent {
                recent.restore(slices);
            }
            Ok(())
        })
    }

    fn end_restore(&mut self, above: u32) -> PyResult<()> {
        self.contain(|this| {
            this.fold.sets.reserve(above);
            this.fold.sets.end_restore();
            Ok(())
        })
    }

    // - flags: called for all partitions in one loop, so a fold that has failed, or fails on them,
    // must not raise here; its next fold or save does -

    fn apply(&mut self, py: Python<'_>, counted: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
        self.contain_for_later(|this| {
            let key = counted.getattr(intern!(py, "flag_key"))?;
            let Some(flag) = this.fold.flags.get_mut(key.extract::<&str>()?) else {
                return Ok(None);
            };
            let counted = counted_flag(counted)?;
            let present_id = &flag.rest.counted.rollout_id;
            if *present_id != counted.rollout_id {
                return Ok(Some(present_id.to_string()));
            }
            flag.apply(counted);
            Ok(None)
        })
    }

    #[pyo3(name = "drop")]
    fn drop_rollout(&mut self, flag_key: &str, rollout_id: &str) -> PyResult<()> {
        self.contain_for_later(|this| {
            this.fold.drop_rollout(flag_key, rollout_id);
            Ok(())
        })
    }

    fn close(&mut self) -> PyResult<()> {
        self.contain_for_later(|this| {
            this.fold.flags = OpenFlags::default();
            Ok(())
        })
    }

    // - joining -

    fn index_exposures(&mut self) -> PyResult<bool> {
        self.contain(|this| Ok(this.index_some()))
    }

    fn exposures(
        &mut self,
        py: Python<'_>,
        digest: u64,
        time_ms: i64,
    ) -> PyResult<Vec<(String, String)>> {
        self.contain(|this| this.exposures_of(py, digest, time_ms, &mut Joined::default()))
    }

    // - budget -

    #[getter]
    fn load(&self) -> i64 {
        self.fold.sets.load()
    }

    #[getter]
    fn recent_entries(&self) -> usize {
        self.fold.recent.as_ref().map_or(0, |recent| recent.entries())
    }

    fn forget_oldest(&mut self) -> PyResult<bool> {
        self.contain(|this| {
            Ok(this.fold.recent.as_mut().is_some_and(|recent| recent.forget_oldest()))
        })
    }

    fn expire_exposures(&mut self, time_ms: i64) -> PyResult<()> {
        self.contain(|this| {
            if let Some(recent) = &mut this.fold.recent {
                recent.expire_at(time_ms);
            }
            Ok(())
        })
    }

    fn seal_early(&mut self) -> PyResult<bool> {
        self.contain(|this| Ok(this.fold.sets.seal_early()))
    }

    fn close_largest(&mut self) -> PyResult<Option<String>> {
        self.contain(|this| Ok(this.fold.sets.close_largest()))
    }

    // - what has changed -

    #[getter]
    fn opened(&self) -> usize {
        self.fold.opened
    }

    #[getter]
    fn changed_arms(&self) -> (usize, usize) {
        let bundled = self.fold.changed_in_bundles;
        (self.fold.changed.len() - bundled, bundled)
    }

    #[getter]
    fn bundles(&self) -> (usize, usize) {
        (self.fold.bundles.len(), self.fold.bundles.waiting())
    }

    #[getter]
    fn new_entries(&self) -> (usize, Vec<usize>) {
        let recent = self.fold.recent.as_ref();
        (self.fold.sets.added(), recent.map_or_else(Vec::new, |recent| recent.added()))
    }

    #[getter]
    fn new_sets(&self) -> usize {
        self.fold.sets.new_names()
    }

    #[getter]
    fn sealing_capacity(&self) -> u64 {
        self.fold.sets.sealing_capacity()
    }

    #[getter]
    fn exact_members(&self) -> i64 {
        self.fold.sets.exact_members()
    }

    fn drain(&mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.contain(|this| this.difference(py))
    }

    fn take_totals(&mut self, py: Python<'_>, places: Vec<usize>) -> PyResult<Vec<Py<PyAny>>> {
        self.contain(|this| this.totals_of(py, &places))
    }

    fn bundles_to_write(&mut self) -> PyResult<Vec<u32>> {
        self.contain(|this| Ok(this.fold.bundles.to_write()))
    }

    fn names_in(&mut self, bundle: u32) -> PyResult<Vec<String>> {
        self.contain(|this| Ok(this.fold.bundles.names(bundle)))
    }

    fn give_own_field(&mut self, py: Python<'_>, bundle: u32, name: &str) -> PyResult<Py<PyBytes>> {
        self.contain(|this| Ok(PyBytes::new(py, &this.own_field_of(bundle, name)?).unbind()))
    }

    fn take_bundle(&mut self, py: Python<'_>, bundle: u32) -> PyResult<Py<PyBytes>> {
        self.contain(|this| Ok(PyBytes::new(py, &this.bundle_bytes(bundle)).unbind()))
    }

    fn take_evaluations(&mut self, py: Python<'_>) -> PyResult<Py<PyList>> {
        self.contain(|this| this.new_evaluations(py))
    }

    fn live(&mut self, py: Python<'_>, entries: &[u8]) -> PyResult<Py<PyBytes>> {
        self.contain(|this| Ok(PyBytes::new(py, &this.fold.sets.live(entries)).unbind()))
    }

    fn seal_next(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.contain(|this| this.seal_one(py))
    }
}
