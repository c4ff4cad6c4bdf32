//! The limit: a read-modify-write of a step's bytes by a step's threads, with next to no arithmetic. 28 an element: f32
//! reads p, g, m, v and writes p, m, v; bf16 reads g, master, m, v and writes p, master, m, v.
//!
//! By two walks, of which now the one and now the other is faster: along the spans, as a step goes; and at two places at
//! once, a piece here and a piece half the list further on.

use crate::Peer;
use crate::values::{GRAD_SCALE, PARAM_SCALE, filled_all};
use anyhow::Result;
use half::bf16;
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Elements of a span, as of a step's chunk.
const SPAN: usize = 16 * 1024;

/// Elements touched at one place before it is the other's turn.
const PIECE: usize = 256;

/// Up to so many elements the caller's thread is alone, as in a step.
const ONE_THREAD: usize = 128 * 1024;

pub(crate) trait Touch: Copy + Send + Sync {
    /// Whether an f32 master stands beside the parameter.
    const MASTER: bool;

    fn touch(work: &mut Work<'_, Self>);
}

/// A span of each array.
pub(crate) struct Work<'a, T> {
    p: &'a mut [T],
    g: &'a [T],
    master: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl<T: Touch> Work<'_, T> {
    fn piece(&mut self, number: usize) -> Work<'_, T> {
        let (from, to) = ((number * PIECE).min(self.p.len()), ((number + 1) * PIECE).min(self.p.len()));
        let master = if T::MASTER { from..to } else { 0..0 };
        Work {
            p: &mut self.p[from..to],
            g: &self.g[from..to],
            master: &mut self.master[master],
            m: &mut self.m[from..to],
            v: &mut self.v[from..to],
        }
    }
}

impl Touch for f32 {
    const MASTER: bool = false;

    fn touch(Work { p, g, m, v, .. }: &mut Work<'_, f32>) {
        let n = p.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            p[i] += g[i];
            m[i] += g[i];
            v[i] += g[i];
        }
    }
}

impl Touch for bf16 {
    const MASTER: bool = true;

    #[expect(clippy::manual_memcpy, reason = "one walk over all arrays, as a step's")]
    fn touch(Work { p, g, master, m, v }: &mut Work<'_, bf16>) {
        let n = p.len();
        let (g, master, m, v) = (&g[..n], &mut master[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let x = f32::from_bits(u32::from(g[i].to_bits()) << 16);
            p[i] = g[i];
            master[i] += x;
            m[i] += x;
            v[i] += x;
        }
    }
}

pub(crate) struct Limit<T> {
    p: Vec<Vec<T>>,
    g: Vec<Vec<T>>,
    /// Empty tensors without masters.
    master: Vec<Vec<f32>>,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl<T: Touch> Limit<T> {
    pub(crate) fn new(lens: &[usize], of: fn(f32) -> T) -> Self {
        let master_lens: Vec<_> = lens.iter().map(|&len| if T::MASTER { len } else { 0 }).collect();
        Self {
            p: filled_all(lens, PARAM_SCALE, of),
            g: filled_all(lens, GRAD_SCALE, of),
            master: filled_all(&master_lens, PARAM_SCALE, |x| x),
            m: filled_all(lens, GRAD_SCALE, |x| x),
            v: filled_all(lens, GRAD_SCALE, |x| x),
        }
    }

    fn work(&mut self) -> Vec<Work<'_, T>> {
        let params = self.p.iter_mut().zip(&self.g);
        let state = self.master.iter_mut().zip(self.m.iter_mut().zip(&mut self.v));
        let spans = params.zip(state).flat_map(|((p, g), (master, (m, v)))| {
            let mut masters = master.chunks_mut(SPAN);
            let arrays = p.chunks_mut(SPAN).zip(g.chunks(SPAN)).zip(m.chunks_mut(SPAN).zip(v.chunks_mut(SPAN)));
            arrays.map(move |((p, g), (m, v))| Work { p, g, master: masters.next().unwrap_or_default(), m, v })
        });
        spans.collect()
    }
}

fn plain<T: Touch>(work: &mut [Work<'_, T>], together: Option<usize>) {
    match together {
        None => work.iter_mut().for_each(T::touch),
        Some(together) => work.par_iter_mut().with_min_len(together).for_each(T::touch),
    }
}

fn at_two_places<T: Touch>(work: &mut [Work<'_, T>], together: Option<usize>) {
    let (here, there) = work.split_at_mut(work.len() / 2);
    // There may be one span more.
    let (last, there) = there.split_at_mut(there.len() - here.len());
    plain(last, None);
    match together {
        None => here.iter_mut().zip(there).for_each(touch_both),
        Some(together) => here.par_iter_mut().zip(there).with_min_len(together).for_each(touch_both),
    }
}

fn touch_both<T: Touch>((here, there): (&mut Work<'_, T>, &mut Work<'_, T>)) {
    for number in 0..here.p.len().max(there.p.len()).div_ceil(PIECE) {
        T::touch(&mut here.piece(number));
        T::touch(&mut there.piece(number));
    }
}

/// How many spans a task takes, so that small tensors make no small tasks; `None` on the caller's thread alone.
fn together<T>(work: &[Work<'_, T>]) -> Option<usize> {
    let elements: usize = work.iter().map(|work| work.p.len()).sum();
    let mean_len = elements / work.len().max(1);
    (elements > ONE_THREAD).then(|| (SPAN / mean_len.max(1)).max(1))
}

fn time(steps: u32, mut walk: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..steps).for_each(|_| walk());
    start.elapsed()
}

impl<T: Touch> Peer for Limit<T> {
    fn time(&mut self, steps: u32) -> Result<Vec<Duration>> {
        let mut work = self.work();
        let together = together(&work);
        Ok(vec![time(steps, || plain(&mut work, together)), time(steps, || at_two_places(&mut work, together))])
    }

    // It has no step of AdamW and no parameters to compare.

    fn set_grads(&mut self, _: f32) -> Result<()> {
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        Ok(())
    }

    fn param(&self, _: usize) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }
}
