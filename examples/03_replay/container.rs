//! Bytes of a safetensors file -> named slices of it, every claim of the header checked first.
//!
//! The `safetensors` crate reads the same format, but (0.8.0) it takes the last of two tensors of one name and a header of
//! 100 MB, its errors for a truncated file or a shape that disagrees with its offsets name neither tensor nor numbers,
//! and eight tensors of 2^61 bytes each overflow its `buffer_end + N_LEN + n`, a panic in debug builds. The format is
//! small enough to read here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Quoted, Shape, TraceError};
use crate::json;
use crate::values::{Float, Values};

/// Some 90,000 tensors. The format itself has 100 MB, of which JSON in memory may take 10 GB.
pub(crate) const MAX_HEADER: u64 = 8 << 20;
/// The header's length stands in front of it.
pub(crate) const LENGTH_BYTES: usize = 8;

/// A safetensors file of floating-point tensors.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) metadata: Map<String, Value>,
    pub(crate) tensors: BTreeMap<String, Entry<'a>>,
}

/// One tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    dtype: Float,
    pub(crate) shape: Vec<u64>,
    bytes: &'a [u8],
}

impl Entry<'_> {
    /// Bytes, in memory as in the file.
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn values(&self) -> Values {
        Values::decode(self.dtype, self.bytes)
    }
}

/// What the header says of one tensor, before it is held against the file.
struct Claim {
    name: String,
    dtype: Float,
    shape: Vec<u64>,
    start: u64,
    end: u64,
}

impl<'a> Container<'a> {
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, TraceError> {
        let (header, data) = split_header(file)?;
        let mut header = object(header)?;
        let metadata = match header.remove("__metadata__") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        let claims = header.into_iter().map(|(name, value)| claim(name, &value)).collect::<Result<_, _>>()?;
        Ok(Self { metadata, tensors: place(claims, data)? })
    }
}

/// The length of the header that a file begins with. All of the file need not be there.
pub(crate) fn check_length(file: &[u8]) -> Result<usize, TraceError> {
    let start = file.first_chunk::<LENGTH_BYTES>().ok_or(TraceError::NoLength { found: file.len() })?;
    let declared = u64::from_le_bytes(*start);
    let length = usize::try_from(declared).ok().filter(|_| (1..=MAX_HEADER).contains(&declared));
    length.ok_or(TraceError::HeaderLimit { declared, limit: MAX_HEADER })
}

fn split_header(file: &[u8]) -> Result<(&[u8], &[u8]), TraceError> {
    let length = check_length(file)?;
    let rest = &file[LENGTH_BYTES..];
    let short = TraceError::HeaderLength { declared: length, available: rest.len() };
    rest.split_at_checked(length).ok_or(short)
}

fn object(header: &[u8]) -> Result<Map<String, Value>, TraceError> {
    match json::parse(header).map_err(|error| error.of("the header", TraceError::HeaderJson))? {
        Value::Object(map) => Ok(map),
        other => Err(TraceError::HeaderKind { found: quoted_json(&other) }),
    }
}

fn claim(name: String, value: &Value) -> Result<Claim, TraceError> {
    let found = |field: &'static str, expected: &'static str| TraceError::Field {
        tensor: Quoted::new(&name),
        field,
        expected,
        found: value.get(field).map_or_else(|| Quoted::new("nothing"), quoted_json),
    };
    let dtype = value["dtype"].as_str().ok_or_else(|| found("dtype", "a string"))?;
    let shape = integers(&value["shape"]).ok_or_else(|| found("shape", "a list of integers from 0"))?;
    let offsets = integers(&value["data_offsets"]).and_then(|o| <[u64; 2]>::try_from(o).ok());
    let [start, end] = offsets.ok_or_else(|| found("data_offsets", "two integers from 0"))?;
    let dtype = Float::parse(dtype)
        .ok_or_else(|| TraceError::Dtype { tensor: Quoted::new(&name), found: Quoted::new(dtype) })?;
    Ok(Claim { name, dtype, shape, start, end })
}

fn integers(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(Value::as_u64).collect()
}

/// A JSON value as text for an error. Lists and objects are only counted: they may be as long as the file.
pub(crate) fn quoted_json(value: &Value) -> Quoted {
    match value {
        Value::Array(list) if list.len() > 8 => Quoted::new(format!("a list of {}", list.len())),
        Value::Object(map) => Quoted::new(format!("an object of {} keys", map.len())),
        Value::String(text) => Quoted::new(text),
        other => Quoted::new(other.to_string()),
    }
}

/// Tensors must follow one another from the first byte of the data to the last, as the format demands: then no
/// two share a byte, and their sum cannot exceed the file.
fn place(mut claims: Vec<Claim>, data: &[u8]) -> Result<BTreeMap<String, Entry<'_>>, TraceError> {
    claims.sort_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
    let mut previous_end = 0;
    let mut tensors = BTreeMap::new();
    for claim in claims {
        let bytes = slice_of(&claim, data, previous_end)?;
        previous_end = claim.end;
        tensors.insert(claim.name, Entry { dtype: claim.dtype, shape: claim.shape, bytes });
    }
    let available = data.len() as u64;
    let full = previous_end == available;
    if full { Ok(tensors) } else { Err(TraceError::Trailing { end: previous_end, available }) }
}

fn slice_of<'a>(claim: &Claim, data: &'a [u8], previous_end: u64) -> Result<&'a [u8], TraceError> {
    let (tensor, shape) = (Quoted::new(&claim.name), Shape(claim.shape.clone()));
    let (start, end, available) = (claim.start, claim.end, data.len() as u64);
    let size = claim.dtype.size();
    let Some(needed) = bytes_of(&claim.shape, size) else {
        return Err(TraceError::Overflow { tensor, shape, size });
    };
    let Some(spanned) = end.checked_sub(start) else {
        return Err(TraceError::Backwards { tensor, start, end });
    };
    if spanned != needed {
        return Err(TraceError::Span { tensor, shape, needed, spanned });
    }
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let Some(bytes) = range.and_then(|(start, end)| data.get(start..end)) else {
        return Err(TraceError::Truncated { tensor, end, available });
    };
    let adjoins = start == previous_end;
    if adjoins { Ok(bytes) } else { Err(TraceError::Gap { tensor, start, previous_end }) }
}

/// `None` when a product of dimensions overflows, even if another dimension is 0: no honest writer makes that.
fn bytes_of(shape: &[u64], size: u64) -> Option<u64> {
    shape.iter().try_fold(size, |bytes, &dimension| bytes.checked_mul(dimension))
}
