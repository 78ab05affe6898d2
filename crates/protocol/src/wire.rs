//! Tag-length fields: how every record, row and message becomes bytes.
//!
//! | bytes  | content                                                                  |
//! |--------|--------------------------------------------------------------------------|
//! | varint | `tag << 1 \| ignorable`: the field's number and whether a reader that does not know it may go on |
//! | varint | length of the value in bytes                                             |
//! | length | the value                                                                |
//!
//! Fields stand in ascending tag order. A reader that meets an unknown field refuses the record
//! unless the field is marked ignorable. The values:
//!
//! | value                     | bytes                                                                |
//! |---------------------------|----------------------------------------------------------------------|
//! | integer up to 64 bits     | LEB128 varint, seven bits a byte from the lowest, never padded       |
//! | 128-bit integer or id     | 16, little-endian                                                    |
//! | bool                      | 1: 0 or 1                                                            |
//! | text                      | UTF-8                                                                |
//! | bytes, array              | themselves                                                           |
//! | number of a `numbered!`   | 1                                                                    |
//! | variant of a `choice!`    | varint of its tag, then its value, which runs to the end             |
//! | option                    | the value; none at all for an absent integer that is all of a variant |
//! | list                      | a run of (varint length, item)                                       |
//! | pair                      | (varint length, value) twice                                         |
//! | map                       | the list of its pairs, in ascending key order                        |
//!
//! An absent option, an empty list or map and `false` are not written as fields at all. The bytes
//! of every record, choice and number of this crate are in `tests/format/protocol_*.hex`.

use bytes::Bytes;
use std::collections::BTreeMap;

/// Why bytes could not be read as the record that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ended inside a field.
    #[error("input ends inside a field")]
    Truncated,
    /// A field that must be understood is not known here; the writer is newer.
    #[error("unknown required field {0}")]
    UnknownField(u64),
    /// A variant that is not known here; the writer is newer.
    #[error("unknown variant {0}")]
    UnknownVariant(u64),
    /// A field that the record cannot do without is absent.
    #[error("missing field {0}")]
    MissingField(u64),
    /// The value is outside what the field allows.
    #[error("value out of range: {0}")]
    OutOfRange(&'static str),
    /// Fields stand twice or out of order, or bytes are left over.
    #[error("malformed record: {0}")]
    Malformed(&'static str),
}

/// A value with one canonical byte form.
pub trait Wire: Sized {
    /// Whether some value's bytes may be none. Where they can't, no bytes mean an absent option also
    /// where the option is all there is, as in a variant of a choice.
    const MAY_BE_EMPTY: bool = true;

    /// Appends the value's bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads the value from exactly these bytes.
    fn decode(input: &[u8]) -> Result<Self, WireError>;

    /// Whether the value is the one that absence stands for.
    fn is_absent(&self) -> bool {
        false
    }

    /// The value that absence stands for, where there is one.
    fn absent() -> Option<Self> {
        None
    }

    /// Returns the value's bytes in a vector of their own.
    fn to_wire(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Returns the value's bytes, shareable.
    fn to_bytes(&self) -> Bytes {
        Bytes::from(self.to_wire())
    }
}

/// A record: a run of tagged fields.
pub trait Record: Wire {
    /// The tags of the fields that this version knows, ascending. Whoever rewrites a record in
    /// place keeps the ignorable fields beyond these.
    const TAGS: &'static [u64];
}

/// A choice: one of several variants, its tag before it.
pub trait Choice: Wire {
    /// The tags of the variants that this version knows, ascending.
    const TAGS: &'static [u64];
}

/// Appends a LEB128 varint.
pub fn encode_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a LEB128 varint from the front of `input` and moves past it.
pub fn decode_varint(input: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first().ok_or(WireError::Truncated)?;
        *input = rest;
        if shift == 63 && byte > 1 {
            return Err(WireError::OutOfRange("varint"));
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            if byte == 0 && shift > 0 {
                return Err(WireError::Malformed("padded varint"));
            }
            return Ok(value);
        }
    }
    Err(WireError::OutOfRange("varint"))
}

/// Takes `count` bytes from the front of `input`.
pub fn take<'a>(input: &mut &'a [u8], count: u64) -> Result<&'a [u8], WireError> {
    if count > input.len() as u64 {
        return Err(WireError::Truncated);
    }
    let (head, rest) = input.split_at(count as usize);
    *input = rest;
    Ok(head)
}

