//! The native fold: what `controller/counting/folding/` counts, as fast as the wire.
//!
//! `folding/partition_fold.py` is the reference. It says what everything means, and
//! `tests/property/test_native_fold.py` holds both against each other. Here is all that happens per
//! event; whatever is not plain is handed to Python, untouched and in order. A panic becomes
//! `NativeFault`, on which the reference goes on from what is saved.
#![forbid(unsafe_code)]

mod actions;
mod activity;
mod arms;
mod bloom;
mod bundles;
mod duplicates;
mod exposures;
mod flags;
mod fold;
mod hashing;
mod partition_fold;
mod record_batches;
mod scan;
mod sets;
mod surroundings;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<partition_fold::PartitionFold>()?;
    module.add_class::<record_batches::Records>()?;
    module.add_class::<record_batches::Record>()?;
    module.add_function(wrap_pyfunction!(record_batches::read_batches, module)?)?;
    Ok(())
}
