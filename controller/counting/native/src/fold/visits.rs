//! Flags, visits and arms, opened when their first event comes: `folding/flag_partition.py`.

use std::sync::Arc;

use super::{Fold, Surroundings};
use crate::activity::Activity;
use crate::arms::{is_one_of, Arm, Counts, Kind};
use crate::flags::{Flag, Visit};

impl Fold {
    /// The slot of a flag, which is opened if needed; None for one without a rollout.
    #[inline]
    pub fn open_flag<S: Surroundings>(
        &mut self,
        around: &S,
        flag_key: &str,
    ) -> Result<Option<usize>, S::Error> {
        if let Some(slot) = self.flags.slot_of(flag_key) {
            return Ok(Some(slot));
        }
        let Some(counted) = around.counted_flag(flag_key)? else {
            around.count_unknown(flag_key)?;
            return Ok(None);
        };
        let next = self.flag_ids.len() as u32;
        let id = *self.flag_ids.entry(flag_key.into()).or_insert(next);
        Ok(Some(self.flags.insert(Flag::new(flag_key, id, counted))))
    }

    /// The counter of an event of an open flag, None for a variant of neither arm.
    #[inline]
    pub fn arm_at<S: Surroundings>(
        &mut self,
        around: &S,
        slot: usize,
        variant: &str,
        time_ms: i64,
    ) -> Result<Option<usize>, S::Error> {
        let flag = self.flags.at(slot);
        if let Some(arm) = flag.arm_at_hand(variant, time_ms) {
            return Ok(Some(arm));
        }
        let place = match flag.kind_of(variant) {
            Kind::Treatment => 0,
            Kind::Control => 1,
            Kind::Neither => return Ok(None),
        };
        let interval = flag.rest.counted.interval_at(time_ms);
        let visit = interval.map_or(Visit::Outside, |(_, _, number)| Visit::Number(number));
        let arms = match flag.arms_of(visit) {
            Some(arms) => arms,
            None => self.open_visit(around, slot, visit)?,
        };
        if let Some((from_ms, until_ms, _)) = interval {
            self.flags.at_mut(slot).keep_at_hand(from_ms, until_ms, arms);
        }
        Ok(Some(arms[place]))
    }

    /// Open both arms of a visit.
    fn open_visit<S: Surroundings>(
        &mut self,
        around: &S,
        slot: usize,
        visit: Visit,
    ) -> Result<[usize; 2], S::Error> {
        let flag = &self.flags.at(slot).rest;
        let (key, rollout_id) = (flag.key.clone(), flag.counted.rollout_id.clone());
        let conversions = flag.counted.conversions.clone();
        let mut arms = [0; 2];
        for (place, kind, word) in
            [(0, Kind::Treatment, "treatment"), (1, Kind::Control, "control")]
        {
            let field = match visit {
                Visit::Number(number) => format!("{key}|{rollout_id}|{number}|{word}"),
                _ => String::new(),
            };
            arms[place] = self.open_arm(around, &key, &rollout_id, kind, &field)?;
        }
        self.opened += 2;
        if self.counts_exposures {
            for (arm, kind, word) in
                [(arms[0], Kind::Treatment, "treatment"), (arms[1], Kind::Control, "control")]
            {
                let field = &self.arm(arm).field;
                let name = match field.is_empty() {
                    true => format!("{key}|{rollout_id}|-|{word}"),
                    false => field.to_string(),
                };
                self.expose(arm, &name, kind);
            }
            let exposed = [self.arm(arms[0]).exposed, self.arm(arms[1]).exposed];
            self.arm_mut(arms[0]).opposite = exposed[1];
            self.arm_mut(arms[1]).opposite = exposed[0];
        } else if let Visit::Number(number) = visit {
            let failed = self.sets.slot_of(&format!("{key}|{rollout_id}|{number}|errors"));
            let converted: Vec<_> = conversions
                .iter()
                .map(|name| {
                    let set = format!("{key}|{rollout_id}|{number}|converted:{name}");
                    (name.clone(), self.sets.slot_of(&set))
                })
                .collect();
            for arm in arms {
                let arm = self.arm_mut(arm);
                (arm.failed, arm.converted) = (Some(failed), converted.clone());
            }
        }
        self.flags.at_mut(slot).add_visit(visit, arms);
        Ok(arms)
    }

    fn open_arm<S: Surroundings>(
        &mut self,
        around: &S,
        flag_key: &Arc<str>,
        rollout_id: &Arc<str>,
        kind: Kind,
        field: &str,
    ) -> Result<usize, S::Error> {
        let is_counting = !field.is_empty();
        let (counts, bundle) = match self.stored.remove(field) {
            Some(stored) => stored,
            None if is_counting => (Counts::default(), around.bundle_of(flag_key, field)?),
            None => Default::default(),
        };
        if let Some(bundle) = bundle {
            self.bundles.open(bundle).entry(field).arm = Some(self.arms.len());
        }
        self.arms.push(Some(Box::new(Arm {
            flag_key: flag_key.clone(),
            rollout_id: rollout_id.clone(),
            kind,
            field: field.into(),
            bundle,
            is_changed: false,
            is_counting,
            passed_on: counts.evaluations,
            counts,
            exposed: None,
            opposite: None,
            failed: None,
            converted: Vec::new(),
            activity: Activity::default(),
        })));
        Ok(self.arms.len() - 1)
    }

    /// Give a counter the set of that name for its exposed contexts.
    fn expose(&mut self, arm: usize, name: &str, kind: Kind) {
        let slot = self.sets.slot_of(name);
        let arm = self.arms[arm].as_mut().expect("an arm that was just opened");
        arm.exposed = Some(slot);
        if let Some(contexts) = self.sets.get(slot) {
            let exposure = (arm.flag_key.clone(), arm.rollout_id.clone(), kind);
            self.exposure_of.insert(contexts.number, exposure);
        }
    }

    /// The counter of contexts in neither arm, None for a variant that nobody serves.
    pub fn uncounted_arm<S: Surroundings>(
        &mut self,
        around: &S,
        slot: usize,
        variant: &str,
    ) -> Result<Option<usize>, S::Error> {
        let flag = self.flags.at(slot);
        if !is_one_of(&flag.rest.counted.uncounted, variant) {
            return Ok(None);
        }
        if let Some([arm, _]) = flag.arms_of(Visit::Uncounted) {
            return Ok(Some(arm));
        }
        let (key, rollout_id) = (flag.rest.key.clone(), flag.rest.counted.rollout_id.clone());
        let arm = self.open_arm(around, &key, &rollout_id, Kind::Neither, "")?;
        if self.counts_exposures {
            self.expose(arm, &format!("{key}|{rollout_id}|-|neither"), Kind::Neither);
        }
        self.flags.at_mut(slot).add_visit(Visit::Uncounted, [arm, arm]);
        Ok(Some(arm))
    }
}
