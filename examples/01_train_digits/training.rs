//! The training loop.

use std::f64::consts::PI;

use anyhow::{Result, ensure};
use fused_adamw::AdamW;

use crate::{cli::Cli, curves::Point, data::Digits, network::Network, parameters::Parameters, progress::Progress};

pub(crate) fn train(
    cli: &Cli,
    mut digits: Digits,
    parameters: &mut Parameters,
    optimizer: &mut AdamW,
    progress: &Progress,
) -> Result<Vec<Point>> {
    let (mut network, mut points) = (Network::new(), Vec::new());
    for epoch in 0..cli.epochs {
        optimizer.set_lr(cosine(cli.lr, epoch, cli.epochs))?;
        digits.shuffle_train();
        for batch in digits.train.chunks(cli.batch.into()) {
            let gradients = network.gradients(parameters.host(), batch);
            parameters.step(optimizer, gradients)?;
        }
        let point = measure(&mut network, parameters, &digits, epoch + 1)?;
        progress.show(&point)?;
        points.push(point);
    }
    progress.finish();
    Ok(points)
}

fn cosine(lr: f64, epoch: u16, epochs: u16) -> f64 {
    lr * 0.5 * (1.0 + (PI * f64::from(epoch) / f64::from(epochs)).cos())
}

fn measure(network: &mut Network, parameters: &Parameters, digits: &Digits, epoch: u16) -> Result<Point> {
    let train = network.score(parameters.host(), &digits.train);
    let test = network.score(parameters.host(), &digits.test);
    let finite = train.loss.is_finite() && test.loss.is_finite();
    ensure!(finite, "the loss is no longer finite after epoch {epoch}: try a smaller --lr");
    Ok(Point { epoch, train, test })
}
