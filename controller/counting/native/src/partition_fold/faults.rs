//! Where a panic ends: it becomes `engine.NativeFault`, and the fold is not used again.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

use pyo3::prelude::*;

use super::PartitionFold;

impl PartitionFold {
    /// Do something; a panic becomes `NativeFault`, which each later call raises, too.
    pub fn contain<T>(&mut self, act: impl FnOnce(&mut Self) -> PyResult<T>) -> PyResult<T> {
        if self.fault.is_none() {
            match catch_unwind(AssertUnwindSafe(|| act(self))) {
                Ok(done) => return done,
                Err(panic) => self.fault = Some(why(&*panic).to_string()),
            }
        }
        let fault = self.fault.clone();
        Err(Python::attach(|py| PyErr::from_type(self.fault_type.bind(py).clone(), fault)))
    }

    /// Do something; only the next call of the others raises what panicked here or before.
    pub fn contain_for_later<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Self) -> PyResult<T>,
    ) -> PyResult<T> {
        let done = self.contain(act);
        match self.fault {
            Some(_) => Ok(T::default()),
            None => done,
        }
    }
}

/// What a panic says.
fn why(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind")
}