/// Appends a value behind its length. The length is patched in afterwards, so that the value is
/// encoded once and in place.
pub fn encode_counted<T: Wire>(value: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.push(0);
    value.encode(out);
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(5);
        encode_varint(length as u64, &mut prefix);
        out.splice(start..start + 1, prefix);
    }
}

/// Appends one field, unless it is absent.
pub fn encode_field<T: Wire>(tag: u64, ignorable: bool, value: &T, out: &mut Vec<u8>) {
    if !value.is_absent() {
        encode_varint(tag << 1 | u64::from(ignorable), out);
        encode_counted(value, out);
    }
}

/// One field as it stands in a record.
pub struct RawField<'a> {
    /// The field's number.
    pub tag: u64,
    /// Whether a reader that does not know the field may go on.
    pub ignorable: bool,
    /// The value's bytes.
    pub value: &'a [u8],
}

/// Walks over the fields of a record, checking their order.
pub struct Fields<'a> {
    rest: &'a [u8],
    last: Option<u64>,
}

impl<'a> Fields<'a> {
    /// Starts at the first field of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Fields { rest: input, last: None }
    }

    /// Returns the next field, or nothing at the end.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<RawField<'a>>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let head = decode_varint(&mut self.rest)?;
        let (tag, ignorable) = (head >> 1, head & 1 == 1);
        if self.last.is_some_and(|last| last >= tag) {
            return Err(WireError::Malformed("fields out of order"));
        }
        self.last = Some(tag);
        let length = decode_varint(&mut self.rest)?;
        let value = take(&mut self.rest, length)?;
        Ok(Some(RawField { tag, ignorable, value }))
    }
}

/// Declares a record: a struct whose fields carry wire tags.
///
/// `TAG => name: Type` is required of every reader; `TAG -> name: Type` may be ignored by readers
/// that do not know it.
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* $tag:literal $arrow:tt $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        // A field whose name says all needs no line of its own.
        #[allow(missing_docs)]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        impl $crate::wire::Record for $name {
            const TAGS: &'static [u64] = &[$($tag),*];
        }

        impl $crate::wire::Wire for $name {
            #[allow(unused_variables)]
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::wire::encode_field($tag, $crate::record!(@ignorable $arrow), &self.$field, out);)*
            }

            fn decode(input: &[u8]) -> Result<Self, $crate::wire::WireError> {
                $(let mut $field: Option<$ty> = None;)*
                let mut fields = $crate::wire::Fields::new(input);
                while let Some(raw) = fields.next()? {
                    match raw.tag {
                        $($tag => $field = Some(<$ty as $crate::wire::Wire>::decode(raw.value)?),)*
                        tag if !raw.ignorable => return Err($crate::wire::WireError::UnknownField(tag)),
                        _ => {}
                    }
                }
                Ok($name {
                    $($field: match $field {
                        Some(value) => value,
                        None => <$ty as $crate::wire::Wire>::absent().ok_or($crate::wire::WireError::MissingField($tag))?,
                    },)*
                })
            }
        }
    };
    (@ignorable =>) => { false };
    (@ignorable ->) => { true };
}

