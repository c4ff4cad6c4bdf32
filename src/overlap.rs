//! Whether any byte that a step writes is another's.

use crate::error::{Buffer, Error, Result, Span};
use crate::register::Tensor;
use crate::table::TensorRow;

/// No parameter may share a byte with another parameter or with a gradient. Gradients may share with each other, unless
/// the step zeroes them.
pub(crate) fn check(rows: &[TensorRow], tensors: &[Tensor], zero_grad: bool) -> Result<()> {
    let mut written: Vec<Bytes> = spans(rows, tensors, Buffer::Param).collect();
    if zero_grad {
        written.extend(spans(rows, tensors, Buffer::Grad));
    }
    written.sort_unstable_by_key(|bytes| bytes.start);
    if let Some(two) = written.windows(2).find(|two| two[1].start < two[0].end) {
        return Err(overlap(&two[0], &two[1], tensors));
    }
    for grad in spans(rows, tensors, Buffer::Grad).filter(|_| !zero_grad) {
        // Of those that begin before the gradient's end, the last: they are apart and in order.
        let before = written.partition_point(|other| other.start < grad.end);
        if let Some(other) = before.checked_sub(1).map(|i| &written[i]).filter(|other| other.end > grad.start) {
            return Err(overlap(other, &grad, tensors));
        }
    }
    Ok(())
}

struct Bytes {
    start: u64,
    end: u64,
    tensor: usize,
    buffer: Buffer,
}

fn spans(rows: &[TensorRow], tensors: &[Tensor], buffer: Buffer) -> impl Iterator<Item = Bytes> {
    let present = move |row: &TensorRow| buffer == Buffer::Param || row.has_grad();
    let all = rows.iter().zip(tensors).enumerate();
    all.filter(move |(_, (row, tensor))| tensor.len > 0 && present(row)).map(move |(i, (row, tensor))| {
        let (start, dtype) = match buffer {
            Buffer::Param => (row.param, row.param_dtype()),
            Buffer::Grad => (row.grad, row.grad_dtype()),
        };
        Bytes { start, end: start + (dtype.size() * tensor.len) as u64, tensor: i, buffer }
    })
}

fn overlap(first: &Bytes, second: &Bytes, tensors: &[Tensor]) -> Error {
    let span = |bytes: &Bytes| {
        let tensor = tensors[bytes.tensor].id.clone();
        Box::new(Span { tensor, buffer: bytes.buffer, start: bytes.start, end: bytes.end })
    };
    Error::Overlap { first: span(first), second: span(second) }
}
