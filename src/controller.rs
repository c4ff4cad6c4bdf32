//! A controlled step on the CPU, and the tables that it has on any device: norm, decision, scalars for the update.
//! Beside it on a GPU: `cuda_control.rs`, `cuda/finalize.cuh`.

use crate::classes::Classes;
use crate::config::AdamWConfig;
use crate::control::Control;
use crate::decide::decide;
use crate::norm;
use crate::plan::Plan;
use crate::rounding::mul_rn64;
use crate::scalars::step_scalars;
use crate::simd::Simd;
use crate::table::step_flags::SKIP;
use crate::table::{Chunk, Class, ControlState, Hyper, Squares, StepScalars, TensorRow, control_flags};

/// What is to be counted where: the same for both devices.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Chunks of the norm; none if it is not asked for.
    pub(crate) chunks: Vec<Chunk>,
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
        let plan = Plan::new(lens, norm::NORM_CHUNK_LEN);
        Self {
            chunks: if control.needs_norm() { plan.chunks().collect() } else { Vec::new() },
            hypers: groups.iter().map(AdamWConfig::hyper).collect(),
            state: control.first_state(before),
            counts,
        }
    }
}

/// A step with a control.
#[derive(Debug)]
pub(crate) struct Controlled {
    pub(crate) control: Control,
    pub(crate) classes: Classes,
    /// Of the classes, those that are new in this step: `(old, new)`.
    pub(crate) split: Vec<(u32, u32)>,
    pub(crate) grad_scale: f64,
}

/// The tables in host memory.
#[derive(Debug)]
pub(crate) struct HostControl {
    tables: Tables,
    squares: Vec<Squares>,
    bad_tensors: Vec<u32>,
    pub(crate) scalars: Vec<StepScalars>,
}

impl HostControl {
    pub(crate) fn new(tables: Tables) -> Self {
        let squares = vec![Squares::default(); tables.chunks.len()];
        Self { tables, squares, bad_tensors: Vec::new(), scalars: Vec::new() }
    }

    pub(crate) fn set_hypers(&mut self, hypers: Vec<Hyper>) {
        self.tables.hypers = hypers;
    }

    pub(crate) fn state(&self) -> ControlState {
        self.tables.state
    }

    pub(crate) fn counts(&self) -> Vec<u64> {
        self.tables.counts.clone()
    }

    /// The scalars of the step, for [`crate::cpu::run`].
    ///
    /// # Safety
    /// As for [`crate::cpu::run`], for the gradients alone.
    pub(crate) unsafe fn prepare(&mut self, simd: Simd, step: &Controlled, rows: &[TensorRow]) {
        let Self { tables, squares, bad_tensors, .. } = self;
        let Controlled { control, classes, split, grad_scale } = step;
        // Classes that were split begin with the counts of those they were part of.
        split.iter().for_each(|&(old, _new)| tables.counts.push(tables.counts[old as usize]));
        // SAFETY: the caller's promise; as many squares as chunks.
        unsafe { norm::of_chunks(simd, &tables.chunks, rows, squares) };
        let params = control.params(0);
        if params.flags & control_flags::SKIP_TENSOR != 0 {
            mark_bad_tensors(bad_tensors, classes.list.len(), &tables.chunks, squares);
        }
        let sum = norm::total(squares, &tables.chunks, bad_tensors);
        let non_finite = squares.iter().map(|squares| u64::from(squares.non_finite)).sum();
        let listed = control.schedule.listed(tables.state.applied);
        decide(&params, sum, non_finite, listed, *grad_scale, &mut tables.state);
        self.scalars.resize(classes.list.len(), StepScalars::default());
        (0..classes.list.len()).for_each(|i| self.advance(i, classes.list[i]));
    }

    /// The step count and the scalars of one class.
    fn advance(&mut self, i: usize, of: Class) {
        let Tables { hypers, state, counts, .. } = &mut self.tables;
        let is_bad = self.bad_tensors.get(i).is_some_and(|&bad| bad != 0);
        if of.has_grad == 0 || state.skip != 0 || is_bad {
            self.scalars[i].flags = SKIP;
            return;
        }
        counts[i] += 1;
        let h = hypers[of.group as usize];
        self.scalars[i] =
            step_scalars(&Hyper { lr: mul_rn64(h.lr, state.lr_factor), ..h }, counts[i], state.grad_scale);
    }
}

fn mark_bad_tensors(bad: &mut Vec<u32>, tensors: usize, chunks: &[Chunk], squares: &[Squares]) {
    bad.clear();
    bad.resize(tensors, 0);
    let found = chunks.iter().zip(squares).filter(|(_, squares)| squares.non_finite > 0);
    found.for_each(|(chunk, _)| bad[chunk.tensor as usize] = 1);
}
