//! How much one context may weigh in the comparisons: `folding/activity.py`.

pub const GROUPS: usize = 128;
pub const ALWAYS: u64 = 8;
pub const MULTIPLE: u64 = 8;

/// The actions of one arm's contexts in one partition, by groups of contexts.
#[derive(Default)]
pub struct Activity {
    actions: u64,
    used: u64,                          // groups with an action
    counts: Option<Box<[u32; GROUPS]>>, // from the first action on that is in a group
}

impl Activity {
    /// Add an action of a context; return whether it counts.
    #[inline]
    pub fn add(&mut self, digest: u64) -> bool {
        self.actions += 1;
        if self.actions <= ALWAYS {
            return true;
        }
        let counts = self.counts.get_or_insert_with(|| Box::new([0; GROUPS]));
        let count = &mut counts[digest as usize % GROUPS];
        *count += 1;
        let own = u64::from(*count);
        self.used += u64::from(own == 1);
        let others = self.actions - ALWAYS - own;
        own <= ALWAYS || (own - ALWAYS) * (self.used - 1) <= MULTIPLE * others
    }

    /// How often a context's group was counted.
    #[inline]
    pub fn of_group(&self, digest: u64) -> u32 {
        self.counts.as_ref().map_or(0, |counts| counts[digest as usize % GROUPS])
    }
}
