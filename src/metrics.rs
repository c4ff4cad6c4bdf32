//! What has been measured of a step: from sums to norms, means and shares.

use crate::collect::add;
use crate::control::Status;
use crate::error::TensorId;
use crate::register::Tensor;
use crate::table::sums_flags::{MEASURED, STEPPED};
use crate::table::{ControlState, TensorSums};

/// What was measured in one step, read by [`AdamW::metrics`](crate::AdamW::metrics).
///
/// ```
/// use fused_adamw::{AdamW, AdamWConfig, Control, Device, TensorSpec};
/// let specs = [TensorSpec::new(2).named("weight"), TensorSpec::new(1).named("bias")];
/// let mut opt = AdamW::new(&Device::cpu(), AdamWConfig::default(), specs)?;
/// opt.set_control(Some(Control { metrics: true, ..Default::default() }))?;
/// let (mut weight, mut bias) = (vec![1.0_f32; 2], vec![0.0_f32]);
/// opt.step([(&mut weight, &vec![3.0_f32, 4.0]), (&mut bias, &vec![f32::NAN])])?;
/// let metrics = opt.metrics()?.unwrap();
/// assert_eq!(metrics.tensors[0].1.grad_norm, 5.0);
/// assert_eq!(metrics.worst().unwrap().0.to_string(), "tensor 1 (bias)");
/// # Ok::<(), fused_adamw::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// What the control had come to after this step; `applied + skipped` is the step's number, from 1.
    pub status: Status,
    /// Of all tensors that had a gradient.
    pub total: TensorMetrics,
    /// Of each tensor, in the registered order.
    pub tensors: Vec<(TensorId, TensorMetrics)>,
    /// Records of earlier steps that were not kept, since the control was set: those of four steps before were still on
    /// their way, or a record could not be made. 0 on the CPU.
    pub dropped: u64,
}

/// What was measured of one tensor, or of all together. Squares are summed in f32 in chunks of 8,192 elements, then in
/// f64, in an order that depends on lengths alone: absolute values above 1.8e19 count as infinite, below 1e-23 as 0. NaN
/// stands for every NaN. All is 0 where there is no gradient.
///
/// ```
/// assert_eq!(fused_adamw::TensorMetrics::default().elements, 0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TensorMetrics {
    /// How many were measured: the tensor's length, 0 without a gradient.
    pub elements: u64,
    /// Whether the step was applied to it, or of all, to any. Of a step that was skipped, the gradient's numbers tell why:
    /// the update is 0.
    pub stepped: bool,
    /// Norm of the gradient, unscaled, before clipping.
    pub grad_norm: f64,
    /// Norm of the parameter after the step; of its f32 master if it has 16 bits.
    pub param_norm: f64,
    /// Norm of what the step added to the parameter, weight decay and rounding included.
    pub update_norm: f64,
    /// `update_norm / param_norm`; 0 if the update is. About 1e-3 is usual.
    pub update_ratio: f64,
    /// The largest absolute value that was added to an element.
    pub max_update: f64,
    /// RMS_t, root of the mean of `(g / max(sqrt(v_hat), eps))^2`: g as the step used it (unscaled, clipped), v_hat the
    /// second moment that it divided by, bias-corrected, with this g in it. About 1 in a quiet run; above 2 or so, v has
    /// fallen behind (Wortsman et al. 2023). Of a step that was skipped, against v before it.
    pub rms: f64,
    /// Gradients that are NaN or infinite.
    pub non_finite: u64,
    /// Share of elements that are stored bit for bit as before, although the first moment or weight decay pulled at them:
    /// lost in rounding. Of a 16-bit parameter, the stored copy; its master may have moved.
    pub unmoved: f64,
    /// Share of elements with `sqrt(v_hat) < eps`, where eps and not the gradient's size decides.
    pub below_eps: f64,
}

/// What a step leaves behind, of either device.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) state: ControlState,
    pub(crate) sums: Vec<TensorSums>,
    pub(crate) dropped: u64,
}

impl Metrics {
    pub(crate) fn new(record: &Record, tensors: &[Tensor]) -> Self {
        let unscale = record.state.unscale;
        let len = |tensor: &Tensor, sums: &TensorSums| if sums.flags & MEASURED == 0 { 0 } else { tensor.len as u64 };
        let both = || tensors.iter().zip(&record.sums);
        let all = record.sums.iter().fold(TensorSums::default(), |all, sums| add(&all, sums));
        let elements = both().map(|(tensor, sums)| len(tensor, sums)).sum();
        let of =
            |(tensor, sums): (&Tensor, _)| (tensor.id.clone(), TensorMetrics::new(sums, len(tensor, sums), unscale));
        Self {
            status: record.state.into(),
            total: TensorMetrics::new(&all, elements, unscale),
            tensors: both().map(of).collect(),
            dropped: record.dropped,
        }
    }

    /// The tensor that is most likely to blame: with the most gradients that are not finite, if there are any; else with
    /// the largest `rms`, where the gradient is furthest above what it used to be. `None` if nothing was measured.
    #[must_use]
    pub fn worst(&self) -> Option<&(TensorId, TensorMetrics)> {
        let measured = self.tensors.iter().filter(|(_, tensor)| tensor.elements > 0);
        measured.max_by(|(_, a), (_, b)| a.non_finite.cmp(&b.non_finite).then(a.rms.total_cmp(&b.rms)))
    }
}

impl TensorMetrics {
    fn new(sums: &TensorSums, elements: u64, unscale: f64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "at most 2^40")]
        let share = |of: f64| if elements == 0 { 0.0 } else { of / elements as f64 };
        #[expect(clippy::cast_precision_loss, reason = "at most 2^40")]
        let count = |n: u64| share(n as f64);
        let (update, param) = (sums.update.sqrt(), sums.param.sqrt());
        Self {
            elements,
            stepped: sums.flags & STEPPED != 0,
            grad_norm: sums.grad.sqrt() * unscale,
            param_norm: param,
            update_norm: update,
            update_ratio: if update == 0.0 { 0.0 } else { update / param },
            max_update: f32::from_bits(sums.max_update).into(),
            rms: share(sums.ratio).sqrt(),
            non_finite: sums.non_finite,
            unmoved: count(sums.unmoved),
            below_eps: count(sums.below_eps),
        }
    }
}
