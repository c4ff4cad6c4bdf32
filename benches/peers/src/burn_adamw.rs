//! burn's AdamW on its backend for CPUs, flex. Its moments have the parameter's dtype.

use crate::values::{GRAD_SCALE, PARAM_SCALE, filled};
use crate::{BETAS, EPS, LR, Peer, WEIGHT_DECAY};
use anyhow::{Result, bail, ensure};
use burn::module::Param;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::time::{Duration, Instant};

pub(crate) struct Burn {
    opt: ModuleOptimizer,
    /// A module of parameters; a step takes it and gives another.
    params: Vec<Param<Tensor<1>>>,
    grads: Vec<TensorData>,
    device: Device,
    dtype: DType,
}

impl Burn {
    pub(crate) fn new(dtype: &str, lens: &[usize]) -> Result<Self> {
        let device = Device::flex();
        let dtype = match dtype {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            _ => bail!("no dtype {dtype}"),
        };
        ensure!(device.supports_dtype(dtype), "the backend has no {dtype:?}");
        let training = device.clone().autodiff();
        let param =
            |&len: &usize| Param::from_tensor(Tensor::from_data(data(len, PARAM_SCALE, dtype), (&training, dtype)));
        let params: Vec<_> = lens.iter().map(param).collect();
        let config = AdamWConfig::new().with_beta_1(BETAS.0 as f32).with_beta_2(BETAS.1 as f32);
        let opt = config.with_epsilon(EPS as f32).with_weight_decay(WEIGHT_DECAY as f32).init();
        let mut this = Self { opt, params, grads: Vec::new(), device, dtype };
        this.set_grads(GRAD_SCALE)?;
        Ok(this)
    }

    /// A step consumes its gradients; so each has its own, as after a backward pass.
    fn grads(&self) -> GradientsParams {
        let mut grads = GradientsParams::new();
        for (param, data) in self.params.iter().zip(&self.grads) {
            grads.register(param.id, Tensor::<1>::from_data(data.clone(), (&self.device, self.dtype)));
        }
        grads
    }

    fn timed_step(&mut self) -> Duration {
        let grads = self.grads();
        let params = std::mem::take(&mut self.params);
        let start = Instant::now();
        self.params = self.opt.step(LR, params, grads);
        start.elapsed()
    }
}

fn data(len: usize, scale: f32, dtype: DType) -> TensorData {
    TensorData::new(filled(len, scale, |x| x), [len]).convert_dtype(dtype)
}

impl Peer for Burn {
    fn set_grads(&mut self, scale: f32) -> Result<()> {
        self.grads = self.params.iter().map(|param| data(param.val().dims()[0], scale, self.dtype)).collect();
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        self.timed_step();
        Ok(())
    }

    fn time(&mut self, steps: u32) -> Result<Vec<Duration>> {
        Ok(vec![(0..steps).map(|_| self.timed_step()).sum()])
    }

    fn param(&self, tensor: usize) -> Result<Vec<f32>> {
        Ok(self.params[tensor].val().inner().try_into_data_dtype(DType::F32)?.try_to_vec::<f32>()?)
    }
}
