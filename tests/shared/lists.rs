//! The lists of tensors that the benches step: lengths alone, because a step knows no shapes.

/// The 148 parameter tensors of GPT-2 124M.
pub(crate) fn gpt2() -> Vec<usize> {
    const D: usize = 768;
    let layer = [D, D, 3 * D * D, 3 * D, D * D, D, D, D, 4 * D * D, 4 * D, 4 * D * D, D];
    let embeddings = [50257 * D, 1024 * D];
    let layers = std::iter::repeat_n(layer, 12).flatten();
    embeddings.into_iter().chain(layers).chain([D, D]).collect()
}

/// The 291 of Llama-3-8B, whose input and output embeddings are not tied.
pub(crate) fn llama3_8b() -> Vec<usize> {
    const D: usize = 4096;
    const KEYS: usize = 1024 * D;
    const MLP: usize = 14336 * D;
    const EMBEDDING: usize = 128_256 * D;
    let layer = [D * D, KEYS, KEYS, D * D, MLP, MLP, MLP, D, D];
    let layers = std::iter::repeat_n(layer, 32).flatten();
    [EMBEDDING].into_iter().chain(layers).chain([D, EMBEDDING]).collect()
}

/// The 161 of ResNet-50.
pub(crate) fn resnet50() -> Vec<usize> {
    // A convolution's weight, and the scale and shift of the batch norm behind it.
    let convolution = |from: usize, to: usize, side: usize| [to * from * side * side, to, to];
    let mut lens = convolution(3, 64, 7).to_vec();
    let mut from = 64;
    for (blocks, width) in [(3, 64), (4, 128), (6, 256), (3, 512)] {
        for block in 0..blocks {
            lens.extend(convolution(from, width, 1));
            lens.extend(convolution(width, width, 3));
            lens.extend(convolution(width, 4 * width, 1));
            if block == 0 {
                lens.extend(convolution(from, 4 * width, 1)); // the shortcut
            }
            from = 4 * width;
        }
    }
    lens.extend([1000 * from, 1000]);
    lens
}
