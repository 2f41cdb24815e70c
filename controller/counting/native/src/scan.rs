//! The plain shape of both events, read from JSON without a tree: `schemas/wire.py`.
//!
//! A scan either reads a record exactly as `schemas.wire` does, or says that it is not plain: then
//! Python reads it, and decides whether and why it is refused. So whatever is unusual is left to
//! it: escapes, characters beyond ASCII, repeated names, null in a field that counts, odd numbers
//! and times. Of a record that is plain up to what is wrong with it, a scan may know the problem.

mod named;
mod problems;
mod texts;
mod times;

use std::ops::Range;

use named::push_distinct;
pub use named::Named;
use problems::ATTRIBUTES;
pub use problems::{Problem, Unplain};
use texts::{is_printable, plain_length};
use times::time_of;

const MOST_BYTES: usize = 64 * 1024;
const MOST_DEPTH: u32 = 8;
const MOST_OPENINGS: u32 = 64; // brackets; `wire` takes more
const MOST_BRACKETS: usize = 512; // in strings, too
const MOST_ATTRIBUTE: usize = 1024;
const MOST_CONTEXT_ID: usize = 256;
const MOST_NAME: usize = 128;
const MOST_DURATION_SECONDS: f64 = 86_400.0;

const EVALUATION_TYPE: &str = "io.rolloutd.evaluation.v1";
const OUTCOME_TYPE: &str = "io.rolloutd.outcome.v1";

pub struct Evaluation<'a> {
    pub context_id: Option<&'a str>, // None: the record's key
    pub flag_key: &'a str,
    pub variant: &'a str,
    pub time_ms: Option<i64>, // None: the record's timestamp
}

#[derive(Default)]
pub struct Outcome<'a> {
    pub context_id: Option<&'a str>,
    pub time_ms: Option<i64>,
    pub flags: Range<usize>, // of `Named`, as the conversions
    pub has_error: bool,
    pub duration_seconds: Option<f64>,
    pub conversions: Range<usize>,
    pub is_known: bool, // it has an attribute that is read, beside its context
}

pub fn evaluation(value: &[u8]) -> Result<Evaluation<'_>, Unplain<'_>> {
    let mut scan = Scan::new(value)?;
    evaluation_in(&mut scan).ok_or_else(|| scan.why())
}

fn evaluation_in<'a>(scan: &mut Scan<'a>) -> Option<Evaluation<'a>> {
    let (mut context_id, mut flag_key, mut variant) = (None, None, None);
    let time_ms = scan.envelope(EVALUATION_TYPE, |scan| {
        scan.object(|scan, name| match name {
            "feature_flag.key" => once(&mut flag_key, scan.name()?),
            "feature_flag.result.variant" => once(&mut variant, scan.name()?),
            "feature_flag.context.id" => once(&mut context_id, scan.context_id()?),
            "feature_flag.variant" => None, // an older name, which has rules of its own
            _ => scan.skip(),
        })?;
        scan.require(flag_key.is_some(), Problem::NO_FLAG_KEY)
    })?;
    Some(Evaluation { context_id, flag_key: flag_key?, variant: variant?, time_ms })
}

pub fn outcome<'a>(value: &'a [u8], named: &mut Named<'a>) -> Result<Outcome<'a>, Unplain<'a>> {
    let mut scan = Scan::new(value)?;
    outcome_in(&mut scan, named).ok_or_else(|| scan.why())
}

fn outcome_in<'a>(scan: &mut Scan<'a>, named: &mut Named<'a>) -> Option<Outcome<'a>> {
    let mut found = Outcome::default();
    let (mut duration, mut error, mut flags, mut conversions) = (None, None, None, None);
    found.time_ms = scan.envelope(OUTCOME_TYPE, |scan| {
        scan.object(|scan, name| match name {
            "feature_flag.context.id" => once(&mut found.context_id, scan.context_id()?),
            "http.server.request.duration" => once(&mut duration, scan.duration()?),
            "error.type" => once(&mut error, scan.attribute()?),
            "rolloutd.flags" => once(&mut flags, scan.flags(&mut named.flags)?),
            "rolloutd.conversions" => {
                once(&mut conversions, scan.conversions(&mut named.conversions)?)
            }
            _ => scan.skip(),
        })
    })?;
    found.is_known =
        duration.is_some() || error.is_some() || flags.is_some() || conversions.is_some();
    found.duration_seconds = duration;
    found.has_error = error.is_some();
    found.flags = flags.unwrap_or_default();
    found.conversions = conversions.unwrap_or_default();
    Some(found)
}

