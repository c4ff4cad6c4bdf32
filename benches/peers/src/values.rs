//! Start values, which are those of benches/peers/torch_adamw.py to the bit, and the places at which results are compared.

use anyhow::Result;

pub(crate) const PARAM_SCALE: f32 = 0.02;
pub(crate) const GRAD_SCALE: f32 = 1e-3;

/// Parameters or gradients of one tensor.
pub(crate) fn filled<T: Copy>(len: usize, scale: f32, of: impl Fn(f32) -> T) -> Vec<T> {
    let pattern: Vec<T> = (0..len.min(1 << 20)).map(|i| of(scale * ((i % 1013) as f32 / 1013.0 - 0.4))).collect();
    let mut values = Vec::with_capacity(len);
    while values.len() < len {
        values.extend_from_slice(&pattern[..pattern.len().min(len - values.len())]);
    }
    values
}

pub(crate) fn filled_all<T: Copy>(lens: &[usize], scale: f32, of: impl Fn(f32) -> T) -> Vec<Vec<T>> {
    lens.iter().map(|&len| filled(len, scale, &of)).collect()
}

/// Of every tensor the first and the last value and some between, about 4096 of the list, the same in torch_peers.py.
pub(crate) fn sampled(lens: &[usize], param: impl Fn(usize) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let of_each = (4096 / lens.len()).max(3);
    let mut values = Vec::new();
    for (tensor, &len) in lens.iter().enumerate() {
        let param = param(tensor)?;
        values.extend((0..of_each).filter_map(|i| param.get(i * len.saturating_sub(1) / (of_each - 1))));
    }
    Ok(values)
}
