//! A controlled step on the CPU, and the tables that it has on any device: norm, decision, scalars for the update.
//! Beside it on a GPU: `cuda_control.rs`, `cuda/finalize.cuh`.

use crate::classes::Classes;
use crate::collect::{collect, firsts};
use crate::config::AdamWConfig;
use crate::control::Control;
use crate::decide::{NO_PEAK, decide, is_bad_sum, larger, peak_of, unscale_of};
use crate::metrics::Record;
use crate::norm;
use crate::plan::Plan;
use crate::rounding::mul_rn64;
use crate::scalars::step_scalars;
use crate::simd::Simd;
use crate::table::step_flags::SKIP;
use crate::table::{
    Chunk, Class, ControlState, FullParams, Gradients, Hyper, Peak, Squares, StepScalars, Sums, TensorRow,
    control_flags, full_flags,
};
use crate::{cpu, full};

/// What is to be counted where: the same for both devices.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Chunks of the norm, and of an update that is more than the plain one; none if neither is asked for.
    pub(crate) chunks: Vec<Chunk>,
    /// Whether the norm is asked for.
    pub(crate) norm: bool,
    /// What an update is to do beside the plain one.
    pub(crate) full: Option<FullParams>,
    /// Of each tensor, in `chunks`.
    pub(crate) firsts: Vec<u32>,
    /// Of each tensor, if RMS_t is watched.
    pub(crate) lens: Vec<u64>,
    pub(crate) hypers: Vec<Hyper>,
    pub(crate) state: ControlState,
    pub(crate) counts: Vec<u64>,
}

impl Tables {
    /// `before` is what a control before this one has come to.
    pub(crate) fn new(
        control: &Control,
        lens: Vec<u64>,
        groups: &[AdamWConfig],
        counts: Vec<u64>,
        before: Option<(&Control, ControlState)>,
    ) -> Self {
        let (norm, full, tensors) = (control.needs_norm(), control.full(), lens.len());
        let watched = if control.rms_alarm.is_some() { lens.clone() } else { Vec::new() };
        let plan = Plan::new(lens, norm::NORM_CHUNK_LEN);
        let chunks: Vec<Chunk> = if norm || full.is_some() { plan.chunks().collect() } else { Vec::new() };
        Self {
            norm,
            full,
            firsts: firsts(&chunks, tensors),
            chunks,
            lens: watched,
            hypers: groups.iter().map(AdamWConfig::hyper).collect(),
            state: control.first_state(before),
            counts,
        }
    }
}

/// The tables in host memory.
#[derive(Debug)]
pub(crate) struct HostControl {
    tables: Tables,
    classes: Vec<Class>,
    squares: Vec<Squares>,
    /// With `SKIP_TENSOR`, of each tensor.
    bad_tensors: Vec<bool>,
    scalars: Vec<StepScalars>,
    sums: Vec<Sums>,
    record: Option<Record>,
}

impl HostControl {
    pub(crate) fn new(tables: Tables) -> Self {
        let chunks = tables.chunks.len();
        let squares = vec![Squares::default(); if tables.norm { chunks } else { 0 }];
        let sums = vec![Sums::default(); if tables.full.is_some() { chunks } else { 0 }];
        Self { tables, classes: Vec::new(), squares, bad_tensors: Vec::new(), scalars: Vec::new(), sums, record: None }
    }

    pub(crate) fn set_hypers(&mut self, hypers: Vec<Hyper>) {
        self.tables.hypers = hypers;
    }

    pub(crate) fn set_hyper(&mut self, group: usize, hyper: Hyper) {
        self.tables.hypers[group] = hyper;
    }

    pub(crate) fn state(&self) -> ControlState {
        self.tables.state
    }

    pub(crate) fn counts(&self) -> Vec<u64> {
        self.tables.counts.clone()
    }

    pub(crate) fn count(&self, class: usize) -> u64 {
        self.tables.counts[class]
    }

    pub(crate) fn record(&self) -> Option<Record> {
        self.record.clone()
    }

    pub(crate) fn set_classes(&mut self, classes: &Classes, split: &[(u32, u32)]) {
        split.iter().for_each(|&(old, _new)| self.tables.counts.push(self.tables.counts[old as usize]));
        self.classes.clone_from(&classes.list);
    }

