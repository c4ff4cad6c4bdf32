//! A list in memory.

use crate::cases::{Case, Extra};
use crate::limit::{self, Part, Value, Walk};
use fused_adamw::AdamW;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::time::Instant;

/// A step takes its gradients from one of so many places, each [`State::ALIGN`] after the last. Were they always the
/// same, `v` would come to within bits of their squares, and many a difference from these would be a tie, which costs
/// the portable code twice (`src/fma.rs`).
const PLACES: usize = 4;

/// Parameters and gradients, with their optimizer, and with state of the limit's own.
pub(crate) struct Tensors<P, G> {
    opt: AdamW,
    params: Vec<Vec<P>>,
    grads: Vec<Vec<G>>,
    state: State,
    extra: Extra,
    steps: usize,
}

/// What is timed, whatever the types.
pub(crate) trait Timed: Send {
    fn step(&mut self);
    /// Seconds of that many steps.
    fn steps(&mut self, repeats: usize) -> f64;
    /// Seconds of as many read-modify-writes.
    fn limits(&mut self, walk: Walk, repeats: usize) -> f64;
    /// Seconds of a division and a square root, an element, by one thread.
    fn roots(&mut self, repeats: usize) -> f64;
}

impl<P: Value, G: Value> Tensors<P, G> {
    /// After a first step, which touches the state's memory and reads masters.
    pub(crate) fn new(opt: AdamW, case: &Case) -> Self {
        let sections = 2 + usize::from(size_of::<P>() < 4) + usize::from(case.extra == Extra::Amsgrad);
        let longer: Vec<usize> = case.lens.iter().map(|len| len + State::ALIGN * (PLACES - 1)).collect();
        let mut tensors = Self {
            opt,
            params: filled(&case.lens, 1.0),
            grads: filled(&longer, 1e-2),
            state: State::new(&case.lens, sections),
            extra: case.extra,
            steps: 0,
        };
        tensors.step();
        tensors
    }

    fn parts(&mut self, walk: Walk) -> Vec<Part<'_, P, G>> {
        let tensors = pairs(&mut self.params, &mut self.grads, 0).zip(self.state.tensors());
        tensors.flat_map(|((p, g), state)| Part::cut(p, g, state, walk)).collect()
    }
}

impl<P: Value, G: Value> Timed for Tensors<P, G> {
    fn step(&mut self) {
        let start = State::ALIGN * (self.steps % PLACES);
        let pairs = pairs(&mut self.params, &mut self.grads, start);
        self.opt.step(pairs).expect("the list is the registered one");
        self.steps += 1;
    }

    fn steps(&mut self, repeats: usize) -> f64 {
        seconds(|| (0..repeats).for_each(|_| self.step()))
    }

    fn limits(&mut self, walk: Walk, repeats: usize) -> f64 {
        let extra = self.extra;
        let mut parts = limit::ordered(self.parts(walk), walk);
        seconds(|| (0..repeats).for_each(|_| limit::read_modify_write(&mut parts, extra)))
    }

    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^53")]
    fn roots(&mut self, repeats: usize) -> f64 {
        let (mut parts, mut elements) = (self.parts(Walk::Plain), 0);
        seconds(|| elements = limit::divide_and_root(&mut parts, repeats)) / elements as f64
    }
}

/// Each parameter with as much of its gradients, from `start`.
fn pairs<'a, P, G>(
    params: &'a mut [Vec<P>],
    grads: &'a mut [Vec<G>],
    start: usize,
) -> impl Iterator<Item = (&'a mut [P], &'a mut [G])> {
    params.iter_mut().zip(grads).map(move |(p, g)| {
        let g = &mut g[start..][..p.len()];
        (&mut p[..], g)
    })
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "values below 1,013")]
fn filled<T: Value>(lens: &[usize], scale: f32) -> Vec<Vec<T>> {
    let value = |i: usize| T::of(scale * ((i % 1013) as f32 / 1013.0 - 0.4));
    let pattern: Vec<T> = (0..1013).map(value).collect();
    let tensor = |&len: &usize| pattern.iter().copied().cycle().take(len).collect();
    lens.iter().map(tensor).collect()
}

/// m, v, and what else there is, in one allocation of sections, as the optimizer has it (`src/arena.rs`).
struct State {
    memory: Vec<f32>,
    section: usize,
    lens: Vec<usize>,
}

impl State {
    /// Tensors begin at a multiple of so many elements.
    const ALIGN: usize = 16;

    fn new(lens: &[usize], sections: usize) -> Self {
        const PAGE: usize = 1024;
        // Sections are at different places of a page: `Layout::section` says why.
        let section = lens.iter().map(|len| len.next_multiple_of(Self::ALIGN)).sum::<usize>();
        let section = section.next_multiple_of(PAGE) + 21 * Self::ALIGN;
        Self { memory: vec![0.5; sections * section], section, lens: lens.to_vec() }
    }

    /// By tensor, its part of each section.
    fn tensors(&mut self) -> impl Iterator<Item = Vec<&mut [f32]>> {
        let mut sections: Vec<&mut [f32]> = self.memory.chunks_mut(self.section).collect();
        self.lens.iter().map(move |&len| sections.iter_mut().map(|section| Self::slot(section, len)).collect())
    }

    fn slot<'a>(section: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
        &mut section.split_off_mut(..len.next_multiple_of(Self::ALIGN)).unwrap_or_default()[..len]
    }
}

pub(crate) fn pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(threads).build()
}
