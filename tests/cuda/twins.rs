//! One list of tensors, twice: on the CPU and on a GPU, with the same bits before each step and, if all is well, after.

use std::sync::Arc;

use fused_adamw::cudarc::driver::CudaStream;
use fused_adamw::{AdamW, AdamWConfig, Device, Dtype, Grad, Pair, Param, Result, StepOptions, TensorSpec};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::typed::{Gpu, Host};

pub(crate) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// Around every length at which something changes: a lane's, a warp's, a block's, a chunk's.
pub(crate) const LENGTHS: [usize; 26] = [
    0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049, 16383, 16384,
    16385,
];

/// What a tensor is made of. `param_at` and `grad_at` are the elements before it in its allocation: its phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) len: usize,
    pub(crate) param: Dtype,
    pub(crate) grad: Dtype,
    pub(crate) group: usize,
    pub(crate) param_at: usize,
    pub(crate) grad_at: usize,
}

impl Shape {
    pub(crate) fn new(len: usize, param: Dtype, grad: Dtype) -> Self {
        Self { len, param, grad, group: 0, param_at: 0, grad_at: 0 }
    }

    pub(crate) fn f32(len: usize) -> Self {
        Self::new(len, Dtype::F32, Dtype::F32)
    }
}

/// What the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Of either sign and many sizes, as in practice; all distinct.
    Tame,
    /// Any bit pattern, and every second one of [`SPECIAL`].
    Wild,
}

/// Zeros, subnormals, the ends of the normals of f32 and of f16, infinities, NaN of any kind.
const SPECIAL: [u32; 20] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x3380_0000,
    0x3300_0001,
    0x3880_0000,
    0x387f_e000,
    0x477f_e000,
    0x477f_f000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc1_2345,
    0x7f80_0001,
    0x5f00_0000,
];

impl Values {
    pub(crate) fn bits(self, dtype: Dtype, rng: &mut StdRng) -> u32 {
        let any: u32 = rng.random();
        let bits = match self {
            // Exponents from -12 to 3.
            Self::Tame => any & 0x807f_ffff | (115 + rng.random_range(0..16)) << 23,
            Self::Wild if rng.random() => SPECIAL[any as usize % SPECIAL.len()],
            Self::Wild => any,
        };
        match (dtype, self) {
            (Dtype::F32, _) => bits,
            (Dtype::F16, Self::Tame) => f16::from_f32(f32::from_bits(bits)).to_bits().into(),
            _ => bits >> 16,
        }
    }
}

/// A tensor on both devices, the elements around it included: nobody may change those.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: Shape,
    pub(crate) param: (Host, Gpu),
    pub(crate) grad: (Host, Gpu),
}

/// Elements behind a tensor in its allocation: none behind every other one, where AddressSanitizer stands guard, and
/// behind the others some that nobody may change.
fn behind(len: usize) -> usize {
    if len > 0 && len.is_multiple_of(2) { 0 } else { 9 }
}

impl Tensor {
    pub(crate) fn gpu_grad(&self, with_grad: bool) -> Option<Grad<'_>> {
        with_grad.then(|| self.grad.1.grad(self.shape.grad_at, self.shape.len))
    }

    pub(crate) fn cpu_grad(&self, with_grad: bool) -> Option<Grad<'_>> {
        with_grad.then(|| self.grad.0.grad(self.shape.grad_at, self.shape.len))
    }

    pub(crate) fn gpu_param(&mut self) -> Param<'_> {
        self.param.1.param(self.shape.param_at, self.shape.len)
    }

    pub(crate) fn cpu_param(&mut self) -> Param<'_> {
        self.param.0.param(self.shape.param_at, self.shape.len)
    }

    pub(crate) fn gpu_pair(&mut self, with_grad: bool) -> Pair<'_> {
        let Shape { len, param_at, grad_at, .. } = self.shape;
        let grad = with_grad.then(|| self.grad.1.grad(grad_at, len));
        Pair::new(self.param.1.param(param_at, len), grad)
    }

    /// With gradients that may be written.
    pub(crate) fn gpu_pair_mut(&mut self, with_grad: bool) -> Pair<'_> {
        let Shape { len, param_at, grad_at, .. } = self.shape;
        let grad = with_grad.then(|| self.grad.1.grad_mut(grad_at, len));
        Pair::new(self.param.1.param(param_at, len), grad)
    }

    pub(crate) fn cpu_pair_mut(&mut self, with_grad: bool) -> Pair<'_> {
        let Shape { len, param_at, grad_at, .. } = self.shape;
        let grad = with_grad.then(|| self.grad.0.grad_mut(grad_at, len));
        Pair::new(self.param.0.param(param_at, len), grad)
    }

    pub(crate) fn cpu_pair(&mut self, with_grad: bool) -> Pair<'_> {
        let Shape { len, param_at, grad_at, .. } = self.shape;
        let grad = with_grad.then(|| self.grad.0.grad(grad_at, len));
        Pair::new(self.param.0.param(param_at, len), grad)
    }
}

