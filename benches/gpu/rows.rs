//! What is measured, a line of JSON each. `benches/peers/torch_adamw.py` writes the same lines.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::suite::List;
use crate::variants::Variant;

/// We, in a row.
pub(crate) const OURS: &str = "fused-adamw";
/// The peers, as they call themselves.
pub(crate) const PEERS: [&str; 3] = ["PyTorch fused", "PyTorch fused, f32 masters", "PyTorch foreach"];

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "row", rename_all = "snake_case")]
pub(crate) enum Row {
    Facts(Facts),
    Peer(Peer),
    Copy(Copied),
    Step(Step),
    Varied(Varied),
    Failed(Failed),
}

impl Row {
    fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// The machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) compute_capability: String,
    pub(crate) multiprocessors: i32,
    pub(crate) total_bytes: usize,
    pub(crate) free_bytes: usize,
    /// The newest CUDA that the driver knows.
    pub(crate) driver_cuda: String,
    /// As the crate says it: with the origin of its kernels.
    pub(crate) device: String,
}

impl Facts {
    pub(crate) fn print(self) -> Result<()> {
        Row::Facts(self).print()
    }
}

/// Whom we are compared with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) version: String,
}

/// A copy from device memory to device memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Copied {
    /// Read, and as many written.
    pub(crate) bytes: usize,
    pub(crate) repeats: usize,
    pub(crate) ms: Quantiles,
}

impl Copied {
    pub(crate) fn print(self) -> Result<()> {
        Row::Copy(self).print()
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]
    pub(crate) fn gb_per_s(&self) -> f64 {
        2.0 * self.bytes as f64 / self.ms.median / 1e6
    }
}

/// A step of one list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) by: String,
    pub(crate) list: String,
    pub(crate) dtype: String,
    pub(crate) tensors: usize,
    pub(crate) elements: usize,
    /// Of the whole list, where that did not fit into the memory.
    pub(crate) of_tensors: usize,
    pub(crate) of_elements: usize,
    /// What a step has to read and to write.
    pub(crate) bytes_an_element: usize,
    pub(crate) repeats: usize,
    pub(crate) ms: Quantiles,
    /// The caller's time; nothing is waited for.
    pub(crate) host_us: Quantiles,
}

impl Step {
    pub(crate) fn print(self) -> Result<()> {
        Row::Step(self).print()
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]
    pub(crate) fn gb_per_s(&self) -> f64 {
        (self.bytes_an_element * self.elements) as f64 / self.ms.median / 1e6
    }
}

/// A step of one list by a variant of the kernels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Varied {
    pub(crate) variant: String,
    pub(crate) list: String,
    pub(crate) dtype: String,
    /// What a step has to read and to write.
    pub(crate) bytes: usize,
    pub(crate) ms: Quantiles,
    /// The time over that of the crate's own, as it was expected to be.
    pub(crate) predicted: String,
    pub(crate) why: String,
}

impl Varied {
    pub(crate) fn new(variant: &Variant, list: &List, ms: Quantiles) -> Self {
        let [large, short] = variant.predicted;
        Self {
            variant: variant.name.into(),
            list: list.name.clone(),
            dtype: list.dtype.clone(),
            bytes: list.bytes_an_element() * list.lengths.iter().sum::<usize>(),
            ms,
            predicted: if list.of_tensors == 10_000 { short } else { large }.into(),
            why: variant.why.into(),
        }
    }

    pub(crate) fn print(self) -> Result<()> {
        Row::Varied(self).print()
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]
    pub(crate) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.ms.median / 1e6
    }
}

/// A list that could not be stepped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) by: String,
    pub(crate) list: String,
    pub(crate) dtype: String,
    pub(crate) why: String,
}

impl Failed {
    pub(crate) fn new(list: &List, why: &anyhow::Error) -> Self {
        let List { name, dtype, .. } = list.clone();
        Self { by: OURS.into(), list: name, dtype, why: format!("{why:#}") }
    }

    pub(crate) fn print(self) -> Result<()> {
        Row::Failed(self).print()
    }
}

/// Of repeated measurements.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Quantiles {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |tenths: usize| values[(values.len() - 1) * tenths / 10];
        Self { p10: at(1), median: at(5), p90: at(9) }
    }
}
