//! What can be wrong with a trace: one variant per cause, with the name of the tensor or key and both values.

use std::fmt;

use crate::trace::MAX_STEPS;

/// Why bytes are not a trace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("the file has {found} bytes, a trace begins with 8 that say how long its header is")]
    NoLength { found: usize },
    #[error("the header claims {declared} bytes, a trace's has from 1 to {limit}")]
    HeaderLimit { declared: u64, limit: u64 },
    #[error("the header claims {declared} bytes, the file has {available} for it")]
    HeaderLength { declared: usize, available: usize },
    #[error("{bytes} bytes of memory may be needed, and are not to be had")]
    Memory { bytes: u64 },
    #[error("the header is not JSON")]
    HeaderJson(#[source] serde_json::Error),
    #[error("the header must be a JSON object, found {found}")]
    HeaderKind { found: Quoted },
    #[error("{place} has the name `{name}` twice in one object")]
    Twice { place: &'static str, name: Quoted },
    #[error("`{tensor}`: {field} must be {expected}, found {found}")]
    Field { tensor: Quoted, field: &'static str, expected: &'static str, found: Quoted },
    #[error("`{tensor}`: dtype must be F16, BF16, F32 or F64, found {found}")]
    Dtype { tensor: Quoted, found: Quoted },
    #[error("`{tensor}`: shape {shape:?} of {size}-byte elements exceeds 2^64 bytes")]
    Overflow { tensor: Quoted, shape: Shape, size: u64 },
    #[error("`{tensor}`: its shape {shape:?} takes {needed} bytes, its data_offsets span {spanned}")]
    Span { tensor: Quoted, shape: Shape, needed: u64, spanned: u64 },
    #[error("`{tensor}`: data_offsets end at byte {end}, before they start at {start}")]
    Backwards { tensor: Quoted, start: u64, end: u64 },
    #[error("`{tensor}`: its data ends at byte {end}, the file has {available} bytes of data")]
    Truncated { tensor: Quoted, end: u64, available: u64 },
    #[error("`{tensor}`: its data starts at byte {start}, the tensor before it ends at {previous_end}")]
    Gap { tensor: Quoted, start: u64, previous_end: u64 },
    #[error("the last tensor ends at byte {end}, the file has {available} bytes of data")]
    Trailing { end: u64, available: u64 },
    #[error("metadata `{key}` must be {expected}, found {found}")]
    Metadata { key: &'static str, expected: &'static str, found: Quoted },
    #[error("metadata `steps` must be an integer from 1 to {MAX_STEPS}, found {found}")]
    Steps { found: Quoted },
    #[error("metadata `config` is not JSON")]
    ConfigJson(#[source] serde_json::Error),
    #[error("{place}: `{key}` is not a key of a trace")]
    UnknownKey { place: Place, key: Quoted },
    #[error("{place}: `{key}` must be {expected}, found {found}")]
    Value { place: Place, key: &'static str, expected: &'static str, found: Quoted },
    #[error("{place}: `lr` has {found} entries, the trace has {steps} steps")]
    LrLength { place: Place, steps: u64, found: usize },
    #[error("{place} names tensor {tensor}, the trace has {tensors}")]
    GroupRange { place: Place, tensor: u64, tensors: usize },
    #[error("tensor {tensor} is in {first} and again in {second}")]
    GroupTwice { tensor: usize, first: Place, second: Place },
    #[error("tensor {tensor} of {tensors} is in none of the {groups} groups")]
    GroupNone { tensor: usize, tensors: usize, groups: usize },
    #[error("`{tensor}` is not a tensor of a trace of {tensors} parameters and {steps} steps")]
    UnknownTensor { tensor: Quoted, tensors: usize, steps: u64 },
    #[error("`{tensor}` is missing, `{present}` is there")]
    Missing { tensor: String, present: String },
    #[error("`param.0.0` is missing: the trace has no parameter")]
    NoParameter,
    #[error("`{tensor}`: shape {found:?}, `{parameter}` has {expected:?}")]
    Mismatch { tensor: String, parameter: String, expected: Shape, found: Shape },
}

/// The object of the config that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Config,
    Group(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Group(index) => write!(f, "groups[{index}]"),
        }
    }
}

/// Text from the file, cut to what a terminal can bear, control characters escaped: a hostile file may hold
/// megabytes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quoted(String);

const QUOTED_CHARS: usize = 80;

impl Quoted {
    pub(crate) fn new(text: impl AsRef<str>) -> Self {
        let mut chars = text.as_ref().chars();
        let mut kept: String = chars.by_ref().take(QUOTED_CHARS).flat_map(escaped).collect();
        if chars.next().is_some() {
            kept.push_str("...");
        }
        Self(kept)
    }
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escape.into_iter().flatten().chain(plain)
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shape, of which at most eight dimensions are printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) Vec<u64>);

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..8) {
            Some(head) if self.0.len() > 8 => write!(f, "{head:?}... of {} dimensions", self.0.len()),
            _ => write!(f, "{:?}", self.0),
        }
    }
}