/// Declares a choice: an enum whose variants carry wire tags and one record each (or none).
#[macro_export]
macro_rules! choice {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $tag:literal => $variant:ident $(($ty:ty))?),* $(,)? }) => {
        $(#[$meta])*
        #[allow(missing_docs)]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant $(($ty))?,)* }

        impl $crate::wire::Choice for $name {
            const TAGS: &'static [u64] = &[$($tag),*];
        }

        impl $crate::wire::Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $($crate::choice!(@pattern $name $variant inner $(($ty))?) => {
                        $crate::wire::encode_varint($tag, out);
                        $crate::choice!(@encode inner out $(($ty))?);
                    })*
                }
            }

            fn decode(input: &[u8]) -> Result<Self, $crate::wire::WireError> {
                let mut rest = input;
                match $crate::wire::decode_varint(&mut rest)? {
                    $($tag => $crate::choice!(@decode $name $variant rest $(($ty))?),)*
                    tag => Err($crate::wire::WireError::UnknownVariant(tag)),
                }
            }
        }
    };
    (@pattern $name:ident $variant:ident $inner:ident ($ty:ty)) => { $name::$variant($inner) };
    (@pattern $name:ident $variant:ident $inner:ident) => { $name::$variant };
    (@encode $inner:ident $out:ident ($ty:ty)) => { $crate::wire::Wire::encode($inner, $out) };
    (@encode $inner:ident $out:ident) => {};
    (@decode $name:ident $variant:ident $rest:ident ($ty:ty)) => {
        Ok($name::$variant(<$ty as $crate::wire::Wire>::decode($rest)?))
    };
    (@decode $name:ident $variant:ident $rest:ident) => {
        if $rest.is_empty() { Ok($name::$variant) } else { Err($crate::wire::WireError::Malformed("bytes behind an empty variant")) }
    };
}

/// Declares an enum of one byte whose numbers are part of the format.
#[macro_export]
macro_rules! numbered {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal),* $(,)? }) => {
        $(#[$meta])*
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
        }
        impl TryFrom<u8> for $name {
            type Error = $crate::wire::WireError;
            fn try_from(value: u8) -> Result<Self, $crate::wire::WireError> {
                match value { $($value => Ok($name::$variant),)* other => Err($crate::wire::WireError::UnknownVariant(u64::from(other))) }
            }
        }
        impl $crate::wire::Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) { out.push(*self as u8); }
            fn decode(input: &[u8]) -> Result<Self, $crate::wire::WireError> {
                match input { [value] => $name::try_from(*value), _ => Err($crate::wire::WireError::OutOfRange(stringify!($name))) }
            }
        }
    };
}
macro_rules! wire_integer {
    ($($ty:ty),*) => { $(impl Wire for $ty {
        const MAY_BE_EMPTY: bool = false;
        fn encode(&self, out: &mut Vec<u8>) { encode_varint(u64::from(*self), out); }
        fn decode(mut input: &[u8]) -> Result<Self, WireError> {
            let value = decode_varint(&mut input)?;
            if !input.is_empty() { return Err(WireError::Malformed("bytes behind an integer")); }
            <$ty>::try_from(value).map_err(|_| WireError::OutOfRange(stringify!($ty)))
        }
    })* };
}
wire_integer!(u8, u16, u32, u64);

impl Wire for u128 {
    const MAY_BE_EMPTY: bool = false;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        input.try_into().map(u128::from_le_bytes).map_err(|_| WireError::OutOfRange("u128"))
    }
}

impl Wire for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        match input {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(WireError::OutOfRange("bool")),
        }
    }
    fn is_absent(&self) -> bool {
        !self
    }
    fn absent() -> Option<Self> {
        Some(false)
    }
}

impl Wire for String {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        std::str::from_utf8(input).map(str::to_owned).map_err(|_| WireError::OutOfRange("UTF-8"))
    }
}

impl Wire for Bytes {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        Ok(Bytes::copy_from_slice(input))
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        input.try_into().map_err(|_| WireError::OutOfRange("array length"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        if let Some(value) = self {
            value.encode(out);
        }
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        if input.is_empty() && !T::MAY_BE_EMPTY {
            return Ok(None);
        }
        T::decode(input).map(Some)
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// How deep values may stand inside each other through a box: a value that holds its own kind costs
/// stack for each level, and a level costs a sender one byte.
pub const NESTING_MAX: u32 = 8;

thread_local! {
    static NESTING: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

impl<T: Wire> Wire for Box<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        let level = NESTING.get();
        if level == NESTING_MAX {
            return Err(WireError::Malformed("values nested too deeply"));
        }
        NESTING.set(level + 1);
        let value = T::decode(input);
        NESTING.set(level);
        value.map(Box::new)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        for item in self {
            encode_counted(item, out);
        }
    }
    fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let mut items = Vec::new();
        while !input.is_empty() {
            let length = decode_varint(&mut input)?;
            items.push(T::decode(take(&mut input, length)?)?);
        }
        Ok(items)
    }
    fn is_absent(&self) -> bool {
        self.is_empty()
    }
    fn absent() -> Option<Self> {
        Some(Vec::new())
    }
}

/// A pair is two counted values, one behind the other.
impl<A: Wire, B: Wire> Wire for (A, B) {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_counted(&self.0, out);
        encode_counted(&self.1, out);
    }
    fn decode(mut input: &[u8]) -> Result<Self, WireError> {
        let length = decode_varint(&mut input)?;
        let first = A::decode(take(&mut input, length)?)?;
        let length = decode_varint(&mut input)?;
        let second = B::decode(take(&mut input, length)?)?;
        if !input.is_empty() {
            return Err(WireError::Malformed("bytes behind a pair"));
        }
        Ok((first, second))
    }
}