/// Two optimizers and their tensors.
#[derive(Debug)]
pub(crate) struct Twins {
    /// Dropped before the optimizer, and with it the last stream: cudarc then waits no longer for other streams.
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) cpu: AdamW,
    pub(crate) gpu: AdamW,
    /// Where the tensors are allocated.
    stream: Arc<CudaStream>,
    values: Values,
    rng: StdRng,
}

impl Twins {
    /// On the first GPU, with tame values.
    pub(crate) fn new(groups: &[AdamWConfig], shapes: impl IntoIterator<Item = Shape>) -> Self {
        Self::with_values(Values::Tame, groups, shapes)
    }

    pub(crate) fn with_values(v: Values, groups: &[AdamWConfig], shapes: impl IntoIterator<Item = Shape>) -> Self {
        let device = Device::cuda_at(0).unwrap();
        Self::on(&device, device.stream().unwrap(), v, groups, shapes)
    }

    /// The optimizer on `device`, the tensors on `stream`.
    pub(crate) fn on(
        device: &Device,
        stream: &Arc<CudaStream>,
        values: Values,
        groups: &[AdamWConfig],
        shapes: impl IntoIterator<Item = Shape>,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(42);
        let mut both = |dtype, len| {
            let host = Host::random(dtype, len, values, &mut rng);
            let gpu = host.to_gpu(stream);
            (host, gpu)
        };
        let mut tensor = |shape: Shape| Tensor {
            param: both(shape.param, shape.param_at + shape.len + behind(shape.len)),
            grad: both(shape.grad, shape.grad_at + shape.len + behind(shape.len)),
            shape,
        };
        let tensors: Vec<Tensor> = shapes.into_iter().map(&mut tensor).collect();
        let specs: Vec<_> = tensors.iter().map(|t| TensorSpec::new(t.shape.len).group(t.shape.group)).collect();
        Self {
            cpu: AdamW::with_groups(&Device::cpu(), groups, &specs).unwrap(),
            gpu: AdamW::with_groups(device, groups, &specs).unwrap(),
            tensors,
            stream: stream.clone(),
            values,
            rng,
        }
    }

    /// One step of both, of new gradients.
    pub(crate) fn step(&mut self) {
        self.step_with(StepOptions::default(), |_| true);
    }

    /// One step of both, of new gradients; of the tensors that have one.
    pub(crate) fn step_with(&mut self, options: StepOptions, has_grad: impl Fn(usize) -> bool) {
        self.new_grads();
        self.gpu_step(options, &has_grad).unwrap();
        self.cpu_step(options, &has_grad).unwrap();
    }

    /// Other values at the same addresses.
    pub(crate) fn new_grads(&mut self) {
        for Tensor { shape, grad: (host, gpu), .. } in &mut self.tensors {
            *host = Host::random(shape.grad, host.bits().len(), self.values, &mut self.rng);
            copy(host, gpu, &self.stream);
        }
    }

    pub(crate) fn gpu_step(&mut self, options: StepOptions, has_grad: impl Fn(usize) -> bool) -> Result<()> {
        let tensors = self.tensors.iter_mut().enumerate();
        self.gpu.step_with(options, tensors.map(|(i, tensor)| tensor.gpu_pair(has_grad(i))))
    }

    pub(crate) fn cpu_step(&mut self, options: StepOptions, has_grad: impl Fn(usize) -> bool) -> Result<()> {
        let tensors = self.tensors.iter_mut().enumerate();
        self.cpu.step_with(options, tensors.map(|(i, tensor)| tensor.cpu_pair(has_grad(i))))
    }

    /// Moves a parameter into a new allocation, to another phase.
    pub(crate) fn move_param(&mut self, index: usize, param_at: usize) {
        let Tensor { shape, param, .. } = &mut self.tensors[index];
        let bits = param.0.bits()[shape.param_at..shape.param_at + shape.len].to_vec();
        shape.param_at = param_at;
        self.set_param(index, bits);
    }

