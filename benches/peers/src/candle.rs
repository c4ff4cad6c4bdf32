//! candle-nn's AdamW. Its moments have the parameter's dtype.

use crate::values::{GRAD_SCALE, PARAM_SCALE, filled};
use crate::{BETAS, EPS, LR, Peer, WEIGHT_DECAY};
use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

pub(crate) struct Candle {
    opt: AdamW,
    params: Vec<Var>,
    grads: GradStore,
}

fn tensor(len: usize, scale: f32, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::from_vec(filled(len, scale, |x| x), len, &Device::Cpu)?.to_dtype(dtype)?)
}

impl Candle {
    pub(crate) fn new(lens: &[usize], dtype: &str) -> Result<Self> {
        let dtype = dtype.parse()?;
        let param = |&len: &usize| Ok(Var::from_tensor(&tensor(len, PARAM_SCALE, dtype)?)?);
        let params = lens.iter().map(param).collect::<Result<Vec<_>>>()?;
        let (beta1, beta2) = BETAS;
        let config = ParamsAdamW { lr: LR, beta1, beta2, eps: EPS, weight_decay: WEIGHT_DECAY };
        let opt = AdamW::new(params.clone(), config)?;
        let mut this = Self { opt, params, grads: GradStore::default() };
        this.set_grads(GRAD_SCALE)?;
        Ok(this)
    }
}

impl Peer for Candle {
    fn set_grads(&mut self, scale: f32) -> Result<()> {
        for param in &self.params {
            self.grads.insert(param, tensor(param.elem_count(), scale, param.dtype())?);
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        Ok(self.opt.step(&self.grads)?)
    }

    fn param(&self, tensor: usize) -> Result<Vec<f32>> {
        Ok(self.params[tensor].to_dtype(DType::F32)?.to_vec1()?)
    }
}
