//! Captures of steps into CUDA graphs, and the remedy for each call that cannot be captured.

use super::AdamW;
use crate::error::{Error, Result};

pub(super) const MAKE_BEFORE: &str = "make the optimizer before the capture";
pub(super) const SET_BEFORE: &str = "set it before the capture or between replays, each of which reads it";
pub(super) const CONTROL_BEFORE: &str = "set the control before the capture";
pub(super) const RELOAD_BEFORE: &str = "reload masters before the capture, or between replays";
pub(super) const ACCUMULATE_BEFORE: &str =
    "before the capture call accumulate and step_accumulated once as in it, with the same tensors";

impl AdamW {
    /// Lets steps be captured into CUDA graphs. While the device's stream is being captured, a step is recorded and not
    /// executed. Every replay of the graph is then one step. A replay reads from the device all that changes from step to
    /// step: step counts, learning rates, schedule, norm, loss scale, and the decision to skip. Constants of the graph are
    /// [`StepOptions`](crate::StepOptions), addresses, and which tensors have gradients.
    ///
    /// A capture takes a control ([`Control::default`](crate::Control) will do), one step before with the same tensors, and
    /// cudarc's event tracking off. With any stream of one's own cudarc waits for events, which breaks a capture; the
    /// default stream cannot be captured at all.
    ///
    /// Calls that wait for the device are refused in a capture: [`AdamW::state`], [`AdamW::status`], [`AdamW::poll`],
    /// [`AdamW::metrics`]. Calls that copy to the device are refused, too: set hyper-parameters before the capture or
    /// between replays, each of which reads them. [`AdamW::accumulate`] can be captured like a step, after the same calls
    /// without a capture; eager calls and replays share the sums. After an eager step that has failed, make another
    /// one before the next replay.
    ///
    /// ```no_run
    #[doc = include_str!("capture_example.rs")]
    /// ```
    ///
    /// # Safety
    /// The promise covers the time from each captured step or `accumulate` to the end of the last replay of its graph:
    /// - This optimizer lives. Parameters and gradients stay where they are. Nobody borrows them mutably. Others write to
    ///   them and read from them only in order with the replays.
    /// - The caller does not call [`AdamW::set_control`], and makes no step with other tensors, or with gradients for other
    ///   tensors.
    /// - The graph is launched on this device's stream, or in order with that stream.
    ///
    /// [`AdamW::reload_masters`] and its like read the parameters of a captured step at once. The caller keeps these
    /// parameters until then, or makes a step with other tensors first.
    ///
    /// The optimizer keeps everything else that graphs read: its own tables, and each multiplier of
    /// [`AdamW::scale_grads_by`] with which a step was captured. [`AdamW::set_control`] and the drop of the optimizer free
    /// the memory. An optimizer dropped in a capture of its stream keeps its memory until the next one is made or dropped
    /// after the capture.
    #[cfg(feature = "cuda")]
    pub unsafe fn allow_capture(&mut self) {
        self.may_be_captured = true;
    }

    /// True if the stream is being captured. Refuses a capture that was not allowed, or that lacks something.
    pub(super) fn check_capture(&self) -> Result<bool> {
        self.device.check_capture(self.may_be_captured, self.control.is_some())
    }
}

impl Error {
    /// Gives [`Error::Capturing`] another remedy; keeps all other errors.
    pub(super) fn in_capture(self, instead: &'static str) -> Self {
        match self {
            #[cfg(feature = "cuda")]
            Self::Capturing { doing, .. } => Self::Capturing { doing, remedy: instead },
            other => {
                let _ = instead; // without `cuda` there are no captures
                other
            }
        }
    }
}