/// A map is the list of its pairs, in key order.
impl<K: Wire + Ord, V: Wire> Wire for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        for (key, value) in self {
            let start = out.len();
            out.push(0);
            encode_counted(key, out);
            encode_counted(value, out);
            let length = out.len() - start - 1;
            let mut prefix = Vec::with_capacity(5);
            encode_varint(length as u64, &mut prefix);
            out.splice(start..start + 1, prefix);
        }
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        let pairs = Vec::<(K, V)>::decode(input)?;
        if !pairs.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err(WireError::Malformed("map keys out of order"));
        }
        Ok(pairs.into_iter().collect())
    }
    fn is_absent(&self) -> bool {
        self.is_empty()
    }
    fn absent() -> Option<Self> {
        Some(BTreeMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    record! {
        /// A record for the tests.
        pub struct Sample {
            1 => id: u64,
            2 => name: String,
            3 -> hint: Option<u32>,
            4 => items: Vec<u16>,
            5 => map: BTreeMap<String, Bytes>,
        }
    }

    choice! {
        /// A choice for the tests.
        pub enum Pick {
            1 => Empty,
            7 => Full(Sample),
            8 => Perhaps(Option<u64>),
            9 => Again(Box<Pick>),
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(id: u64, name: String, hint: Option<u32>, items: Vec<u16>, keys: Vec<String>) {
            let map = keys.into_iter().map(|key| (key.clone(), Bytes::from(key))).collect();
            let sample = Sample { id, name, hint, items, map };
            prop_assert_eq!(Sample::decode(&sample.to_wire()), Ok(sample.clone()));
            let pick = Pick::Full(sample);
            prop_assert_eq!(Pick::decode(&pick.to_wire()), Ok(pick));
        }

        #[test]
        fn arbitrary_bytes_never_panic(input: Vec<u8>) {
            let _ = Sample::decode(&input);
            let _ = Pick::decode(&input);
        }
    }

    #[test]
    fn unknown_required_field_is_refused_and_ignorable_one_passed_over() {
        let sample = Sample { id: 1, name: "a".into(), hint: None, items: vec![], map: BTreeMap::new() };
        let mut bytes = sample.to_wire();
        encode_field(9, true, &5u64, &mut bytes);
        assert_eq!(Sample::decode(&bytes), Ok(sample));
        encode_field(10, false, &5u64, &mut bytes);
        assert_eq!(Sample::decode(&bytes), Err(WireError::UnknownField(10)));
    }

    #[test]
    fn an_absent_option_may_be_all_of_a_variant() {
        for pick in [Pick::Perhaps(None), Pick::Perhaps(Some(0)), Pick::Perhaps(Some(9))] {
            assert_eq!(Pick::decode(&pick.to_wire()), Ok(pick));
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let nested = |levels: usize| Pick::decode(&[vec![9; levels], vec![1]].concat());
        assert!(nested(NESTING_MAX as usize).is_ok());
        let refused = Err(WireError::Malformed("values nested too deeply"));
        assert_eq!(nested(NESTING_MAX as usize + 1), refused);
        assert_eq!(nested(1 << 20), refused);
        assert!(nested(1).is_ok(), "a refusal leaves nothing behind");
    }

    #[test]
    fn missing_field_is_named() {
        assert_eq!(Sample::decode(&[]), Err(WireError::MissingField(1)));
    }
}
