//! A bar for people, lines for logs.

use std::io::{IsTerminal, Write, stderr};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{curves::Point, output::say};

const BAR: &str = "{bar:20.cyan/blue} {pos}/{len}  {msg}  {elapsed}";
const MOST_LINES: u16 = 20;

#[derive(Debug)]
pub(crate) struct Progress {
    /// Drawn on stderr, so that stdout can be piped; absent where nobody watches.
    bar: Option<ProgressBar>,
    epochs: u16,
}

impl Progress {
    pub(crate) fn start(epochs: u16) -> Self {
        let style = ProgressStyle::with_template(BAR).expect("the template is a constant");
        let bar = || ProgressBar::new(epochs.into()).with_style(style);
        Self { bar: stderr().is_terminal().then(bar), epochs }
    }

    pub(crate) fn show(&self, point: &Point) -> Result<()> {
        let Point { epoch, train, test } = point;
        let news = format!("train loss {:.4}  test accuracy {:.1}%", train.loss, test.accuracy);
        match &self.bar {
            Some(bar) => {
                bar.set_message(news);
                bar.inc(1);
            }
            None if self.has_line(*epoch) => say(format_args!("epoch {epoch:>3}/{}  {news}", self.epochs))?,
            None => {}
        }
        Ok(())
    }

    fn has_line(&self, epoch: u16) -> bool {
        epoch == self.epochs || epoch.is_multiple_of(self.epochs.div_ceil(MOST_LINES))
    }

    /// The bar stays where it ended; indicatif leaves the cursor behind it.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
            let _ = writeln!(stderr());
        }
    }
}
