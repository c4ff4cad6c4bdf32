//! A trace through the optimizer, and its result beside the other implementation's.

use std::cmp::Ordering;
use std::fmt;

use fused_adamw::{AdamW, AdamWConfig, Control, Device, Pair, TensorSpec};

use crate::bound::{Bounded, Reference};
use crate::clip::Clip;
use crate::memory::{Slot, afford};
use crate::trace::{Tensor, Trace};
use crate::values::Values;

/// How a replay compares with its trace.
#[derive(Debug)]
pub(crate) struct Report {
    /// The element nearest to, or furthest beyond, its bound; `None` for a trace without elements.
    pub(crate) worst: Option<Deviation>,
    /// Elements that no bound can be given for (see `bound.rs`); they pass.
    pub(crate) unbounded: u64,
    /// The largest distance of two parameters in units in the last place of the narrower of the two dtypes.
    pub(crate) max_ulp: u64,
    /// Root mean square of our parameters' distance from `exact`, where the trace has it.
    pub(crate) rms: Option<f64>,
    /// That of the other implementation's.
    pub(crate) expect_rms: Option<f64>,
}

/// One element's distance from what the trace expects.
#[derive(Clone, Debug)]
pub(crate) struct Deviation {
    pub(crate) tensor: usize,
    /// `param`, `exp_avg` or `exp_avg_sq`.
    pub(crate) buffer: &'static str,
    pub(crate) element: usize,
    pub(crate) ours: f64,
    pub(crate) expected: f64,
    pub(crate) bound: f64,
}

impl Report {
    pub(crate) fn passes(&self) -> bool {
        self.worst.as_ref().is_none_or(|worst| worst.ratio() <= 1.0)
    }
}

impl Deviation {
    /// The distance in units of the bound; infinite where only one of the two is NaN.
    pub(crate) fn ratio(&self) -> f64 {
        let difference = (self.ours - self.expected).abs();
        if difference == 0.0 || self.bound == f64::INFINITY || (self.ours.is_nan() && self.expected.is_nan()) {
            return 0.0;
        }
        let ratio = difference / self.bound;
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, buffer, element, ours, expected, bound } = self;
        let difference = (ours - expected).abs();
        write!(f, "tensor {tensor}, {buffer}[{element}]: ours {ours:e}, expected {expected:e}, ")?;
        write!(f, "difference {difference:.3e}, bound {bound:.3e}")
    }
}

/// Replays `trace` on `device`.
pub(crate) fn replay(trace: &Trace, device: &Device) -> anyhow::Result<Report> {
    afford(memory(trace))?;
    let (results, references) = Replay::new(trace, device)?.run()?;
    let mut report = Report { worst: None, unbounded: 0, max_ulp: 0, rms: None, expect_rms: None };
    for (index, ((tensor, ours), reference)) in trace.tensors.iter().zip(&results).zip(&references).enumerate() {
        report.compare(index, tensor, ours, reference);
    }
    let exact =
        || trace.tensors.iter().zip(&results).filter_map(|(tensor, ours)| Some((tensor, ours, tensor.exact.as_ref()?)));
    if exact().next().is_some() {
        report.rms = Some(rms(exact().map(|(_, ours, exact)| (&ours.param, exact))));
        report.expect_rms = Some(rms(exact().map(|(tensor, _, exact)| (&tensor.expect.param, exact))));
    }
    Ok(report)
}

/// More than a replay takes beside its trace: of every parameter, the reference (64 bytes), the optimizer's and the results'
/// f32 (40) and f64 (64); of every gradient of one step, copies in the device's type and in f64 (4 and 8).
fn memory(trace: &Trace) -> u64 {
    let len = |values: &Values| values.len() as u64;
    let parameters: u64 = trace.tensors.iter().map(|tensor| len(&tensor.initial)).sum();
    let gradients = trace.gradients.values().map(|step| step.values().map(len).sum::<u64>()).max();
    192 * parameters + 16 * gradients.unwrap_or(0)
}

/// What the optimizer holds of one tensor after the last step.
struct Outcome {
    param: Values,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

struct Replay<'a> {
    trace: &'a Trace,
    device: &'a Device,
    optimizer: AdamW,
    params: Vec<Slot>,
    references: Vec<Reference>,
}

