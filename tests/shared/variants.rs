//! What is tried on a GPU beside the crate's own: constants of `cuda/variants.cuh`, shorter chunks; and what each is expected
//! to do, by what an H200 has said. Data alone: `vary.rs` times it, `tests/ptx` says what ptxas makes of it,
//! `tests/cuda` that no bit changes.

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    /// Of its PTX, too, if it has one.
    pub(crate) name: &'static str,
    pub(crate) constants: &'static [(&'static str, u32)],
    pub(crate) chunk_len: Option<u32>,
    /// Its time over the crate's own: on large lists; on 10,000 tensors of 1,000.
    pub(crate) predicted: [&'static str; 2],
    pub(crate) why: &'static str,
}

/// The crate's own.
pub(crate) const OWN: &str = "own";

const BASE: Variant = Variant { name: OWN, constants: &[], chunk_len: None, predicted: ["1", "1"], why: "" };

/// [`OWN`] comes first.
pub(crate) const VARIANTS: [Variant; 5] = [
    BASE,
    Variant {
        name: "chunks-512",
        chunk_len: Some(512),
        predicted: ["1.02 to 1.04", "1.11"],
        why: "half the threads have nothing to do",
        ..BASE
    },
    Variant {
        name: "blocks-5",
        constants: &[("UNIFORM_BLOCKS", 5)],
        predicted: ["1.00 to 1.01", "1.02"],
        why: "48 registers in place of 40, a sixth fewer loads on their way",
        ..BASE
    },
    Variant {
        name: "blocks-4",
        constants: &[("UNIFORM_BLOCKS", 4)],
        predicted: ["1.02 to 1.04", "1.08"],
        why: "64 registers, a third fewer loads on their way",
        ..BASE
    },
    Variant {
        name: "mixed-4",
        constants: &[("MIXED_BLOCKS", 4)],
        predicted: ["1.02", "0.97"],
        why: "64 registers: a fifth fewer loads on their way, and fewer values computed twice",
        ..BASE
    },
];

impl Variant {
    /// `NAME=VALUE` of each constant.
    pub(crate) fn defines(&self) -> impl Iterator<Item = String> {
        self.constants.iter().map(|(name, value)| format!("{name}={value}"))
    }

    /// Whether a list of one dtype, or of several, knows of it.
    pub(crate) fn concerns(&self, is_mixed: bool) -> bool {
        let other = if is_mixed { "UNIFORM_BLOCKS" } else { "MIXED_BLOCKS" };
        self.constants.iter().all(|&(name, _)| name != other)
    }
}
