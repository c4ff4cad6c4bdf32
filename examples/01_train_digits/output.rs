//! Output of the examples: lines, and files that are whole or not there.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// Prints a line. `println!` panics where standard output is closed or full.
pub(crate) fn say(line: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to standard output")
}

/// Writes a file by way of another beside it. After an error, such as a full disk, what was at `path` is there still.
pub(crate) fn save(path: &Path, content: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    let written = std::fs::write(&part, content).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // Where this fails too, the first error says more.
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
