//! Which lists are stepped, in which dtype, and as much of each as fits.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lists;

/// What stays of every length where only the program is tried.
const SMALL: usize = 10_000;

/// A list of tensors as it is stepped, by us and by peers: they read it from one file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) name: String,
    /// Of parameters and gradients: `f32`, `bf16`, or [`MIXED`].
    pub(crate) dtype: String,
    /// Of the whole list; `lengths` has those that fit, from the first on.
    pub(crate) of_tensors: usize,
    pub(crate) of_elements: usize,
    pub(crate) lengths: Vec<usize>,
    /// Gradients are clipped to this norm, all together.
    pub(crate) max_grad_norm: Option<f64>,
    /// The step measures itself.
    pub(crate) metrics: bool,
    /// No step, but a pass that adds the gradients to those of passes before.
    pub(crate) accumulates: bool,
}

impl List {
    /// All of it; what is done beside the update stands at the end of its name.
    pub(crate) fn new(name: &str, dtype: &str, lengths: Vec<usize>) -> Self {
        Self {
            name: name.into(),
            dtype: dtype.into(),
            of_tensors: lengths.len(),
            of_elements: lengths.iter().sum(),
            max_grad_norm: name.ends_with(CLIPPED).then_some(1.0),
            metrics: name.ends_with(MEASURED),
            accumulates: name.ends_with(ACCUMULATED),
            lengths,
        }
    }

    /// f32: reads p, g, m, v; writes p, m, v. bf16: reads g and the master, m, v; writes p and these three. Clipped: reads g
    /// once more.
    pub(crate) fn bytes_an_element(&self) -> usize {
        let [param, grad] = match self.dtype.as_str() {
            "f32" => [0, 4],
            "bf16" => [2, 2],
            _ => [2, 4],
        };
        if self.accumulates {
            return 8 + grad; // the sum, there and back
        }
        let reads = if self.max_grad_norm.is_some() { 2 } else { 1 };
        24 + param + grad * reads
    }

    /// The longest beginning of no more than `elements`.
    fn cut(mut self, elements: usize, small: bool) -> Self {
        if small {
            self.lengths.iter_mut().for_each(|len| *len = len.div_ceil(SMALL));
        }
        let mut sum = 0;
        let too_many = |len: &usize| {
            sum += len;
            sum > elements
        };
        let end = self.lengths.iter().position(too_many).unwrap_or(self.lengths.len());
        self.lengths.truncate(end);
        self
    }

    /// Whether variants of the update are tried on it: neither too small to time nor too large for the time there is.
    pub(crate) fn is_varied(&self) -> bool {
        self.max_grad_norm.is_none()
            && !self.metrics
            && !self.accumulates
            && (5_000_000..300_000_000).contains(&self.of_elements)
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, dtype, of_tensors, of_elements, lengths, .. } = self;
        let elements: usize = lengths.iter().sum();
        write!(f, "{name} {dtype}: {} of {of_tensors} tensors, {elements} of {of_elements} elements", lengths.len())
    }
}

/// Parameters and gradients of two dtypes.
pub(crate) const MIXED: &str = "bf16, f32 gradients";

/// What is done beside the update, at the end of a list's name.
const CLIPPED: &str = ", clipped";
const MEASURED: &str = ", with metrics";
const ACCUMULATED: &str = ", gradients added";

/// f32: parameter, gradient, m, v. bf16: parameter, gradient, and in f32 master, m, v.
const BYTES_AN_ELEMENT: usize = 16;

pub(crate) fn lists(free_bytes: usize, small: bool) -> Vec<List> {
    let all = [
        ("one of 256M", "f32", vec![256 << 20]),
        ("GPT-2 124M", "f32", lists::gpt2()),
        ("GPT-2 124M", "bf16", lists::gpt2()),
        ("GPT-2 124M", MIXED, lists::gpt2()),
        ("GPT-2 124M, clipped", "f32", lists::gpt2()),
        ("GPT-2 124M, clipped", "bf16", lists::gpt2()),
        ("GPT-2 124M, with metrics", "f32", lists::gpt2()),
        ("GPT-2 124M, gradients added", "f32", lists::gpt2()),
        ("GPT-2 124M, gradients added", "bf16", lists::gpt2()),
        ("ResNet-50", "f32", lists::resnet50()),
        ("one of 1M", "f32", vec![1_000_000]),
        ("1,000 of 1,000", "f32", vec![1_000; 1_000]),
        ("10,000 of 1,000", "f32", vec![1_000; 10_000]),
        ("Llama-3-8B", "f32", lists::llama3_8b()),
        ("Llama-3-8B", "bf16", lists::llama3_8b()),
    ];
    // A tenth is for the tables, the fragments, and what the driver takes.
    let fitting = free_bytes / 10 * 9 / BYTES_AN_ELEMENT;
    all.map(|(name, dtype, whole)| List::new(name, dtype, whole).cut(fitting, small)).into()
}
