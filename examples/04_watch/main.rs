//! 04: watches a training run, and says which tensor broke it. A NaN, a spike and a leap too small for the norm are planted
//! in the gradients of three named tensors; the device skips the steps, of the leap the one after it, the record names the
//! tensors, the picture shows the run.
//! Before: `03_replay`, which compares with PyTorch.
//!
//! The network is that of `01_train_digits`.

#[path = "../01_train_digits/axis.rs"]
#[allow(dead_code, reason = "nothing is a percentage here")]
mod axis;
mod chart;
#[path = "../01_train_digits/data.rs"]
#[allow(dead_code, reason = "nothing is tested here")]
mod data;
#[path = "../01_train_digits/network.rs"]
#[allow(dead_code, reason = "nothing is scored here")]
mod network;
#[path = "../01_train_digits/output.rs"]
mod output;
#[path = "../01_train_digits/parameters.rs"]
mod parameters;
#[path = "../01_train_digits/picture.rs"]
mod picture;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fused_adamw::{AdamW, AdamWConfig, Alarm, AlarmStatus, Control, Device, Metrics, NonFinite, TensorSpec};

use crate::{data::Digits, network::Network, output::say, parameters::Parameters};

const SEED: u64 = 0;
const STEPS: u64 = 400;
const BATCH: usize = 32;

/// In which step what is planted where: factors of every gradient of that tensor.
const PLANTED: [(u64, &str, f32); 3] =
    [(200, "layer 1 weight", f32::NAN), (300, "layer 2 bias", 1e3), (350, "layer 0 bias", 20.0)];

fn main() -> Result<()> {
    let device = Device::best();
    say(&device)?;
    let specs = network::tensor_lengths().into_iter().zip(names()).map(|(len, name)| TensorSpec::new(len).named(&name));
    let mut optimizer = AdamW::new(&device, AdamWConfig::default(), specs)?;
    optimizer.set_control(Some(Control {
        non_finite: NonFinite::SkipStep,
        norm_alarm: Some(Alarm { skip: true, ..Default::default() }),
        rms_alarm: Some(Alarm { skip: true, ..Default::default() }),
        ..Default::default()
    }))?;
    let records = train(&mut optimizer, &device)?;

    let mut blamed = Vec::new();
    for (step, name, news) in records.iter().filter_map(blame) {
        say(news)?;
        blamed.push((step, name));
    }
    let planted = PLANTED.map(|(step, name, _)| (step, name));
    ensure!(blamed == planted, "planted were {planted:?}, found {blamed:?}");
    draw(&records)
}

fn names() -> impl Iterator<Item = String> {
    (0..).map(|i| format!("layer {} {}", i / 2, ["weight", "bias"][i % 2]))
}

/// The record of every step.
fn train(optimizer: &mut AdamW, device: &Device) -> Result<Vec<Metrics>> {
    let (mut digits, mut network) = (Digits::load(SEED)?, Network::new());
    let mut parameters = Parameters::place(network::initial_tensors(SEED), device)?;
    let mut records = Vec::new();
    for step in 1..=STEPS {
        digits.shuffle_train();
        let mut gradients = network.gradients(parameters.host(), &digits.train[..BATCH]).to_vec();
        for (_, name, factor) in PLANTED.iter().filter(|(when, ..)| *when == step) {
            let spoil = |gradient: &mut Vec<f32>| gradient.iter_mut().for_each(|g| *g *= factor);
            gradients.iter_mut().zip(names()).filter(|(_, of)| of == name).for_each(|(gradient, _)| spoil(gradient));
        }
        parameters.step(optimizer, &gradients)?;
        // A real run would take what has arrived, of whichever step; this one has waited for its parameters.
        records.extend(optimizer.metrics()?);
    }
    Ok(records)
}

/// The step and the tensor, if something is wrong with them, and a line that says what.
fn blame(record: &Metrics) -> Option<(u64, &str, String)> {
    let (status, norm) = (record.status, record.total.grad_norm);
    let (worst, of) = record.worst()?;
    let step = status.applied + status.skipped;
    let usual = |alarm: AlarmStatus| format!("usual are {:.1} +- {:.1}", alarm.mean, alarm.sigma);
    let news = if of.non_finite > 0 {
        format!("step {step}: {} gradients are NaN or infinite: {worst}", of.non_finite)
    } else if status.norm_alarm.raised {
        format!("step {step}: ALARM, the gradients' norm is {norm:.1}, {}: {worst}", usual(status.norm_alarm))
    } else if let Some(index) = status.rms_tensor.filter(|_| status.rms_alarm.raised) {
        let (tensor, step) = (&record.tensors[index].0, step - 1);
        let news = format!("step {step}: ALARM, RMS_t was {:.1}, {}: {tensor}", status.rms, usual(status.rms_alarm));
        return Some((step, tensor.name.as_deref()?, news));
    } else {
        return None;
    };
    Some((step, worst.name.as_deref()?, news))
}

fn draw(records: &[Metrics]) -> Result<()> {
    let folder = Path::new("target").join("watch");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let picture = folder.join("metrics.png");
    chart::draw(records, &picture)?;
    say(picture.display())
}
