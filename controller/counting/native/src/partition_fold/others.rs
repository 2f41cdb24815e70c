//! Records that are not plain: read by Python together, and taken one by one where they lie.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::events::read_by_python;
use super::refused::Refused;
use crate::record_batches::Records;
use crate::scan::Unplain;

/// What a reader of Python made of records: of each one event or a refusal, in their order.
#[derive(Default)]
pub struct Others {
    read: std::vec::IntoIter<Result<Py<PyAny>, (Py<PyAny>, Py<PyAny>)>>,
}

impl Others {
    /// Read the records from `begin` on of which nothing was `found`.
    pub fn read<T>(
        py: Python<'_>,
        records: &Records,
        begin: usize,
        found: &[Result<T, Unplain<'_>>],
        read: &Bound<'_, PyAny>,
        latest_ms: i64,
    ) -> PyResult<Self> {
        let is_other = |event: &Result<T, Unplain<'_>>| matches!(event, Err(Unplain::Other));
        if !found.iter().any(is_other) {
            return Ok(Self::default());
        }
        let mut others = Vec::new();
        for (place, event) in found.iter().enumerate() {
            if is_other(event) {
                others.push(Py::new(py, records.record(py, begin + place)?)?);
            }
        }
        let list = PyList::new(py, &others)?;
        let (events, refuser) = read_by_python(list.as_any(), read, latest_ms)?;
        let mut events = events.try_iter()?.collect::<PyResult<Vec<_>>>()?.into_iter();
        let mut refused = refuser.borrow_mut().take().into_iter().peekable();
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
    pub fn next(&mut self, refused: &mut Refused<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.read.next() {
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err((record, why))) => refused.add(&record, &why).map(|()| None),
            None => Err(PyValueError::new_err("no record is left that a reader has read")),
        }
    }
}
