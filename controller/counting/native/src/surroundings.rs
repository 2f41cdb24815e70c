//! What the fold has of Python: plans of flags, where what is not counted is reported, readers and
//! types.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFrozenSet, PyTuple};

use crate::arms::{CountedFlag, Kind};
use crate::fold::Surroundings;

/// The types of what is returned.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Types {
    pub counted: Py<PyAny>,
    pub difference: Py<PyAny>,
    pub changed_arm: Py<PyAny>,
    pub sealed_set: Py<PyAny>,
    pub refusals: Py<PyAny>,
    pub why_as_json: Py<PyAny>, // gives what is written of a `RecordRefused`
}

/// Those whose records are read natively.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Readers {
    pub evaluations: Py<PyAny>,
    pub outcomes: Py<PyAny>,
}

/// `FlagsToCount`, and `StoredArms.bundle_of`, as they are kept.
pub struct PySurroundings {
    pub flags_to_count: Py<PyAny>,
    pub bundle_of: Py<PyAny>,
}

impl PySurroundings {
    #[inline]
    pub fn bind<'py>(&'py self, py: Python<'py>) -> Around<'py> {
        Around { flags_to_count: self.flags_to_count.bind(py), bundle_of: self.bundle_of.bind(py) }
    }
}

/// The same for as long as Python is held.
pub struct Around<'py> {
    flags_to_count: &'py Bound<'py, PyAny>,
    bundle_of: &'py Bound<'py, PyAny>,
}

impl Around<'_> {
    fn add(&self, name: &Bound<'_, pyo3::types::PyString>, count: i64) -> PyResult<()> {
        let before: i64 = self.flags_to_count.getattr(name)?.extract()?;
        self.flags_to_count.setattr(name, before + count)
    }
}

impl Surroundings for Around<'_> {
    type Error = PyErr;

    fn counted_flag(&self, flag_key: &str) -> PyResult<Option<CountedFlag>> {
        let py = self.flags_to_count.py();
        let flags = self.flags_to_count.getattr(intern!(py, "flags"))?;
        let found = flags.cast::<PyDict>()?.get_item(flag_key)?;
        found.map(|counted| counted_flag(&counted)).transpose()
    }

    fn count_unknown(&self, flag_key: &str) -> PyResult<()> {
        let py = self.flags_to_count.py();
        self.flags_to_count.call_method1(intern!(py, "count_unknown"), (flag_key,))?;
        Ok(())
    }

    fn ended_arm(&self, flag_key: &str, variant: &str) -> PyResult<Option<Kind>> {
        let py = self.flags_to_count.py();
        let ended = self.flags_to_count.getattr(intern!(py, "ended_arms"))?;
        let Some(arms) = ended.cast::<PyDict>()?.get_item(flag_key)? else { return Ok(None) };
        match arms.cast::<PyDict>()?.get_item(variant)? {
            Some(arm) if arm.extract::<&str>()? == "treatment" => Ok(Some(Kind::Treatment)),
            Some(_) => Ok(Some(Kind::Control)),
            None => Ok(Some(Kind::Neither)),
        }
    }

    fn bundle_of(&self, flag_key: &str, name: &str) -> PyResult<Option<u32>> {
        self.bundle_of.call1((flag_key, name))?.extract()
    }

    fn add_other_variants(&self, count: i64) -> PyResult<()> {
        self.add(intern!(self.flags_to_count.py(), "other_variants"), count)
    }

    fn add_unjoined(&self, count: i64) -> PyResult<()> {
        self.add(intern!(self.flags_to_count.py(), "unjoined"), count)
    }
}

/// Take over what counting needs of a rollout: a `CountedFlag` of Python.
pub fn counted_flag(counted: &Bound<'_, PyAny>) -> PyResult<CountedFlag> {
    let py = counted.py();
    let text = |name: &Bound<'_, pyo3::types::PyString>| -> PyResult<Arc<str>> {
        Ok(counted.getattr(name)?.extract::<&str>()?.into())
    };
    let texts = |name: &Bound<'_, pyo3::types::PyString>| -> PyResult<Vec<Arc<str>>> {
        let names = counted.getattr(name)?;
        names.cast::<PyFrozenSet>()?.iter().map(|one| Ok(one.extract::<&str>()?.into())).collect()
    };
    let mut conversions: Vec<Box<str>> =
        texts(intern!(py, "conversions"))?.iter().map(|name| (**name).into()).collect();
    conversions.sort_unstable();
    let intervals = counted.getattr(intern!(py, "intervals"))?;
    Ok(CountedFlag {
        rollout_id: text(intern!(py, "rollout_id"))?,
        treatment: text(intern!(py, "treatment"))?,
        control: text(intern!(py, "control"))?,
        more_treatments: texts(intern!(py, "more_treatments"))?,
        uncounted: texts(intern!(py, "uncounted"))?,
        conversions,
        intervals: intervals.cast::<PyTuple>()?.extract()?,
    })
}
