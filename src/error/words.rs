//! Numbers and remedies in the words of an error.

use super::{Buffer, Span, TensorId};

/// `1 step`, `2 steps`.
pub(crate) fn number_of(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A number without a row of zeros: `1e300`, `1e-46`.
pub(super) fn short(x: f64) -> String {
    let by_power = x != 0.0 && x.is_finite() && !(1e-5..1e16).contains(&x.abs());
    if by_power { format!("{x:e}") } else { x.to_string() }
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

pub(super) fn group_index(tensor: Option<&TensorId>, group: usize, groups: u64) -> String {
    let of = tensor.map_or(String::new(), |tensor| format!("{tensor}: "));
    format!("{of}group {group} is out of range, there {} {}", are(groups), number_of(groups, "group"))
}

pub(super) fn skipped(running: u64, limit: u64, non_finite: u64) -> String {
    let (steps, gradients) = (number_of(running, "step"), number_of(non_finite, "gradient"));
    let (allowed, found) = (are(limit), was(non_finite));
    format!(
        "{steps} skipped one after the other, at most {limit} {allowed} allowed: {gradients} of the last one {found} NaN or \
         infinite"
    )
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
