//! What the bench tries on a GPU has the CPU's bits: whatever the length of a chunk.

use fused_adamw::{AdamWConfig, Device, Dtype, Tuning};

use crate::driver::each_driver;
use crate::tried::VARIANTS;
use crate::twins::{Shape, Twins, Values};

/// Two steps of a list in which each length has each pair of dtypes, in several phases.
fn have_the_cpus_bits(tuning: Tuning<'_>, lengths: &[usize], pairs: &[(Dtype, Dtype)]) {
    let untuned = Device::cuda_at(0).unwrap();
    let stream = untuned.stream().unwrap();
    // SAFETY: the kernels of this driver.
    let device = unsafe { Device::cuda_tuned(stream, tuning) }.unwrap();
    let phased = |(i, shape)| Shape { param_at: i % 5, grad_at: i % 3, ..shape };
    let shapes = pairs.iter().flat_map(|&(param, grad)| lengths.iter().map(move |&len| Shape::new(len, param, grad)));
    let mut twins = Twins::on(&device, stream, Values::Tame, &[AdamWConfig::default()], shapes.enumerate().map(phased));
    (0..2).for_each(|_| twins.step());
    twins.assert_same();
}

/// For a kernel of one dtype, and for that of any.
const PLAIN: [(Dtype, Dtype); 1] = [(Dtype::F32, Dtype::F32)];
const MIXED: [(Dtype, Dtype); 2] = [(Dtype::BF16, Dtype::F32), (Dtype::F16, Dtype::BF16)];

#[test]
fn every_length_of_a_chunk_that_is_tried() {
    each_driver(|| {
        for len in VARIANTS.iter().filter_map(|variant| variant.chunk_len).chain([8, 1000, 1024]) {
            let around = usize::try_from(len).unwrap();
            let lengths = [0, 1, around - 1, around, around + 1];
            let tuning = Tuning { chunk_len: Some(len), ..Tuning::default() };
            have_the_cpus_bits(tuning, &lengths, &PLAIN);
            have_the_cpus_bits(tuning, &lengths, &MIXED[..1]);
        }
    });
}
