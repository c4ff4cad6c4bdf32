//! A PTX text, read as far as the tests need it.

use std::collections::BTreeMap;

/// The names of the kernels, in the order of the text.
pub(crate) fn kernels(ptx: &str) -> Vec<&str> {
    let names = ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('));
    let names: Vec<_> = names.collect();
    assert!(!names.is_empty(), "the kernels are found");
    names
}

/// What follows `.name` at the start of a line.
pub(crate) fn directive<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    Some(ptx.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim())
}

/// The NN of `.target sm_NN`.
pub(crate) fn target(ptx: &str) -> u32 {
    let target = directive(ptx, ".target").expect(".target");
    let number = target.strip_prefix("sm_").and_then(|number| number.parse().ok());
    // `sm_90a`, with a suffix, would run on that one GPU and on no later one.
    number.unwrap_or_else(|| panic!(".target {target}, which is not sm_NN"))
}

/// A kernel's threads a block, and the blocks that it asks every multiprocessor to hold at once.
pub(crate) fn launch_bounds(ptx: &str, kernel: &str) -> (u32, u32) {
    let entry = entry(ptx, kernel);
    let first = |name| directive(entry, name).map(|value| value.split(',').next().unwrap_or_default());
    let number = |value: &str| value.parse().expect("a number");
    let threads = first(".maxntid").unwrap_or_else(|| panic!("{kernel} has no __launch_bounds__"));
    (number(threads), first(".minnctapersm").map_or(1, number))
}

/// A kernel, from its name to its closing brace.
pub(crate) fn entry<'a>(ptx: &'a str, kernel: &str) -> &'a str {
    let start = ptx.find(&format!(".visible .entry {kernel}(")).unwrap_or_else(|| panic!("no entry {kernel}"));
    let end = ptx[start..].find("\n}").expect("a closing brace");
    &ptx[start..start + end]
}

/// A kernel's instructions and how often each stands there.
pub(crate) fn opcodes<'a>(ptx: &'a str, kernel: &str) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    let (_, body) = entry(ptx, kernel).split_once("\n{").expect("an opening brace");
    for line in body.lines() {
        let line = line.trim();
        let line = match line.strip_prefix('@') {
            Some(predicated) => predicated.split_once(' ').map_or("", |(_, rest)| rest.trim()),
            None => line,
        };
        let opcode = line.split([' ', '\t', ';']).next().unwrap_or_default();
        if opcode.starts_with(|c: char| c.is_ascii_lowercase()) {
            *counts.entry(opcode).or_insert(0) += 1;
        }
    }
    assert!(counts.len() > 20, "{kernel}: the instructions are found");
    counts
}

/// The elements that one thread of the plain step's kernels updates at a time: `LANES` of `cuda/adamw.cu`.
pub(crate) const LANES: usize = 4;

/// What a kernel of the plain step is compiled for: lists of one dtype, or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    F32,
    Bf16,
    F16,
    Mixed,
}

impl Plain {
    /// None if the kernel is not one of them.
    pub(crate) fn of(kernel: &str) -> Option<Self> {
        let plain = [("f32", Self::F32), ("bf16", Self::Bf16), ("f16", Self::F16), ("mixed", Self::Mixed)];
        let name = kernel.strip_prefix("adamw_")?;
        plain.into_iter().find_map(|(of, plain)| (of == name).then_some(plain))
    }
}
