//! What a scan finds wrong with a record.

/// Longest text that an example quotes. Senders choose texts, and examples are kept.
const MOST_QUOTED: usize = 200;

/// Why a record is refused, where what comes before it is plain. Python says it in words: it reads
/// `example` instead of each such record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem<'a> {
    Example(&'static str),
    NotUtf8 {
        at: usize,
    },
    Begins(&'a [u8]), // spaces, and then a byte with which no event begins
    Unexpected {
        name: &'a str,
        text: &'a str,
    }, // of an attribute of the envelope
    /// Of `ATTRIBUTES`, and then `data`, the first `present` are there and the next one is not.
    Missing {
        present: usize,
        of_type: &'a str,
    },
}

/// Texts that each event needs, in the order of `schemas/structs.py`, in which they are missed.
pub const ATTRIBUTES: [&str; 4] = ["specversion", "type", "id", "source"];

/// Why a record is not plain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unplain<'a> {
    Refused(Problem<'a>),
    Other,
}

impl<'a> Unplain<'a> {
    /// A problem whose example would be long is left to Python.
    pub fn of(problem: Problem<'a>) -> Self {
        let quoted = match problem {
            Problem::NotUtf8 { at } => at,
            Problem::Begins(bytes) => bytes.len(),
            Problem::Unexpected { text, .. } => text.len(),
            _ => 0,
        };
        if quoted <= MOST_QUOTED {
            Self::Refused(problem)
        } else {
            Self::Other
        }
    }
}

impl Problem<'_> {
    pub const EMPTY: Self = Self::Example("");
    pub const CUT_OFF: Self = Self::Example("{");
    pub const NO_FLAG_KEY: Self = Self::Example("{\"data\":{}}");
    pub const NO_FLAG_KEY_OF_FIRST: Self = Self::Example("{\"data\":{\"rolloutd.flags\":[{}]}}");
    pub const NO_VARIANT_OF_FIRST: Self =
        Self::Example("{\"data\":{\"rolloutd.flags\":[{\"feature_flag.key\":\"\"}]}}");

    /// Write a short value with the same problem.
    pub fn write_example(self, value: &mut Vec<u8>) {
        match self {
            Self::Example(example) => put(value, &[example]),
            Self::NotUtf8 { at } => {
                value.resize(value.len() + at, b' ');
                value.push(0xff);
            }
            Self::Begins(bytes) => value.extend_from_slice(bytes),
            Self::Unexpected { name, text } => put(value, &["{\"", name, "\":\"", text, "\"}"]),
            Self::Missing { present, of_type } => {
                value.push(b'{');
                for (place, name) in ATTRIBUTES[..present].iter().enumerate() {
                    let comma = if place > 0 { "," } else { "" };
                    let text = match *name {
                        "specversion" => "1.0",
                        "type" => of_type,
                        _ => "x",
                    };
                    put(value, &[comma, "\"", name, "\":\"", text, "\""]);
                }
                value.push(b'}');
            }
        }
    }
}

fn put(value: &mut Vec<u8>, texts: &[&str]) {
    texts.iter().for_each(|text| value.extend_from_slice(text.as_bytes()))
}
