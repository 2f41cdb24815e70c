//! Loads and saves: sets taken over, and what has changed, as `folding/difference.py` has it.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::{arm_counts, PartitionFold};
use crate::arms::{Kind, Visit};

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
        let changed = std::mem::take(&mut self.fold.changed);
        self.fold.changed_in_bundles = 0;
        let evaluations = PyDict::new(py);
        for ((flag_key, kind), count) in self.fold.take_others() {
            evaluations.set_item((&*flag_key, self.arm_of(py, kind)), count)?;
        }
        for place in std::mem::take(&mut self.fold.outside) {
            let Some(arm) = self.fold.arms[place].as_mut() else { continue };
            arm.is_changed = false;
            let count = arm.counts.evaluations - arm.noted;
            if count == 0 {
                continue;
            }
            arm.noted = arm.counts.evaluations;
            let (flag_key, kind) = (arm.flag_key.clone(), arm.kind);
            let key = (&*flag_key, self.arm_of(py, kind)).into_pyobject(py)?;
            let before: i64 = match evaluations.get_item(&key)? {
                Some(before) => before.extract()?,
                None => 0,
            };
            evaluations.set_item(key, before + count)?;
        }
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
            .call1(py, (changed, evaluations, names, members, by_slice, forgotten))?;
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
            arm.end_batch();
            let evaluations = arm.counts.evaluations - arm.noted;
            arm.noted = arm.counts.evaluations;
            let arm = self.fold.arm(place);
            let value = match arm.bundle {
                Some(_) => arm_counts::as_bundled(&arm.field, &arm.counts),
                None => arm_counts::as_stored(&arm.counts),
            };
            let (value, kind) = (PyBytes::new(py, &value), self.arm_of(py, arm.kind));
            let totals = (&*arm.field, &*arm.flag_key, kind, arm.bundle, evaluations, value);
            taken.push(self.types.changed_arm.call1(py, totals)?);
        }
        Ok(taken)
    }

    pub fn note_own_field(&mut self, py: Python<'_>, place: &Bound<'_, PyAny>) -> PyResult<()> {
        let flag_key = place.getattr(intern!(py, "flag_key"))?;
        let number: i64 = place.getattr(intern!(py, "visit"))?.extract()?;
        let part = place.getattr(intern!(py, "part"))?;
        let is_control = part.extract::<&str>()? == "control";
        let Some(flag) = self.fold.flags.get(flag_key.extract::<&str>()?) else { return Ok(()) };
        if let Some(arms) = flag.arms_of(Visit::Number(number)) {
            if let Some(arm) = &mut self.fold.arms[arms[usize::from(is_control)]] {
                arm.bundle = None;
            }
        }
        Ok(())
    }

    pub fn seal_one(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(sealed) = self.fold.sets.seal_next() else { return Ok(None) };
        let words = PyBytes::new(py, &sealed.words);
        Ok(Some(
            self.types.sealed_set.call1(py, (sealed.number, sealed.layer, sealed.keys, words))?,
        ))
    }
}
