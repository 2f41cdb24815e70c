//! Loads and saves: sets taken over, and what has changed, as `folding/difference.py` has it.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFrozenSet, PyList};

use super::{arm_counts, PartitionFold};
use crate::arms::{Arm, Counts, Kind};
use crate::bundles::Entry;

/// Read what is about to be written, in short loops as in `fold/ahead.rs` and for its reason.
fn read_ahead(arms: &[Option<Box<Arm>>], entries: &[Entry]) {
    let open = || entries.iter().filter_map(|entry| arms[entry.arm?].as_deref());
    let mut read = 0;
    for arm in open() {
        read ^= arm.read_lines() ^ arm.counts.converted.len();
    }
    for arm in open() {
        read ^= arm.counts.latency.read() as usize;
    }
    black_box(read);
}

impl PartitionFold {
    pub fn take_over_set(&mut self, number: u32, name: &str) -> PyResult<()> {
        let words: Vec<&str> = name.split('|').collect();
        let [flag_key, rollout_id, _, word] = words[..] else {
            return Err(PyValueError::new_err(format!("{name:?} is no name of a set")));
        };
        self.fold.sets.place(number, name);
        let kind = match word {
            "treatment" => Kind::Treatment,
            "control" => Kind::Control,
            "neither" => Kind::Neither,
            _ => return Ok(()),
        };
        self.fold.exposure_of.insert(number, (flag_key.into(), rollout_id.into(), kind));
        Ok(())
    }

    pub fn difference(&mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fold.actions.end_batch();
        self.fold.changed_in_bundles = 0;
        let mut flag_keys: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut own = Vec::new();
        for place in std::mem::take(&mut self.fold.changed) {
            let Some(arm) = &self.fold.arms[place] else { continue };
            if flag_keys.len() <= self.most_changed {
                flag_keys.insert(arm.flag_key.clone());
            }
            match arm.bundle {
                Some(bundle) => self.fold.bundles.note(bundle),
                None => own.push(place),
            }
        }
        let flag_keys = PyFrozenSet::new(py, flag_keys.iter().map(|key| &**key))?;
        let (names, members) = self.fold.sets.drain();
        let (exposures, forgotten) = match &mut self.fold.recent {
            Some(recent) => recent.drain(),
            None => Default::default(),
        };
        let by_slice = PyDict::new(py);
        for (number, entries) in exposures {
            by_slice.set_item(number, PyBytes::new(py, &entries))?;
        }
        let members = PyBytes::new(py, &members);
        let difference = self
            .types
            .difference
            .call1(py, (own, flag_keys, names, members, by_slice, forgotten))?;
        Ok(difference)
    }

    /// The totals of changed arms, but of those whose rollout was dropped meanwhile.
    pub fn totals_of(&mut self, py: Python<'_>, places: &[usize]) -> PyResult<Vec<Py<PyAny>>> {
        let mut taken = Vec::with_capacity(places.len());
        for &place in places {
            let Some(arm) = self.fold.arms.get_mut(place).and_then(Option::as_mut) else {
                continue;
            };
            arm.is_changed = false;
            let value = PyBytes::new(py, &arm_counts::as_stored(&arm.counts));
            let totals = (&*arm.field, &*arm.flag_key, value);
            taken.push(self.types.changed_arm.call1(py, totals)?);
        }
        Ok(taken)
    }

    pub fn take_over_arm(&mut self, name: &str, counts: Counts, bundle: Option<u32>) {
        if let Some(bundle) = bundle {
            self.fold.bundles.open(bundle).entry(name).is_written = true;
        }
        self.fold.stored.insert(name.into(), (counts, bundle));
    }

    /// The content of a bundle: all its arms but those that never counted anything.
    pub fn bundle_bytes(&mut self, bundle: u32) -> Vec<u8> {
        let fold = &mut self.fold;
        let mut content = Vec::with_capacity(self.largest_bundle);
        let entries = fold.bundles.take(bundle);
        read_ahead(&fold.arms, entries);
        for entry in entries {
            let counts = match entry.arm {
                Some(place) => {
                    let Some(arm) = fold.arms[place].as_mut() else { continue };
                    entry.is_written |= std::mem::take(&mut arm.is_changed);
                    &arm.counts
                }
                None => match fold.stored.get(&*entry.name) {
                    Some((counts, _)) => counts,
                    None => continue,
                },
            };
            if entry.is_written {
                content.push(if content.is_empty() { b'{' } else { b',' });
                arm_counts::write_bundled(&mut content, &entry.name, counts);
            }
        }
        if content.is_empty() {
            content.push(b'{');
        }
        content.push(b'}');
        self.largest_bundle = self.largest_bundle.max(content.len());
        content
    }

    /// Take an arm out of its bundle; the content of its own field.
    pub fn own_field_of(&mut self, bundle: u32, name: &str) -> PyResult<Vec<u8>> {
        let fold = &mut self.fold;
        let arm = fold.bundles.open(bundle).entry(name).arm;
        fold.bundles.remove(bundle, name);
        if let Some(arm) = arm.and_then(|place| fold.arms[place].as_mut()) {
            arm.bundle = None;
            arm.is_changed = false;
            return Ok(arm_counts::as_stored(&arm.counts));
        }
        let (counts, stored_in) = fold
            .stored
            .get_mut(name)
            .ok_or_else(|| PyValueError::new_err(format!("no arm is named {name:?}")))?;
        *stored_in = None;
        Ok(arm_counts::as_stored(counts))
    }

    /// The evaluations since the last call: of arms, and those that no arm counts.
    pub fn new_evaluations(&mut self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let taken = PyList::empty(py);
        for place in 0..self.fold.arms.len() {
            let Some(arm) = &mut self.fold.arms[place] else { continue };
            let count = arm.take_evaluations();
            if count != 0 {
                let arm = self.fold.arm(place);
                taken.append((&*arm.flag_key, self.arm_of(py, arm.kind), count))?;
            }
        }
        for ((flag_key, kind), count) in self.fold.take_others() {
            taken.append((&*flag_key, self.arm_of(py, kind), count))?;
        }
        Ok(taken.unbind())
    }

    pub fn seal_one(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(sealed) = self.fold.sets.seal_next() else { return Ok(None) };
        let words = PyBytes::new(py, &sealed.words);
        Ok(Some(
            self.types.sealed_set.call1(py, (sealed.number, sealed.layer, sealed.keys, words))?,
        ))
    }

    fn arm_of(&self, py: Python<'_>, kind: Kind) -> Option<Py<PyAny>> {
        match kind {
            Kind::Treatment => Some(self.arms[0].clone_ref(py)),
            Kind::Control => Some(self.arms[1].clone_ref(py)),
            Kind::Neither => None,
        }
    }
}
