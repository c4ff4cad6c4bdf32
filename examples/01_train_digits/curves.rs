//! What is measured after every epoch, and its table.

use std::path::Path;

use anyhow::Result;

use crate::network::Score;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// How many epochs the network has trained for, from 1.
    pub(crate) epoch: u16,
    pub(crate) train: Score,
    pub(crate) test: Score,
}

pub(crate) fn save(points: &[Point], path: &Path) -> Result<()> {
    let mut table = csv::Writer::from_path(path)?;
    table.write_record(["epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy"])?;
    for Point { epoch, train, test } in points {
        table.serialize((epoch, train.loss, test.loss, train.accuracy, test.accuracy))?;
    }
    Ok(table.flush()?)
}
