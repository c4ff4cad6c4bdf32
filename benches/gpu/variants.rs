//! What is tried on a GPU beside the crate's own: constants of `cuda/variants.cuh`, another length of chunks, a grid of a
//! fixed size; and what each is expected to do. Data alone: `vary.rs` times it, `tests/ptx` says what ptxas makes of it,
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
pub(crate) const VARIANTS: [Variant; 11] = [
    BASE,
    Variant {
        name: "chunks-1024",
        chunk_len: Some(1024),
        predicted: ["1.00 to 1.04", "1"],
        why: "no tail, but a quarter of each block's time is its start, and eight times the blocks",
        ..BASE
    },
    Variant {
        name: "chunks-4096",
        chunk_len: Some(4096),
        predicted: ["0.99 to 1.01", "1"],
        why: "half the tail for twice the starts: even",
        ..BASE
    },
    Variant {
        name: "chunks-16384",
        chunk_len: Some(16_384),
        predicted: ["1.00 to 1.02", "1"],
        why: "the tail of the model is 3% to 4%; blocks that are left run faster than it thinks",
        ..BASE
    },
    Variant {
        name: "chunks-65536",
        chunk_len: Some(65_536),
        predicted: ["1.01 to 1.10", "1"],
        why: "PyTorch's chunks: a tail of up to one wave in four on GPT-2, and on ResNet-50 places without a block",
        ..BASE
    },
    Variant {
        name: "blocks",
        constants: &[("F32_BLOCKS", 6), ("MIXED_BLOCKS", 4)],
        predicted: ["0.99 to 1.00", "0.94 to 1.00"],
        why: "more loads on their way than enough; short blocks have more others to hide their start behind",
        ..BASE
    },
    Variant {
        name: "lanes",
        constants: &[("F32_LANES", 8)],
        predicted: ["0.99 to 1.01", "0.98 to 1.02"],
        why: "twice the loads on their way by the same blocks, where half as many are enough; f32 alone",
        ..BASE
    },
    Variant {
        name: "stream-loads",
        constants: &[("STREAM_LOADS", 1)],
        predicted: ["0.99 to 1.01", "0.99 to 1.01"],
        why: "nothing is read twice, so nothing that is kept is lost",
        ..BASE
    },
    Variant {
        name: "stream-stores",
        constants: &[("STREAM_STORES", 1)],
        predicted: ["0.98 to 1.00", "0.98 to 1.00"],
        why: "lines that leave the cache early are written in longer runs; but parameters that the next forward pass reads \
              leave it, too, which this bench does not see",
        ..BASE
    },
    Variant {
        name: "stream",
        constants: &[("STREAM_LOADS", 1), ("STREAM_STORES", 1)],
        predicted: ["0.98 to 1.01", "0.98 to 1.01"],
        why: "both of the above, which is how the hints are meant",
        ..BASE
    },
    Variant {
        name: "persistent",
        constants: &[("PERSISTENT", 1)],
        predicted: ["1.00 to 1.03", "0.97 to 1.05"],
        why: "no block is started twice, but each chunk still waits for its two tables, and who is late stays late",
        ..BASE
    },
];

impl Variant {
    /// The blocks of an update on a GPU, if that is not one a chunk: as many as it holds at once.
    pub(crate) fn grid(&self, multiprocessors: u32, is_f32: bool) -> Option<u32> {
        self.is_persistent().then(|| multiprocessors * if is_f32 { 4 } else { 3 })
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.constants.contains(&("PERSISTENT", 1))
    }

    /// `NAME=VALUE` of each constant.
    pub(crate) fn defines(&self) -> impl Iterator<Item = String> {
        self.constants.iter().map(|(name, value)| format!("{name}={value}"))
    }
}
