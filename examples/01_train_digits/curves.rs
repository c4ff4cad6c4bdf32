//! What is measured after every epoch, and its table.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use crate::{network::Score, output};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// How many epochs the network has trained for, from 1.
    pub(crate) epoch: u16,
    pub(crate) train: Score,
    pub(crate) test: Score,
}

pub(crate) fn save(points: &[Point], path: &Path) -> Result<()> {
    let mut table = "epoch,train_loss,test_loss,train_accuracy,test_accuracy\n".to_owned();
    for Point { epoch, train, test } in points {
        writeln!(table, "{epoch},{},{},{},{}", train.loss, test.loss, train.accuracy, test.accuracy)?;
    }
    output::save(path, table.as_bytes())
}
