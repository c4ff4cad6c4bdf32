//! What is stepped.

use crate::limit::ONE_THREAD;
use crate::lists;
use crate::tensors::{Tensors, Timed};
use anyhow::Result;
use fused_adamw::{AdamW, AdamWConfig, Control, Device, LossScale, NonFinite, Simd};
use half::{bf16, f16};
use std::fmt;

/// Types of parameters and gradients. State and masters are f32.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Types {
    F32,
    F32GradBf16,
    Bf16,
    F16,
}

/// What a step does beside the update.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Extra {
    Plain,
    Clip,
    SkipScale,
    Metrics,
    ClampZero,
    Amsgrad,
}

/// A row of the table.
#[derive(Clone)]
pub(crate) struct Case {
    list: String,
    pub(crate) lens: Vec<usize>,
    types: Types,
    pub(crate) extra: Extra,
    simd: Simd,
    pub(crate) threads: usize,
}

impl Extra {
    fn control(self) -> Option<Control> {
        let none = Control::default();
        match self {
            Self::Plain | Self::Amsgrad => None,
            Self::Clip => Some(Control { max_grad_norm: Some(1.0), ..none }),
            Self::SkipScale => {
                let loss_scale = Some(LossScale::default());
                Some(Control { loss_scale, non_finite: NonFinite::SkipStep, ..none })
            }
            Self::Metrics => Some(Control { metrics: true, ..none }),
            Self::ClampZero => Some(Control { max_grad_value: Some(1.0), zero_grad: true, ..none }),
        }
    }

    /// Gradients are read once more, before the update.
    pub(crate) fn reads_twice(self) -> bool {
        matches!(self, Self::Clip | Self::SkipScale)
    }

    pub(crate) fn writes_grads(self) -> bool {
        self == Self::ClampZero
    }
}

impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F32GradBf16 => "f32, bf16 gradients",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl fmt::Display for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Clip => "clip",
            Self::SkipScale => "skip and loss scale",
            Self::Metrics => "metrics",
            Self::ClampZero => "clip by value, zero_grad",
            Self::Amsgrad => "AMSGrad",
        })
    }
}

impl Case {
    /// Of its list, and what else it is.
    pub(crate) fn name(&self) -> (&str, String) {
        let Self { list, types, extra, simd, threads, .. } = self;
        (list, format!("{types}; {extra}; {simd}; {threads} thread{}", if *threads == 1 { "" } else { "s" }))
    }

    pub(crate) fn elements(&self) -> usize {
        self.lens.iter().sum()
    }

    /// A step of few elements stays on the caller's.
    pub(crate) fn threads_used(&self) -> usize {
        if self.elements() > ONE_THREAD { self.threads } else { 1 }
    }

