//! Numbers and remedies in the words of an error.

use super::{Buffer, Span, TensorId};

/// `1 step`, `2 steps`.
pub(crate) fn number_of(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

pub(super) fn are(n: u64) -> &'static str {
    if n == 1 { "is" } else { "are" }
}

pub(super) fn was(n: u64) -> &'static str {
    if n == 1 { "was" } else { "were" }
}

/// `tensor`: as in [`super::Error::TensorCount`].
pub(super) fn tensor_count(expected: u64, actual: u64, tensor: Option<&TensorId>) -> String {
    let given = match actual <= expected {
        true => format!("{} {}", number_of(actual, "tensor"), was(actual)),
        false => format!("more than {} {}", number_of(expected, "tensor"), was(expected)),
    };
    let which = if actual < expected { "is the first without one" } else { "is the last of these" };
    let which = tensor.map_or(String::new(), |tensor| format!(": {tensor} {which}"));
    format!("{given} given, {expected} {} registered{which}", are(expected))
}

/// How two tensors that share bytes come apart.
pub(super) fn apart(first: &Span, second: &Span) -> &'static str {
    match (first.buffer, second.buffer) {
        (Buffer::Param, Buffer::Param) => "register a tied tensor once, with the sum of its gradients",
        (Buffer::Grad, Buffer::Grad) => "`zero_grad` writes both, give each memory of its own",
        _ => "a step writes the parameter, give the gradient memory of its own",
    }
}

pub(super) fn memory(gpu: Option<usize>) -> String {
    gpu.map_or("host memory".into(), |ordinal| format!("the memory of GPU {ordinal}"))
}
