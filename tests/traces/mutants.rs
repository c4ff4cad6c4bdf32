//! Wrong optimizers: each is the right one in f64 but for one mistake that somebody has made somewhere. A bound
//! that lets one of them pass is too loose.

use fused_adamw::{AdamWConfig, Algorithm};

use crate::trace::{Expected, Trace};
use crate::values::Values;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Nothing: must pass everywhere.
    None,
    EpsInsideRoot,
    EpsBeforeBiasCorrection,
    NoBiasCorrection1,
    NoBiasCorrection2,
    BiasCorrection2OutsideRoot,
    NoDecay,
    DecayNotTimesLr,
    DecayAfterTheUpdate,
    DecayAsL2,
    L2AsDecay,
    L2BeforeMaximize,
    AmsgradIgnored,
    AmsgradOfCorrected,
    MaximizeIgnored,
    ClipIgnored,
    ClipPerTensor,
    ClipScalesTheUpdate,
    MissingCountsAsStep,
    MissingIsZero,
    LrOfFirstStep,
    LrOneStepLate,
    GroupsIgnored,
    BetasSwapped,
    BetasInF16,
    Nesterov,
    LastStepLost,
    SecondMomentOfMean,
}

use Mutant as M;

pub(crate) const MUTANTS: [Mutant; 27] = [
    M::EpsInsideRoot,
    M::EpsBeforeBiasCorrection,
    M::NoBiasCorrection1,
    M::NoBiasCorrection2,
    M::BiasCorrection2OutsideRoot,
    M::NoDecay,
    M::DecayNotTimesLr,
    M::DecayAfterTheUpdate,
    M::DecayAsL2,
    M::L2AsDecay,
    M::L2BeforeMaximize,
    M::AmsgradIgnored,
    M::AmsgradOfCorrected,
    M::MaximizeIgnored,
    M::ClipIgnored,
    M::ClipPerTensor,
    M::ClipScalesTheUpdate,
    M::MissingCountsAsStep,
    M::MissingIsZero,
    M::LrOfFirstStep,
    M::LrOneStepLate,
    M::GroupsIgnored,
    M::BetasSwapped,
    M::BetasInF16,
    M::Nesterov,
    M::LastStepLost,
    M::SecondMomentOfMean,
];

#[derive(Clone, Default)]
struct State {
    t: i32,
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    vmax: Vec<f64>,
}

/// `trace` with the results of a wrong optimizer in place of what was expected.
pub(crate) fn mutated(trace: &Trace, mutant: Mutant) -> Trace {
    let mut states: Vec<State> = trace.tensors.iter().map(|tensor| State::new(tensor.initial.to_f64())).collect();
    let last = trace.steps - u64::from(mutant == M::LastStepLost);
    for step in 1..=last {
        for (i, state) in states.iter_mut().enumerate() {
            let config = config_of(trace, i, step, mutant);
            if let Some((g, clip)) = gradient_of(trace, i, step, mutant) {
                state.step(&config, &g, clip, mutant);
            } else if mutant == M::MissingCountsAsStep {
                state.t += 1;
            }
        }
    }
    let mut result = trace.clone();
    for (tensor, state) in result.tensors.iter_mut().zip(states) {
        tensor.expect = Expected { param: f32s(state.p), exp_avg: f32s(state.m), exp_avg_sq: f32s(state.v) };
    }
    result
}

#[expect(clippy::cast_possible_truncation, reason = "the rounding is the purpose")]
fn f32s(values: Vec<f64>) -> Values {
    Values::F32(values.into_iter().map(|x| x as f32).collect())
}

fn config_of(trace: &Trace, tensor: usize, step: u64, mutant: Mutant) -> AdamWConfig {
    let step = match mutant {
        M::LrOfFirstStep => 1,
        M::LrOneStepLate => (step - 1).max(1),
        _ => step,
    };
    let group = if mutant == M::GroupsIgnored { 0 } else { trace.tensors[tensor].group };
    let mut config = trace.config.groups[group].at(step);
    match mutant {
        M::NoDecay => config.weight_decay = 0.0,
        M::DecayAsL2 => config.algorithm = Algorithm::Adam,
        M::L2AsDecay => config.algorithm = Algorithm::AdamW,
        M::AmsgradIgnored => config.amsgrad = false,
        M::MaximizeIgnored => config.maximize = false,
        M::BetasSwapped => config.betas = (config.betas.1, config.betas.0),
        M::BetasInF16 => {
            config.betas = (half::f16::from_f64(config.betas.0).to_f64(), half::f16::from_f64(config.betas.1).to_f64());
        }
        _ => {}
    }
    config
}