impl<'a> Replay<'a> {
    fn new(trace: &'a Trace, device: &'a Device) -> anyhow::Result<Self> {
        let configs: Vec<AdamWConfig> = trace.config.groups.iter().map(|group| group.at(1)).collect();
        let params: Vec<_> =
            trace.tensors.iter().map(|t| Slot::upload(device, &t.initial)).collect::<Result<_, _>>()?;
        let specs = trace.tensors.iter().zip(&params).enumerate().map(|(i, (tensor, slot))| {
            TensorSpec::new(tensor.initial.len()).group(tensor.group).named(&format!("param.{i}")).dtype(slot.dtype())
        });
        let mut optimizer = AdamW::with_groups(device, &configs, specs)?;
        if let Some(limit) = trace.config.max_grad_norm {
            optimizer.set_control(Some(Control { max_grad_norm: Some(limit), ..Default::default() }))?;
        }
        let references = trace.tensors.iter().map(Reference::new).collect();
        Ok(Self { trace, device, optimizer, params, references })
    }

    fn run(mut self) -> anyhow::Result<(Vec<Outcome>, Vec<Reference>)> {
        // Steps without any gradient are absent here: they would change nothing.
        for &step in self.trace.gradients.keys() {
            self.step(step)?;
        }
        let mut outcomes = Vec::new();
        for (index, slot) in self.params.into_iter().enumerate() {
            let state = self.optimizer.state(index)?;
            outcomes.push(Outcome { param: slot.download()?, exp_avg: state.m, exp_avg_sq: state.v });
        }
        Ok((outcomes, self.references))
    }

    fn step(&mut self, step: u64) -> anyhow::Result<()> {
        let gradients = &self.trace.gradients[&step];
        let configs: Vec<AdamWConfig> = self.trace.config.groups.iter().map(|group| group.at(step)).collect();
        for (index, config) in configs.iter().enumerate() {
            self.optimizer.set_group(index, *config)?;
        }
        let clip = self.trace.config.max_grad_norm.map_or(Clip::NONE, |limit| Clip::new(limit, gradients.values()));
        let mut uploaded = vec![];
        for (&tensor, values) in gradients {
            uploaded.push((tensor, Slot::upload(self.device, values)?));
            self.references[tensor].step(&configs[self.trace.tensors[tensor].group], clip, values);
        }
        let mut grads = uploaded.iter().peekable();
        let pairs = self.params.iter_mut().enumerate().map(|(index, param)| {
            match grads.next_if(|(tensor, _)| *tensor == index) {
                Some((_, grad)) => Pair::new(param.param(), grad.grad()),
                None => Pair::without_grad(param.param()),
            }
        });
        Ok(self.optimizer.step(pairs)?)
    }
}

impl Report {
    fn compare(&mut self, tensor: usize, trace: &Tensor, ours: &Outcome, reference: &Reference) {
        let expect = &trace.expect;
        let (p, m, v) = (ours.param.to_f64(), widened(&ours.exp_avg), widened(&ours.exp_avg_sq));
        let bounds = |of: fn(&Reference, usize) -> Bounded| (0..p.len()).map(move |i| of(reference, i).bound());
        let buffers = [
            ("param", &p, expect.param.to_f64(), bounds(|r, i| r.stored(r.elements[i].p))),
            ("exp_avg", &m, expect.exp_avg.to_f64(), bounds(|r, i| r.elements[i].m)),
            ("exp_avg_sq", &v, expect.exp_avg_sq.to_f64(), bounds(|r, i| r.elements[i].v)),
        ];
        for (buffer, ours, expected, bounds) in buffers {
            for (element, ((&ours, expected), bound)) in ours.iter().zip(expected).zip(bounds).enumerate() {
                self.note(Deviation { tensor, buffer, element, ours, expected, bound });
            }
        }
        self.max_ulp = self.max_ulp.max(max_ulp(&ours.param, &expect.param));
    }

    fn note(&mut self, deviation: Deviation) {
        self.unbounded += u64::from(deviation.bound == f64::INFINITY);
        let worse = |worst: &Deviation| deviation.ratio().total_cmp(&worst.ratio()) == Ordering::Greater;
        if self.worst.as_ref().is_none_or(worse) {
            self.worst = Some(deviation);
        }
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Over the elements of all tensors together; 0 where there are none.
fn rms<'a>(pairs: impl Iterator<Item = (&'a Values, &'a Values)>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for (values, exact) in pairs {
        for (x, y) in values.to_f64().into_iter().zip(exact.to_f64()) {
            sum += (x - y) * (x - y);
            count += 1.0;
        }
    }
    if count == 0.0 { 0.0 } else { f64::sqrt(sum / count) }
}

fn max_ulp(ours: &Values, expected: &Values) -> u64 {
    let format = if ours.dtype().size() < expected.dtype().size() { ours.dtype() } else { expected.dtype() };
    let rank = |values: &Values| values.to_f64().into_iter().map(move |x| format.rank(x));
    rank(ours).zip(rank(expected)).map(|(a, b)| a.abs_diff(b)).max().unwrap_or(0)
}
