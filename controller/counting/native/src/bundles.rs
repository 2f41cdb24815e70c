//! Arms that are stored together: `folding/bundles.py`.

use crate::hashing::Map;

/// One arm in a bundle. Its bytes are written anew with each save of the bundle: to keep them would
/// take as much memory, and as long to read, as the counters that they are made of.
pub struct Entry {
    pub name: Box<str>,
    pub arm: Option<usize>, // its place, once it was opened
    pub is_written: bool,   // it is in the bundle as that was last written
}

#[derive(Default)]
pub struct Bundle {
    entries: Vec<Entry>, // by name
    is_to_be_written: bool,
}

impl Bundle {
    /// The entry of an arm, which is added if needed.
    pub fn entry(&mut self, name: &str) -> &mut Entry {
        let place = match self.place(name) {
            Ok(place) => place,
            Err(place) => {
                let entry = Entry { name: name.into(), arm: None, is_written: false };
                self.entries.insert(place, entry);
                place
            }
        };
        &mut self.entries[place]
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| (*entry.name).cmp(name))
    }
}

#[derive(Default)]
pub struct Bundles {
    by_number: Map<u32, Bundle>,
    noted: Vec<u32>, // those to be written, and some that were since
    waiting: usize,
}

impl Bundles {
    /// A bundle, which is begun if needed.
    pub fn open(&mut self, number: u32) -> &mut Bundle {
        self.by_number.entry(number).or_default()
    }

    /// Remove an arm; the bundle is to be written without it if it was written with it.
    pub fn remove(&mut self, number: u32, name: &str) {
        let bundle = self.open(number);
        if let Ok(place) = bundle.place(name) {
            if bundle.entries.remove(place).is_written {
                self.note(number);
            }
        }
    }

    /// Note that a bundle is to be written.
    pub fn note(&mut self, number: u32) {
        let bundle = self.by_number.entry(number).or_default();
        if !std::mem::replace(&mut bundle.is_to_be_written, true) {
            self.waiting += 1;
            self.noted.push(number);
        }
    }

    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// How many are to be written.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The numbers of those to be written, sorted.
    pub fn to_write(&mut self) -> Vec<u32> {
        let by_number = &self.by_number;
        self.noted.retain(|number| by_number.get(number).is_some_and(|one| one.is_to_be_written));
        self.noted.sort_unstable();
        self.noted.dedup();
        self.noted.clone()
    }

    /// The names of the arms that were in a bundle when it was last written, sorted.
    pub fn names(&self, number: u32) -> Vec<String> {
        let entries = self.by_number.get(&number).map_or(&[][..], |bundle| &bundle.entries);
        let written = entries.iter().filter(|entry| entry.is_written);
        written.map(|entry| entry.name.to_string()).collect()
    }

    /// The entries of a bundle, sorted by name; it counts as written from now on.
    pub fn take(&mut self, number: u32) -> &mut [Entry] {
        let bundle = self.by_number.entry(number).or_default();
        self.waiting -= usize::from(std::mem::replace(&mut bundle.is_to_be_written, false));
        &mut bundle.entries
    }
}