/// The gradient of a tensor and the coefficient that clips it.
fn gradient_of(trace: &Trace, tensor: usize, step: u64, mutant: Mutant) -> Option<(Vec<f64>, f64)> {
    let all = trace.gradients.get(&step);
    let own = all.and_then(|all| all.get(&tensor)).map(Values::to_f64);
    if mutant == M::MissingIsZero && own.is_none() {
        return Some((vec![0.0; trace.tensors[tensor].initial.len()], 1.0));
    }
    let own = own?;
    let squares = |g: &[f64]| g.iter().map(|g| g * g).sum::<f64>();
    let total: f64 = all?.values().map(|g| squares(&g.to_f64())).sum();
    let norm = if mutant == M::ClipPerTensor { squares(&own) } else { total }.sqrt();
    let limit = trace.config.max_grad_norm.filter(|_| mutant != M::ClipIgnored);
    Some((own, limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))))
}

impl State {
    fn new(p: Vec<f64>) -> Self {
        let zeros = vec![0.0; p.len()];
        Self { t: 0, p, m: zeros.clone(), v: zeros.clone(), vmax: zeros }
    }

    fn step(&mut self, config: &AdamWConfig, gradient: &[f64], clip: f64, mutant: Mutant) {
        self.t += 1;
        let clip_g = if mutant == M::ClipScalesTheUpdate { 1.0 } else { clip };
        #[expect(clippy::cast_precision_loss, reason = "a test's lengths are small")]
        let mean = gradient.iter().sum::<f64>() / gradient.len().max(1) as f64;
        for (i, g) in gradient.iter().enumerate() {
            let for_v = if mutant == M::SecondMomentOfMean { g - mean } else { *g };
            self.element(i, config, [g * clip_g, for_v * clip_g], clip / clip_g, mutant);
        }
    }

    fn element(&mut self, i: usize, config: &AdamWConfig, gradients: [f64; 2], scale: f64, mutant: Mutant) {
        let (b1, b2) = config.betas;
        let [g, for_v] = gradients.map(|g| with_l2(g, self.p[i], config, mutant));
        self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
        self.v[i] = b2 * self.v[i] + (1.0 - b2) * for_v * for_v;
        let (c1, c2) = corrections(config, self.t, mutant);
        let candidate = if mutant == M::AmsgradOfCorrected { self.v[i] / c2 } else { self.v[i] };
        self.vmax[i] = self.vmax[i].max(candidate);
        let q = match (config.amsgrad, mutant) {
            (true, M::AmsgradOfCorrected) => self.vmax[i] * c2,
            (true, _) => self.vmax[i],
            _ => self.v[i],
        };
        let m = if mutant == M::Nesterov { b1 * self.m[i] + (1.0 - b1) * g } else { self.m[i] };
        let change = scale * config.lr / c1 * m / denominator(q, c2, config.eps, mutant);
        self.p[i] = moved(self.p[i], change, config, mutant);
    }
}

fn with_l2(g: f64, p: f64, config: &AdamWConfig, mutant: Mutant) -> f64 {
    let sign = if config.maximize { -1.0 } else { 1.0 };
    let l2 = if config.algorithm == Algorithm::Adam { config.weight_decay * p } else { 0.0 };
    if mutant == M::L2BeforeMaximize { sign * (g + l2) } else { sign * g + l2 }
}

fn corrections(config: &AdamWConfig, t: i32, mutant: Mutant) -> (f64, f64) {
    let c1 = 1.0 - config.betas.0.powi(t);
    let c2 = 1.0 - config.betas.1.powi(t);
    match mutant {
        M::NoBiasCorrection1 => (1.0, c2),
        M::NoBiasCorrection2 => (c1, 1.0),
        M::BiasCorrection2OutsideRoot => (c1, c2 * c2),
        _ => (c1, c2),
    }
}

fn denominator(q: f64, c2: f64, eps: f64, mutant: Mutant) -> f64 {
    match mutant {
        M::EpsInsideRoot => (q / c2 + eps).sqrt(),
        M::EpsBeforeBiasCorrection => (q.sqrt() + eps) / c2.sqrt(),
        _ => q.sqrt() / c2.sqrt() + eps,
    }
}

fn moved(p: f64, change: f64, config: &AdamWConfig, mutant: Mutant) -> f64 {
    let decoupled = if config.algorithm == Algorithm::AdamW { config.weight_decay } else { 0.0 };
    match mutant {
        M::DecayNotTimesLr => p * (1.0 - decoupled) - change,
        M::DecayAfterTheUpdate => (p - change) * (1.0 - config.lr * decoupled),
        _ => p * (1.0 - config.lr * decoupled) - change,
    }
}