    /// Other values, in a new allocation.
    pub(crate) fn set_param(&mut self, index: usize, bits: Vec<u32>) {
        let Tensor { shape, param, .. } = &mut self.tensors[index];
        param.0 = surrounded(shape.param, shape.param_at, &bits);
        param.1 = param.0.to_gpu(&self.stream);
    }

    /// Other values, in a new allocation.
    pub(crate) fn set_grad(&mut self, index: usize, bits: Vec<u32>) {
        let Tensor { shape, grad, .. } = &mut self.tensors[index];
        grad.0 = surrounded(shape.grad, shape.grad_at, &bits);
        grad.1 = grad.0.to_gpu(&self.stream);
    }

    /// NaN everywhere in a gradient, at the same addresses.
    pub(crate) fn spoil_in_place(&mut self, index: usize) {
        let is_f32 = self.tensors[index].shape.grad == Dtype::F32;
        self.overwrite_grad(index, if is_f32 { 0x7fff_ffff } else { 0x7fff });
    }

    /// The same bits everywhere in a gradient, at the same addresses.
    pub(crate) fn overwrite_grad(&mut self, index: usize, bits: u32) {
        let Tensor { shape, grad: (host, gpu), .. } = &mut self.tensors[index];
        *host = Host::from_bits(shape.grad, vec![bits; host.bits().len()]);
        copy(host, gpu, &self.stream);
    }

    /// The same bits everywhere in a parameter, at the same addresses.
    pub(crate) fn overwrite_param(&mut self, index: usize, bits: u32) {
        let Tensor { shape, param: (host, gpu), .. } = &mut self.tensors[index];
        *host = Host::from_bits(shape.param, vec![bits; host.bits().len()]);
        copy(host, gpu, &self.stream);
    }

    /// Every bit of every parameter and of what lies around it, of the gradients, and of the state.
    #[track_caller]
    pub(crate) fn assert_same(&self) {
        for (i, tensor) in self.tensors.iter().enumerate() {
            let about = || format!("tensor {i}, {:?}, of {}", tensor.shape, self.tensors.len());
            assert_eq!(first_difference(&tensor.param.0, &tensor.param.1), None, "parameter of {}", about());
            assert_eq!(first_difference(&tensor.grad.0, &tensor.grad.1), None, "gradient of {}", about());
            let [cpu, gpu] = [&self.cpu, &self.gpu].map(|optimizer| optimizer.state(i).unwrap());
            assert_eq!(cpu.step, gpu.step, "step of {}", about());
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(cpu.m) == bits(gpu.m), "m of {}", about());
            assert!(bits(cpu.v) == bits(gpu.v), "v of {}", about());
            assert!(cpu.vmax.map(bits) == gpu.vmax.map(bits), "vmax of {}", about());
            assert!(cpu.master.map(bits) == gpu.master.map(bits), "master of {}", about());
        }
    }

    /// All bits on the GPU and all step counts, to be compared with those at another time.
    pub(crate) fn gpu_bits(&self) -> Vec<Vec<u32>> {
        let state = |i| {
            let state = self.gpu.state(i).unwrap();
            let arrays = [Some(state.m), Some(state.v), state.vmax, state.master];
            let bits = arrays.into_iter().flatten().flatten().map(f32::to_bits);
            bits.chain([u32::try_from(state.step).unwrap()]).collect()
        };
        let params = self.tensors.iter().map(|tensor| tensor.param.1.to_host().bits());
        params.chain((0..self.tensors.len()).map(state)).collect()
    }
}

pub(crate) fn copy(from: &Host, to: &mut Gpu, stream: &Arc<CudaStream>) {
    match (from, to) {
        (Host::F32(from), Gpu::F32(to)) => stream.memcpy_htod(from, to).unwrap(),
        (Host::F16(from), Gpu::F16(to)) => stream.memcpy_htod(from, to).unwrap(),
        (Host::BF16(from), Gpu::BF16(to)) => stream.memcpy_htod(from, to).unwrap(),
        _ => unreachable!("both are of the shape's dtype"),
    }
}

fn surrounded(dtype: Dtype, at: usize, bits: &[u32]) -> Host {
    Host::from_bits(dtype, [&vec![0x1234; at], bits, &vec![0x1234; behind(bits.len())]].concat())
}

/// Index and bits of the first element that differs: on the CPU, on the GPU.
fn first_difference(cpu: &Host, gpu: &Gpu) -> Option<(usize, u32, u32)> {
    let both = cpu.bits().into_iter().zip(gpu.to_host().bits()).enumerate();
    both.map(|(i, (cpu, gpu))| (i, cpu, gpu)).find(|(_, cpu, gpu)| cpu != gpu)
}
