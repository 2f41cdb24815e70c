//! Outcomes that were delivered twice: `folding/duplicates.py`.

use pyo3::intern;
use pyo3::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::hashing::Map;

/// Contexts whose digest has none of these bits are sampled, one of 64.
pub const NOT_SAMPLED: u64 = 63;
const REMEMBERED: usize = 4_096;

/// The records checked last, by a hash of their content.
#[derive(Default)]
pub struct RecentRecords {
    offsets: Map<u64, i64>, // hash -> offset of the first record with it
    before: Map<u64, i64>,
}

impl RecentRecords {
    /// Whether an earlier record has the same content; remember this one.
    pub fn came_before(&mut self, content: u64, offset: i64) -> bool {
        if let Some(&first) = self.offsets.get(&content) {
            return first != offset;
        }
        let first = self.before.get(&content).copied().unwrap_or(offset);
        if self.offsets.len() >= REMEMBERED {
            self.before = std::mem::take(&mut self.offsets);
        }
        self.offsets.insert(content, first);
        first != offset
    }
}

/// A hash of a record's content: its value, and the headers that hold an event's attributes.
pub fn content_of(value: Option<&[u8]>, attributes: &[(String, Option<Vec<u8>>)]) -> u64 {
    let mut content = xxh3_64_with_seed(value.unwrap_or_default(), u64::from(value.is_some()));
    for (name, value) in attributes.iter().filter(|(name, _)| name.starts_with("ce_")) {
        content = xxh3_64_with_seed(name.as_bytes(), content);
        content = match value {
            Some(value) => xxh3_64_with_seed(value, content),
            None => content.rotate_left(1),
        };
    }
    content
}

/// The same of a record that is an object of Python, and its offset.
pub fn content_of_object(record: &Bound<'_, PyAny>) -> PyResult<(u64, i64)> {
    let py = record.py();
    let value = record.getattr(intern!(py, "value"))?;
    let value: Option<&[u8]> = value.extract()?;
    let attributes: Vec<(String, Option<Vec<u8>>)> =
        record.getattr(intern!(py, "headers"))?.extract()?;
    let offset = record.getattr(intern!(py, "offset"))?.extract()?;
    Ok((content_of(value, &attributes), offset))
}
