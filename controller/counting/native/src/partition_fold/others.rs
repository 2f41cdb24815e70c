//! Records that are not plain: read by Python together, and taken one by one where they lie.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::events::read_all;
use crate::record_batches::Records;

/// Collects what a reader refuses.
#[pyclass(module = "controller.counting._native")]
struct Refused {
    found: Vec<(Py<PyAny>, Py<PyAny>)>, // record, why
}

#[pymethods]
impl Refused {
    fn __call__(&mut self, record: Py<PyAny>, why: Py<PyAny>) {
        self.found.push((record, why));
    }
}

/// What a reader of Python made of records: of each one event or a refusal, in their order.
#[derive(Default)]
pub struct Others {
    read: std::vec::IntoIter<Result<Py<PyAny>, (Py<PyAny>, Py<PyAny>)>>,
}

impl Others {
    /// Read the records from `begin` on of which nothing plain was `found`.
    pub fn read<T>(
        py: Python<'_>,
        records: &Records,
        begin: usize,
        found: &[Option<T>],
        read: &Bound<'_, PyAny>,
        latest_ms: i64,
    ) -> PyResult<Self> {
        if found.iter().all(Option::is_some) {
            return Ok(Self::default());
        }
        let mut others = Vec::new();
        for (place, event) in found.iter().enumerate() {
            if event.is_none() {
                others.push(Py::new(py, records.record(py, begin + place)?)?);
            }
        }
        let list = PyList::new(py, &others)?;
        let refused = Bound::new(py, Refused { found: Vec::new() })?;
        let events = read_all(list.as_any(), read, refused.as_any(), latest_ms)?;
        let mut events = events.try_iter()?.collect::<PyResult<Vec<_>>>()?.into_iter();
        let mut refused = std::mem::take(&mut refused.borrow_mut().found).into_iter().peekable();
        let expected = others.len();
        let mut read = Vec::with_capacity(expected);
        for record in others {
            match refused.next_if(|(of, _)| of.is(&record)) {
                Some(refused) => read.push(Err(refused)),
                None => read.extend(events.next().map(|event| Ok(event.unbind()))),
            }
        }
        if read.len() < expected || events.next().is_some() || refused.next().is_some() {
            return Err(PyValueError::new_err("a reader gives one event or one refusal a record"));
        }
        Ok(Self { read: read.into_iter() })
    }

    /// The event of the next record. None: it is refused, and reported only now. A record behind
    /// one that must wait is not: it will be read again.
    pub fn next(
        &mut self,
        py: Python<'_>,
        refuse: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Py<PyAny>>> {
        match self.read.next() {
            Some(Err((record, why))) => {
                refuse.call1((record.bind(py), why.bind(py)))?;
                Ok(None)
            }
            Some(Ok(event)) => Ok(Some(event)),
            None => Ok(None),
        }
    }
}
