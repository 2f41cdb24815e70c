//! Lists in outcomes: their flags, and their conversions.

const MOST_ITEMS: usize = 8; // in one list; `wire` takes more

/// What the outcomes of a run name. Two lists for all of them: two for each would take as long to
/// allocate and to free as the rest of it to read.
#[derive(Default)]
pub struct Named<'a> {
    pub flags: Vec<(&'a str, &'a str)>, // key and variant
    pub conversions: Vec<&'a str>,
}

/// Add the item with this number unless it is there from `begin` on; None for more items than are
/// plain.
pub fn push_distinct<T: PartialEq>(
    items: &mut Vec<T>,
    begin: usize,
    item: T,
    number: usize,
) -> Option<()> {
    if !items[begin..].contains(&item) {
        items.push(item);
    }
    (number <= MOST_ITEMS).then_some(())
}
