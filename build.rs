//! With the feature `cuda`: `cuda/adamw.cu` becomes `OUT_DIR/adamw.ptx` (see `build/ptx.rs`). Without: nothing.

#[cfg(feature = "cuda")]
#[path = "build/ptx.rs"]
mod ptx;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(error) = ptx::build() {
        format!("{error:#}").lines().for_each(|line| println!("cargo::error={line}"));
    }
}