/// Whether `envelope.check_value` may refuse a text for its brackets, of which it counts those in
/// strings, too.
fn has_many_brackets(bytes: &[u8]) -> bool {
    let is_bracket = |byte: &&u8| matches!(byte, b'[' | b'{');
    bytes.len() > MOST_BRACKETS && bytes.iter().filter(is_bracket).count() > MOST_BRACKETS
}

/// Take a value; None when its name was there before.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

/// Return a key as a context id, None when Python is to look at it.
pub fn context_of_key(key: &[u8]) -> Option<&str> {
    let is_plain =
        (1..=MOST_CONTEXT_ID).contains(&key.len()) && key.iter().all(|b| is_printable(*b));
    is_plain.then(|| std::str::from_utf8(key).ok())?
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=MOST_NAME).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

struct Scan<'a> {
    value: &'a str,
    bytes: &'a [u8], // the same
    at: usize,
    depth: u32,
    openings: u32,
    is_cut_off: bool, // it failed because there is no more
    problem: Option<Problem<'a>>,
}

impl<'a> Scan<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Unplain<'a>> {
        if bytes.len() > MOST_BYTES || has_many_brackets(bytes) {
            return Err(Unplain::Other);
        }
        // Once for all texts in it: for each it would cost more than to read it.
        let value = std::str::from_utf8(bytes)
            .map_err(|error| Unplain::of(Problem::NotUtf8 { at: error.valid_up_to() }))?;
        let (at, depth, openings) = (0, 0, 0);
        Ok(Self { value, bytes, at, depth, openings, is_cut_off: false, problem: None })
    }

    fn why(&self) -> Unplain<'a> {
        if self.is_cut_off {
            return Unplain::of(Problem::CUT_OFF);
        }
        self.problem.map_or(Unplain::Other, Unplain::of)
    }

    /// Go on only if something holds. Python must say the same of all that comes before it.
    #[inline]
    fn require(&mut self, holds: bool, problem: Problem<'a>) -> Option<()> {
        if !holds {
            self.problem = Some(problem);
        }
        holds.then_some(())
    }

    /// Read a whole CloudEvent of a type; `data` reads its data. Returns its time.
    fn envelope(
        &mut self,
        of_type: &'static str,
        mut data: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<Option<i64>> {
        let (mut version, mut kind, mut id, mut source) = (None, None, None, None);
        let (mut has_data, mut time_ms) = (None, None);
        self.space();
        self.begin()?;
        self.object(|scan, name| match name {
            "specversion" => once(&mut version, scan.exactly(name, "1.0")?),
            "type" => once(&mut kind, scan.exactly(name, of_type)?),
            "id" => once(&mut id, scan.attribute()?),
            "source" => once(&mut source, scan.attribute()?),
            "time" => once(&mut time_ms, scan.time()?),
            "data" => {
                data(scan)?;
                once(&mut has_data, ())
            }
            _ => scan.skip(),
        })?;
        let found: [_; ATTRIBUTES.len() + 1] = [version, kind, id, source, has_data];
        if let Some(present) = found.iter().position(Option::is_none) {
            self.require(false, Problem::Missing { present, of_type })?;
        }
        self.space();
        (self.at == self.bytes.len()).then_some(time_ms)
    }

    /// Tell what is no event by its first byte. Of other JSON, Python has to read more than that.
    fn begin(&mut self) -> Option<()> {
        let needs_more =
            matches!(self.peek()?, b'{' | b'"' | b'-' | b'0'..=b'9' | b'n' | b't' | b'f' | 0x80..);
        self.require(needs_more, Problem::Begins(self.bytes.get(..=self.at)?))
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Take a byte without which nothing goes on.
    #[inline]
    fn need(&mut self, byte: u8) -> Option<()> {
        self.is_cut_off = self.at == self.bytes.len();
        self.take(byte)
    }

    fn open(&mut self, bracket: u8) -> Option<()> {
        self.take(bracket)?;
        self.depth += 1;
        self.openings += 1;
        (self.depth <= MOST_DEPTH && self.openings <= MOST_OPENINGS).then_some(())
    }

    /// Read an object; `field` reads the value of each name.
    #[inline]
    fn object(&mut self, mut field: impl FnMut(&mut Self, &'a str) -> Option<()>) -> Option<()> {
        self.open(b'{')?;
        self.space();
        if self.take(b'}').is_none() {
            loop {
                let name = self.text()?;
                self.space();
                self.need(b':')?;
                self.space();
                field(self, name)?;
                self.space();
                if self.take(b',').is_none() {
                    break;
                }
                self.space();
            }
            self.need(b'}')?;
        }
        self.depth -= 1;
        Some(())
    }

    fn array(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.open(b'[')?;
        self.space();
        if self.take(b']').is_none() {
            loop {
                item(self)?;
                self.space();
                if self.take(b',').is_none() {
                    break;
                }
                self.space();
            }
            self.need(b']')?;
        }
        self.depth -= 1;
        Some(())
    }

    /// Read a string of printable ASCII without escapes.
    #[inline]
    fn text(&mut self) -> Option<&'a str> {
        self.need(b'"')?;
        let begin = self.at;
        let end = begin + plain_length(&self.bytes[begin..]);
        if self.bytes.get(end) != Some(&b'"') {
            self.is_cut_off = end == self.bytes.len();
            return None;
        }
        self.at = end + 1;
        self.value.get(begin..end)
    }

    fn exactly(&mut self, name: &'a str, expected: &str) -> Option<()> {
        let text = self.text()?;
        self.require(text == expected, Problem::Unexpected { name, text })
    }

    fn attribute(&mut self) -> Option<()> {
        (1..=MOST_ATTRIBUTE).contains(&self.text()?.len()).then_some(())
    }

    fn name(&mut self) -> Option<&'a str> {
        self.text().filter(|text| is_name(text))
    }

    fn context_id(&mut self) -> Option<&'a str> {
        self.text().filter(|text| (1..=MOST_CONTEXT_ID).contains(&text.len()))
    }

    fn flags(&mut self, flags: &mut Vec<(&'a str, &'a str)>) -> Option<Range<usize>> {
        let (begin, mut items) = (flags.len(), 0);
        self.array(|scan| {
            let (mut key, mut variant) = (None, None);
            scan.object(|scan, name| match name {
                "feature_flag.key" => once(&mut key, scan.name()?),
                "feature_flag.result.variant" => once(&mut variant, scan.name()?),
                _ => scan.skip(),
            })?;
            scan.require(key.is_some() || items > 0, Problem::NO_FLAG_KEY_OF_FIRST)?;
            scan.require(variant.is_some() || items > 0, Problem::NO_VARIANT_OF_FIRST)?;
            items += 1;
            push_distinct(flags, begin, (key?, variant?), items)
        })?;
        Some(begin..flags.len())
    }

    fn conversions(&mut self, names: &mut Vec<&'a str>) -> Option<Range<usize>> {
        let (begin, mut items) = (names.len(), 0);
        self.array(|scan| {
            let name = scan.name()?;
            items += 1;
            push_distinct(names, begin, name, items)
        })?;
        Some(begin..names.len())
    }

    /// Read a number of seconds. Longer or odder ones are left to Python.
    fn duration(&mut self) -> Option<f64> {
        let begin = self.at;
        self.number()?;
        let text = self.value.get(begin..self.at)?;
        let seconds: f64 = text.parse().ok()?;
        (text.len() <= 24 && !text.starts_with('-') && seconds <= MOST_DURATION_SECONDS)
            .then_some(seconds)
    }

    /// Go past a number: the grammar of RFC 8259, with few digits.
    fn number(&mut self) -> Option<()> {
        let begin = self.at;
        let _ = self.take(b'-');
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits()?,
            _ => return None,
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            let exponent = self.at;
            self.digits()?;
            if self.at - exponent > 2 {
                return None;
            }
        }
        (self.at - begin <= 32).then_some(())
    }

    fn digits(&mut self) -> Option<()> {
        let begin = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > begin).then_some(())
    }

    /// Go past any value.
    fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.text().map(|_| ()),
            b'{' => self.object(|scan, _| scan.skip()),
            b'[' => self.array(Self::skip),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let is_it = self.bytes[self.at..].starts_with(word.as_bytes());
        is_it.then(|| self.at += word.len())
    }

    fn time(&mut self) -> Option<i64> {
        time_of(self.text()?.as_bytes())
    }
}
