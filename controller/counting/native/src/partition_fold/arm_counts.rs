//! The totals of an arm, `schemas.totals.ArmCounts`, taken over and handed out.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::arms::{Counts, Histogram};

fn histogram(counts: &Bound<'_, PyAny>) -> PyResult<Histogram> {
    let mut found = Histogram::default();
    for (bucket, count) in counts.cast::<PyDict>()? {
        found.add(bucket.extract()?, count.extract()?);
    }
    Ok(found)
}

/// Take over an `ArmCounts`.
pub fn taken_over(counts: &Bound<'_, PyAny>) -> PyResult<Counts> {
    let number = |name: &str| -> PyResult<i64> { counts.getattr(name)?.extract() };
    let latency = histogram(&counts.getattr("latency")?)?;
    let mut latency_again = Histogram::default();
    for (bucket, count) in histogram(&counts.getattr("latency_all")?)?.counts {
        let again = count - latency.get(bucket);
        if again != 0 {
            latency_again.add(bucket, again);
        }
    }
    let mut converted = Vec::new();
    for (name, count) in counts.getattr("converted")?.cast::<PyDict>()? {
        converted.push((name.extract::<&str>()?.into(), count.extract()?));
    }
    Ok(Counts {
        evaluations: number("evaluations")?,
        exposures: number("exposures")?,
        switched: number("switched")?,
        outcomes: number("outcomes")?,
        errors: number("errors")?,
        at_risk: number("at_risk")?,
        first_errors: number("first_errors")?,
        converted,
        latency,
        latency_again,
        checked: number("checked")?,
        repeated: number("repeated")?,
    })
}

/// Make an `ArmCounts`, in the order of its fields.
pub fn handed_out(py: Python<'_>, counts: &Counts, of_type: &Py<PyAny>) -> PyResult<Py<PyAny>> {
    let latency = dict_of(py, &counts.latency.counts)?;
    let latency_all = match counts.latency_again.counts.is_empty() {
        true => latency.clone(),
        false => dict_of(py, &counts.latency_all().counts)?,
    };
    let converted = PyDict::new(py);
    for (name, count) in &counts.converted {
        converted.set_item(&**name, count)?;
    }
    let values = PyTuple::new(
        py,
        [
            counts.evaluations.into_pyobject(py)?.into_any(),
            counts.exposures.into_pyobject(py)?.into_any(),
            counts.switched.into_pyobject(py)?.into_any(),
            counts.outcomes.into_pyobject(py)?.into_any(),
            counts.errors.into_pyobject(py)?.into_any(),
            counts.at_risk.into_pyobject(py)?.into_any(),
            counts.first_errors.into_pyobject(py)?.into_any(),
            converted.into_any(),
            latency.into_any(),
            latency_all.into_any(),
            counts.checked.into_pyobject(py)?.into_any(),
            counts.repeated.into_pyobject(py)?.into_any(),
        ],
    )?;
    of_type.call1(py, values)
}

fn dict_of<'py>(py: Python<'py>, counts: &[(i32, i64)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (bucket, count) in counts {
        dict.set_item(bucket, count)?;
    }
    Ok(dict)
}
