//! Samples of every word of the protocol, by subject; what a sample is, and how it becomes lines of
//! a golden file.

pub mod admin;
pub mod commands;
pub mod fragment;
pub mod object;
pub mod queries;
pub mod registry;
pub mod storage;

use plinth_protocol::wire::{Choice, Fields, Record, Wire, WireError, decode_varint};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// Bytes in one line of a golden file.
const LINE_BYTES: usize = 32;

/// How a kind of value shows what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Tagged fields.
    Record,
    /// One variant behind its tag.
    Choice,
    /// Bytes of its own.
    Plain,
}

/// Reads bytes as the type of a value; returns whether they are the value.
type ReadsBack = Box<dyn Fn(&[u8]) -> Result<bool, WireError>>;

/// One value and the bytes that stand for it.
pub struct Sample {
    /// The name of its type.
    pub kind: &'static str,
    pub form: Form,
    /// What the golden file calls it.
    pub name: String,
    pub bytes: Vec<u8>,
    reads_back: ReadsBack,
}

impl Sample {
    /// Reads bytes as the sample's type; returns whether they are the sample.
    pub fn is_read_from(&self, bytes: &[u8]) -> Result<bool, WireError> {
        (self.reads_back)(bytes)
    }

    /// Returns the sample as lines: its name and length, then offset and bytes of every line that
    /// is not all zeros.
    pub fn to_hex(&self) -> String {
        let mut text = format!("# {}: {} bytes\n", self.name, self.bytes.len());
        for (index, line) in self.bytes.chunks(LINE_BYTES).enumerate() {
            if line.iter().any(|byte| *byte != 0) {
                text += &format!("{:03x} ", index * LINE_BYTES);
                text.extend(line.iter().map(|byte| format!("{byte:02x}")));
                text.push('\n');
            }
        }
        text
    }
}

/// Reads the samples of a golden file: name and bytes, in order.
pub fn read_hex(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut samples: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# ") {
            let (name, length) = head.rsplit_once(": ").unwrap();
            let length = length.strip_suffix(" bytes").unwrap().parse().unwrap();
            samples.push((name.to_string(), vec![0; length]));
        } else {
            let (offset, digits) = line.split_once(' ').unwrap();
            let offset = usize::from_str_radix(offset, 16).unwrap();
            let bytes = &mut samples.last_mut().unwrap().1[offset..];
            for (at, byte) in bytes.iter_mut().take(digits.len() / 2).enumerate() {
                *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
            }
        }
    }
    samples
}

/// What a type has, and what its samples show of it.
#[derive(Default)]
pub struct Coverage {
    /// Tags of its fields or variants, ascending.
    pub tags: Vec<u64>,
    /// The tags that occur in samples.
    pub shown: BTreeSet<u64>,
}

/// Samples in the order of a golden file.
#[derive(Default)]
pub struct Samples {
    pub list: Vec<Sample>,
    /// By name of the type.
    pub coverage: BTreeMap<&'static str, Coverage>,
}

impl Samples {
    /// Adds samples of a record: the first with all its fields; others show what may be left out.
    pub fn record<T: Record + Debug + PartialEq + 'static>(&mut self, values: impl IntoIterator<Item = T>) {
        for (index, value) in values.into_iter().enumerate() {
            let name = if index == 0 { String::new() } else { format!(", {} more", index) };
            let bytes = value.to_wire();
            let mut fields = Fields::new(&bytes);
            while let Some(field) = fields.next().unwrap() {
                self.cover::<T>(T::TAGS, field.tag);
            }
            self.push(Form::Record, format!("{}{name}", kind::<T>()), value);
        }
    }

    /// Adds samples of a choice: at least one of each variant.
    pub fn choice<T: Choice + Debug + PartialEq + 'static>(&mut self, values: impl IntoIterator<Item = T>) {
        for value in values {
            let tag = decode_varint(&mut &value.to_wire()[..]).unwrap();
            self.cover::<T>(T::TAGS, tag);
            let variant = variant(&value);
            self.push(Form::Choice, format!("{}::{variant}", kind::<T>()), value);
        }
    }

    /// Adds every value of a numbered enum, by name, as one list.
    pub fn numbered<T: Wire + Debug + PartialEq + Clone + 'static>(&mut self, all: &[T]) {
        let words: Vec<String> = all.iter().map(|value| format!("{value:?}")).collect();
        self.coverage.entry(kind::<T>()).or_default();
        self.push(Form::Plain, format!("{} ({})", kind::<T>(), words.join(", ")), all.to_vec());
    }

    /// Adds a value with bytes of its own.
    pub fn plain<T: Wire + Debug + PartialEq + 'static>(&mut self, value: T) {
        self.coverage.entry(kind::<T>()).or_default();
        self.push(Form::Plain, kind::<T>().to_string(), value);
    }

    /// Adds a value whose bytes are not [`Wire`]'s, with the check that reads it.
    pub fn checked(&mut self, name: &str, bytes: Vec<u8>, reads_back: impl Fn(&[u8]) -> bool + 'static) {
        let reads_back = Box::new(move |bytes: &[u8]| Ok(reads_back(bytes)));
        self.list.push(Sample { kind: "", form: Form::Plain, name: name.to_string(), bytes, reads_back });
    }

    fn cover<T>(&mut self, tags: &[u64], shown: u64) {
        let coverage = self.coverage.entry(kind::<T>()).or_default();
        coverage.tags = tags.to_vec();
        coverage.shown.insert(shown);
    }

    fn push<T: Wire + PartialEq + 'static>(&mut self, form: Form, name: String, value: T) {
        let bytes = value.to_wire();
        let reads_back = Box::new(move |bytes: &[u8]| T::decode(bytes).map(|read| read == value));
        self.list.push(Sample { kind: kind::<T>(), form, name, bytes, reads_back });
    }
}

/// Returns a type's name without its path.
fn kind<T>() -> &'static str {
    std::any::type_name::<T>().rsplit("::").next().unwrap()
}

/// Returns the name of a value's variant.
fn variant<T: Debug>(value: &T) -> String {
    format!("{value:?}").chars().take_while(|letter| letter.is_alphanumeric()).collect()
}
