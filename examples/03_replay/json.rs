//! JSON text -> a value, in which every object has each name once: of two values of one name, other readers take either.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Quoted, TraceError};

use crate::memory::afford;

/// The most bytes of memory for a byte of JSON: a list of objects of one name, `{"":0},`, takes 100.
const MEMORY: u64 = 128;

/// Why text is no such JSON.
#[derive(Debug)]
pub(crate) enum JsonError {
    Syntax(serde_json::Error),
    /// A name that an object has twice.
    Twice(Quoted),
    Memory(TraceError),
}

impl JsonError {
    /// The error of text that stands at `place`.
    pub(crate) fn of(self, place: &'static str, syntax: fn(serde_json::Error) -> TraceError) -> TraceError {
        match self {
            Self::Syntax(error) => syntax(error),
            Self::Twice(name) => TraceError::Twice { place, name },
            Self::Memory(error) => error,
        }
    }
}

pub(crate) fn parse(text: &[u8]) -> Result<Value, JsonError> {
    afford(text.len() as u64 * MEMORY).map_err(JsonError::Memory)?;
    let twice = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Unique { twice: &twice }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| twice.take().map_or(JsonError::Syntax(error), JsonError::Twice))
}

/// Reads a value; keeps a name that is there twice, because serde's errors are text.
#[derive(Clone, Copy)]
struct Unique<'a> {
    twice: &'a RefCell<Option<Quoted>>,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            if map.contains_key(&name) {
                self.twice.replace(Some(Quoted::new(&name)));
                return Err(Error::custom("a name is there twice"));
            }
            map.insert(name, object.next_value_seed(self)?);
        }
        Ok(map.into())
    }
}
