//! The parts of a run, and the rows in their logs, become `report.json`, `report.md` and `logs.txt`.
//!
//! `FOLDER/work` is as `scripts/gpu-bundle-run` leaves it: `run.txt` says what ran, `parts.tsv` has a line for each
//! part (name, status, seconds, note), and `NAME.log` what the part has printed. A part that is missing, cut short or
//! broken costs its own rows and no more.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::rows::{Copied, Facts, Failed, OURS, PEERS, Peer, Row, Step, Varied};
use crate::table;

/// Of a log no more than this is kept, from its end.
const LOG_BYTES: usize = 512 << 10;
const TAIL_LINES: usize = 25;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// `key: value` lines: the bundle's origin, when it ran.
    pub(crate) run: Vec<String>,
    pub(crate) facts: Option<Facts>,
    pub(crate) peer: Option<Peer>,
    pub(crate) parts: Vec<Part>,
    pub(crate) copies: Vec<Copied>,
    pub(crate) lists: Vec<Compared>,
    pub(crate) varied: Vec<Varied>,
    pub(crate) failed_lists: Vec<Failed>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// `ok`, `failed` or `skipped`.
    pub(crate) status: String,
    pub(crate) seconds: f64,
    pub(crate) note: String,
    /// The last lines that it printed.
    pub(crate) tail: Vec<String>,
    #[serde(skip)]
    log: String,
}

/// One list in one dtype, by all.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// Before the peer and after it.
    pub(crate) ours: Vec<Step>,
    /// Of the bandwidth of the fastest copy; the mean of ours.
    pub(crate) share_of_copy: Option<f64>,
    /// In the order of [`PEERS`]; each with its median over the mean of ours.
    pub(crate) peers: Vec<(Step, Option<f64>)>,
}

pub(crate) fn write(folder: &Path) -> Result<()> {
    let report = Report::read(&folder.join("work"))?;
    let log = |part: &Part| format!("==== {}: {} {}\n{}\n", part.name, part.status, part.note, part.log);
    fs::write(folder.join("logs.txt"), report.parts.iter().map(log).collect::<String>())?;
    fs::write(folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    Ok(fs::write(folder.join("report.md"), table::markdown(&report))?)
}

impl Report {
    fn read(work: &Path) -> Result<Self> {
        let parts = fs::read_to_string(work.join("parts.tsv")).context("no parts.tsv: has nothing run?")?;
        let parts: Vec<_> = parts.lines().filter_map(|line| Part::read(work, line)).collect();
        let run = fs::read_to_string(work.join("run.txt")).unwrap_or_default();
        let mut report = Self {
            run: run.lines().map(Into::into).collect(),
            facts: None,
            peer: None,
            parts,
            copies: Vec::new(),
            lists: Vec::new(),
            varied: Vec::new(),
            failed_lists: Vec::new(),
        };
        let rows: Vec<Row> = report.parts.iter().flat_map(Part::rows).collect();
        report.sort(rows);
        Ok(report)
    }

    fn sort(&mut self, rows: Vec<Row>) {
        let mut steps = Vec::new();
        for row in rows {
            match row {
                Row::Facts(facts) => self.facts = Some(facts),
                Row::Peer(peer) => self.peer = Some(peer),
                Row::Copy(copy) => self.copies.push(copy),
                Row::Step(step) => steps.push(step),
                Row::Varied(varied) => self.varied.push(varied),
                Row::Failed(failed) => self.failed_lists.push(failed),
            }
        }
        let copy = self.copies.iter().map(Copied::gb_per_s).reduce(f64::max);
        self.lists = compare(steps, copy);
    }
}

impl Part {
    fn read(work: &Path, line: &str) -> Option<Self> {
        let [name, status, seconds, note] = line.split('\t').collect::<Vec<_>>().try_into().ok()?;
        let log = fs::read(work.join(format!("{name}.log"))).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_BYTES)..]).into_owned();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|&line| line.into()).collect();
        let seconds = seconds.parse().ok()?;
        Some(Self { name: name.into(), status: status.into(), seconds, note: note.into(), tail, log })
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        self.log.lines().filter_map(|line| serde_json::from_str(line).ok())
    }
}

/// Each list in the order in which it came first.
fn compare(mut steps: Vec<Step>, copy_gb_per_s: Option<f64>) -> Vec<Compared> {
    let mut compared = Vec::new();
    while let Some(first) = steps.first() {
        let (list, dtype) = (first.list.clone(), first.dtype.clone());
        let same = steps.extract_if(.., |step| step.list == list && step.dtype == dtype).collect();
        compared.push(Compared::new(same, copy_gb_per_s));
    }
    compared
}

impl Compared {
    fn new(steps: Vec<Step>, copy_gb_per_s: Option<f64>) -> Self {
        let by = |by: &str| steps.iter().find(|step| step.by == by).cloned();
        let ours: Vec<_> = steps.iter().filter(|step| step.by == OURS).cloned().collect();
        let our_ms = mean(ours.iter().map(|step| step.ms.median));
        let ratio = |peer: &Step| our_ms.map(|ours| peer.ms.median / ours);
        let peers = PEERS.into_iter().filter_map(by).map(|peer| (peer.clone(), ratio(&peer))).collect();
        let share_of_copy = mean(ours.iter().map(Step::gb_per_s)).zip(copy_gb_per_s).map(|(step, copy)| step / copy);
        Self { ours, share_of_copy, peers }
    }

    /// Whoever has stepped it.
    pub(crate) fn any(&self) -> Option<&Step> {
        self.ours.first().or(self.peers.first().map(|(peer, _)| peer))
    }
}

/// Of few values; `None` of none.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}