    /// Norm, decision, update; and what was measured.
    ///
    /// # Safety
    /// As for [`full::run`], with gradients among what is written if the control zeroes them; but for the scalars.
    pub(crate) unsafe fn step(
        &mut self,
        simd: Simd,
        chunks: &[Chunk],
        control: &Control,
        grad_scale: f64,
        rows: &[TensorRow],
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.prepare(simd, control, grad_scale, rows) };
        let Self { tables, scalars, sums, .. } = self;
        let Some(f) = tables.full else {
            // SAFETY: the caller's promise; there are scalars for every class.
            return unsafe { cpu::run(simd, chunks, rows, scalars) };
        };
        // SAFETY: the caller's promise; scalars for every class, and as many sums as chunks.
        unsafe { full::run(simd, &tables.chunks, rows, scalars, &f, sums) };
        if f.flags & full_flags::METRICS != 0 {
            let mut last = self.record.take().map_or_else(Vec::new, |record| record.sums); // its memory
            last.clear();
            last.extend(collect(rows, scalars, &tables.firsts, sums));
            self.record = Some(Record { state: tables.state, sums: last, dropped: 0 });
        }
    }

    /// The scalars of the step.
    ///
    /// # Safety
    /// As for [`crate::cpu::run`], for the gradients alone.
    unsafe fn prepare(&mut self, simd: Simd, control: &Control, grad_scale: f64, rows: &[TensorRow]) {
        let peak = self.last_peak();
        let chunks = if self.tables.norm { &self.tables.chunks[..] } else { &[] };
        // SAFETY: the caller's promise; as many squares as chunks.
        unsafe { norm::of_chunks(simd, chunks, rows, &mut self.squares) };
        let (params, state) = (control.params(0), &self.tables.state);
        let unscale = unscale_of(grad_scale, state.loss_scale);
        let listed = control.schedule.listed(state.applied);
        let gradients = match params.flags & control_flags::SKIP_TENSOR {
            0 => self.gradients(unscale),
            _ => self.gradients_by_tensor(unscale, rows),
        };
        decide(&params, &gradients, &peak, listed, unscale, &mut self.tables.state);
        self.scalars.resize(self.classes.len(), StepScalars::default());
        (0..self.classes.len()).for_each(|i| self.advance(i, self.classes[i]));
    }

    fn gradients(&self, unscale: f64) -> Gradients {
        let bad = !self.squares.is_empty() && is_bad_sum(norm::largest(&self.squares), unscale);
        let squares = norm::total(&self.squares, |_| true);
        Gradients { squares, non_finite: self.non_finite(), bad: bad.into(), good: 0 }
    }

    /// Finds the tensors that are to be left out, and leaves them out.
    fn gradients_by_tensor(&mut self, unscale: f64, rows: &[TensorRow]) -> Gradients {
        let Self { tables, squares, bad_tensors, .. } = self;
        let of_tensor = |ends: &[u32]| squares.get(ends[0] as usize..ends[1] as usize).unwrap_or_default();
        let is_bad = |ends| !squares.is_empty() && is_bad_sum(norm::largest(of_tensor(ends)), unscale);
        bad_tensors.clear();
        bad_tensors.extend(tables.firsts.windows(2).map(is_bad));
        let tensor = |i: usize| tables.chunks[i].tensor as usize;
        let good = (0..squares.len()).any(|i| rows[tensor(i)].has_grad() && !bad_tensors[tensor(i)]);
        let sum = norm::total(squares, |i| !bad_tensors[tensor(i)]);
        let bad = bad_tensors.contains(&true);
        Gradients { squares: sum, non_finite: self.non_finite(), bad: bad.into(), good: good.into() }
    }

    fn non_finite(&self) -> u64 {
        self.squares.iter().map(|squares| u64::from(squares.non_finite)).sum()
    }

    /// The largest RMS_t of a tensor in the last step.
    fn last_peak(&self) -> Peak {
        let sums = self.record.iter().flat_map(|record| &record.sums);
        let peaks = sums.zip(&self.tables.lens).zip(0..).map(|((sums, &len), i)| peak_of(sums, len, i));
        peaks.fold(NO_PEAK, |a, b| larger(&a, &b))
    }

    /// The step count and the scalars of one class.
    fn advance(&mut self, i: usize, of: Class) {
        let Tables { hypers, state, counts, .. } = &mut self.tables;
        let is_bad = self.bad_tensors.get(i).is_some_and(|&bad| bad);
        let steps = of.has_grad != 0 && state.skip == 0 && !is_bad;
        counts[i] += u64::from(steps);
        let h = hypers[of.group as usize];
        let h = Hyper { lr: mul_rn64(h.lr, state.lr_factor), ..h };
        // Of a skipped step, too: it may be measured.
        self.scalars[i] = step_scalars(&h, counts[i].max(1), state.grad_scale);
        self.scalars[i].flags |= if steps { 0 } else { SKIP };
    }
}
