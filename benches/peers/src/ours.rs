//! This crate.

use crate::values::{GRAD_SCALE, PARAM_SCALE, filled_all};
use crate::{BETAS, EPS, LR, Peer, WEIGHT_DECAY};
use anyhow::Result;
use fused_adamw::{AdamW, AdamWConfig, Device, Float};

pub(crate) struct Ours<T> {
    opt: AdamW,
    params: Vec<Vec<T>>,
    grads: Vec<Vec<T>>,
    lens: Vec<usize>,
    of: fn(f32) -> T,
}

impl<T: Copy> Ours<T> {
    /// `of` makes a `T` of an f32.
    pub(crate) fn new(lens: &[usize], of: fn(f32) -> T) -> Result<Self> {
        let config = AdamWConfig { lr: LR, betas: BETAS, eps: EPS, weight_decay: WEIGHT_DECAY, ..Default::default() };
        Ok(Self {
            opt: AdamW::new(&Device::cpu(), config, lens)?,
            params: filled_all(lens, PARAM_SCALE, of),
            grads: filled_all(lens, GRAD_SCALE, of),
            lens: lens.to_vec(),
            of,
        })
    }
}

impl<T: Float + Into<f32>> Peer for Ours<T> {
    fn set_grads(&mut self, scale: f32) -> Result<()> {
        self.grads = filled_all(&self.lens, scale, self.of);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        Ok(self.opt.step(self.params.iter_mut().zip(&self.grads))?)
    }

    fn param(&self, tensor: usize) -> Result<Vec<f32>> {
        Ok(self.params[tensor].iter().map(|&x| x.into()).collect())
    }
}
