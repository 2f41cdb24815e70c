//! Joining: the flags of an outcome that names none.

use pyo3::intern;
use pyo3::prelude::*;

use super::events::OutcomeRun;
use super::PartitionFold;
use crate::arms::Kind;
use crate::fold::Surroundings;
use crate::hashing::Map;

/// What a flag's exposures are joined to: rollout id, treatment and control.
pub type Joined = Map<Box<str>, Option<(Box<str>, Box<str>, Box<str>)>>;

impl PartitionFold {
    /// Index some more exposures; return whether all are indexed.
    pub fn index_some(&mut self) -> bool {
        let most = self.indexed_per_turn;
        self.fold.recent.as_mut().is_none_or(|recent| recent.catch_up(most))
    }

    /// The flags that an outcome that names none is joined to, None when it must wait for
    /// evaluations before it.
    pub fn flags_of(
        &mut self,
        py: Python<'_>,
        digest: u64,
        time_ms: i64,
        timestamp_ms: i64,
        run: &mut OutcomeRun<'_, '_>,
    ) -> PyResult<Option<Vec<(String, String)>>> {
        self.fold.joins = true;
        let mut flags = Vec::new();
        if let Some(partner) = run.waiting.partner {
            if let Ok(native) = partner.cast::<PartitionFold>() {
                let mut native = native.try_borrow_mut()?;
                run.are_indexed = run.are_indexed || native.index_exposures()?;
                if !run.are_indexed || timestamp_ms as f64 > run.waiting.joinable_until_ms {
                    return Ok(None);
                }
                flags = native
                    .contain(|native| native.exposures_of(py, digest, time_ms, &mut run.known))?;
            } else {
                let index = intern!(py, "index_exposures");
                run.are_indexed = run.are_indexed || partner.call_method0(index)?.extract()?;
                if !run.are_indexed || timestamp_ms as f64 > run.waiting.joinable_until_ms {
                    return Ok(None);
                }
                flags =
                    partner.call_method1(intern!(py, "exposures"), (digest, time_ms))?.extract()?;
            }
        }
        if flags.is_empty() {
            self.surroundings.bind(py).add_unjoined(1)?;
        }
        Ok(Some(flags))
    }

    /// (flag key, variant) of a context's last exposure to each flag that has a rollout.
    pub fn exposures_of(
        &self,
        py: Python<'_>,
        digest: u64,
        time_ms: i64,
        known: &mut Joined,
    ) -> PyResult<Vec<(String, String)>> {
        let Some(recent) = &self.fold.recent else { return Ok(Vec::new()) };
        let mut seen: Vec<&str> = Vec::new();
        let mut flags = Vec::new();
        for number in recent.last(digest, time_ms) {
            let Some((flag_key, rollout_id, kind)) = self.fold.exposure_of.get(&number) else {
                continue;
            };
            if !known.contains_key(&**flag_key) {
                let counted = self.surroundings.bind(py).counted_flag(flag_key)?;
                let counted = counted.map(|counted| {
                    (
                        (*counted.rollout_id).into(),
                        (*counted.treatment).into(),
                        (*counted.control).into(),
                    )
                });
                known.insert((**flag_key).into(), counted);
            }
            let Some((present_id, treatment, control)) = &known[&**flag_key] else { continue };
            if **present_id != **rollout_id || seen.contains(&&**flag_key) {
                continue;
            }
            seen.push(flag_key);
            match kind {
                Kind::Treatment => flags.push((flag_key.to_string(), treatment.to_string())),
                Kind::Control => flags.push((flag_key.to_string(), control.to_string())),
                Kind::Neither => {}
            }
        }
        Ok(flags)
    }
}