    /// What a step has to read and to write of an element.
    pub(crate) fn bytes_an_element(&self) -> usize {
        let (param, grad) = match self.types {
            Types::F32 => (4 + 4, 4),
            Types::F32GradBf16 => (4 + 4, 2),
            Types::Bf16 | Types::F16 => (2 + 4 + 4, 2), // the parameter is written alone, its master read, too
        };
        let moments = if self.extra == Extra::Amsgrad { 24 } else { 16 };
        let passes = 1 + usize::from(self.extra.reads_twice()) + usize::from(self.extra.writes_grads());
        param + moments + passes * grad
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.bytes_an_element() * self.elements()) as u64
    }

    pub(crate) fn tensors(&self) -> Result<Box<dyn Timed>> {
        let device = Device::cpu_with(self.simd)?;
        let config = AdamWConfig { amsgrad: self.extra == Extra::Amsgrad, ..Default::default() };
        let mut opt = AdamW::new(&device, config, &self.lens)?;
        opt.set_control(self.extra.control())?;
        Ok(match self.types {
            Types::F32 => Box::new(Tensors::<f32, f32>::new(opt, self)),
            Types::F32GradBf16 => Box::new(Tensors::<f32, bf16>::new(opt, self)),
            Types::Bf16 => Box::new(Tensors::<bf16, bf16>::new(opt, self)),
            Types::F16 => Box::new(Tensors::<f16, f16>::new(opt, self)),
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (list, rest) = self.name();
        write!(f, "{list}; {rest}")
    }
}

/// By list, by dtype, by what a step does, by instruction set; each by threads.
pub(crate) fn all(small: bool) -> Vec<Case> {
    let all_lists = lists(small);
    let plain = |list: &(String, Vec<usize>)| Case {
        list: list.0.clone(),
        lens: list.1.clone(),
        types: Types::F32,
        extra: Extra::Plain,
        simd: Simd::best(),
        threads: 1,
    };
    let of = |names: &'static [&str]| {
        all_lists.iter().filter(|list| names.iter().any(|name| list.0.starts_with(name))).map(plain)
    };
    let by_list = all_lists.iter().map(plain);
    let types = [Types::Bf16, Types::F16, Types::F32GradBf16];
    let by_types =
        of(&["64K", "1M", "16M", "GPT-2 124M"]).flat_map(|case| types.map(|types| Case { types, ..case.clone() }));
    let extras = [Extra::Clip, Extra::SkipScale, Extra::Metrics, Extra::ClampZero, Extra::Amsgrad];
    let by_extra = of(&["16M", "10,000 of 16"]).flat_map(|case| extras.map(|extra| Case { extra, ..case.clone() }));
    let simds = [Simd::Portable, Simd::Avx2, Simd::Avx512].into_iter();
    let others: Vec<Simd> = simds.filter(|simd| simd.is_available() && *simd != Simd::best()).collect();
    let by_simd = of(&["64K", "16M"]).flat_map(|case| others.iter().map(move |&simd| Case { simd, ..case.clone() }));
    by_list.chain(by_types).chain(by_extra).chain(by_simd.collect::<Vec<_>>()).flat_map(by_threads).collect()
}

/// One thread, two, all.
fn by_threads(case: Case) -> impl Iterator<Item = Case> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let mut threads = vec![1, 2.min(all), all];
    threads.dedup();
    threads.into_iter().map(move |threads| Case { threads, ..case.clone() })
}

/// Names and lengths; `small`: of the same shape, but hardly any elements.
fn lists(small: bool) -> Vec<(String, Vec<usize>)> {
    let lists = [
        ("1K", vec![1 << 10]),
        ("64K", vec![64 << 10]),
        ("1M", vec![1 << 20]),
        ("16M", vec![16 << 20]),
        ("128M", vec![128 << 20]),
        ("GPT-2 124M", lists::gpt2()),
        ("ResNet-50", lists::resnet50()),
        ("Llama-3-8B", lists::llama3_8b()),
        ("10,000 of 1,000", vec![1_000; 10_000]),
        ("10,000 of 16", vec![16; 10_000]),
    ];
    let shrunk = |len: usize| if small { len.div_ceil(1_000) } else { len };
    lists.map(|(name, lens)| fitting(name, lens.into_iter().map(shrunk).collect())).into()
}

/// The first tensors, as many as fit into the free memory with their gradients, moments, and the limit's; and its name,
/// which says so.
fn fitting(name: &str, mut lens: Vec<usize>) -> (String, Vec<usize>) {
    const BYTES_AN_ELEMENT: usize = 24;
    let (all, most) = (lens.len(), free_bytes() / 10 * 7 / BYTES_AN_ELEMENT);
    let sums = lens.iter().scan(0, |sum, len| {
        *sum += len;
        Some(*sum)
    });
    lens.truncate(sums.take_while(|sum| *sum <= most).count());
    let name = if lens.len() < all { format!("{name}, {} of {all} tensors", lens.len()) } else { name.into() };
    (name, lens)
}

/// As Linux says; elsewhere 8 GiB.
fn free_bytes() -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse().ok());
    kib.map_or(8 << 30, |kib: usize| kib << 10)
}
