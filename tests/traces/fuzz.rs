//! No bytes make the reader, or the replay of what it accepts, panic.

use fused_adamw::Device;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::malformed::File;
use crate::run::replay;
use crate::trace::Trace;

/// Reads `bytes` and replays what it gets. Errors are welcome, panics are not.
fn survive(bytes: &[u8]) {
    if let Ok(trace) = Trace::parse(bytes) {
        let report = replay(&trace, &Device::cpu());
        drop(report.map(|report| report.worst.map(|worst| worst.to_string())));
    }
}

fn committed_bytes(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/traces/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Numbers at which products and sums overflow, and small ones that can be right.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..200_u64, (0..64_u32).prop_map(|bit| 1 << bit), (0..64_u64).prop_map(|below| u64::MAX - below)]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|x| json!(x)),
        number().prop_map(|x| json!(x)),
        any::<f64>().prop_map(|x| json!(x)),
        "[a-zA-Z0-9.]{0,6}".prop_map(|x| json!(x)),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let lists = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array);
        let objects = prop::collection::btree_map(key(), inner, 0..4);
        prop_oneof![lists, objects.prop_map(|map| json!(map))]
    })
}

fn key() -> impl Strategy<Value = String> {
    let known =
        ["dtype", "shape", "data_offsets", "lr", "betas", "eps", "weight_decay", "groups", "tensors", "amsgrad"];
    prop_oneof![prop::sample::select(known.to_vec()).prop_map(str::to_owned), "[a-z_]{0,8}"]
}

fn name() -> impl Strategy<Value = String> {
    let known = ["param.0.0", "param.1.0", "grad.0.1", "expect.param.0.2", "exact.param.0.2", "__metadata__"];
    prop_oneof![prop::sample::select(known.to_vec()).prop_map(str::to_owned), "[a-z]{1,6}\\.[0-9]{1,20}\\.[0-9]{1,20}"]
}

fn entry() -> impl Strategy<Value = Value> {
    let dtype = prop::sample::select(vec!["F16", "BF16", "F32", "F64", "I64", "BOOL", "F4", ""]);
    let shape = prop::collection::vec(number(), 0..4);
    let entry = (dtype, shape, number(), number());
    let typed = entry.prop_map(|(d, s, a, b)| json!({ "dtype": d, "shape": s, "data_offsets": [a, b] }));
    prop_oneof![4 => typed, 1 => value()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        survive(&bytes);
        survive(&with_header(&bytes, &[]));
    }

    #[test]
    fn a_real_trace_with_flipped_bits(
        name in prop::sample::select(vec!["bf16", "f16", "missing", "groups", "maximize-clip"]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..6),
    ) {
        let mut bytes = committed_bytes(name);
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        survive(&bytes);
    }

    #[test]
    fn a_real_trace_cut_short_is_an_error(place in any::<prop::sample::Index>()) {
        let bytes = committed_bytes("missing");
        prop_assert!(Trace::parse(&bytes[..place.index(bytes.len())]).is_err());
    }

    #[test]
    fn gradients_of_any_bits(data in prop::collection::vec(any::<u8>(), 160)) {
        let mut file = File::new();
        file.data = data;
        survive(&file.bytes());
    }

    #[test]
    fn a_header_of_hostile_entries(
        entries in prop::collection::btree_map(name(), entry(), 0..8),
        length in prop_oneof![3 => Just(None), 1 => number().prop_map(Some)],
        data in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut header = json!(entries);
        if header.get("__metadata__").is_none() {
            header["__metadata__"] = File::new().header["__metadata__"].clone();
        }
        let mut bytes = with_header(header.to_string().as_bytes(), &data);
        if let Some(length) = length {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        survive(&bytes);
    }

    #[test]
    fn one_hostile_entry_in_a_good_header(name in name(), entry in entry()) {
        let mut file = File::new();
        file.header[name] = entry;
        survive(&file.bytes());
    }

    #[test]
    fn a_config_of_anything(config in prop::collection::btree_map(key(), value(), 0..5), text in ".{0,20}") {
        let mut file = File::new();
        file.header["__metadata__"]["config"] = json!(json!(config).to_string());
        survive(&file.bytes());
        file.header["__metadata__"]["config"] = json!(text);
        survive(&file.bytes());
    }

    #[test]
    fn a_config_of_hostile_numbers(lr: f64, beta1: f64, beta2: f64, eps: f64, decay: f64, norm: f64, algorithm: bool) {
        let algorithm = if algorithm { "adam" } else { "adamw" };
        let config = json!({
            "lr": lr, "betas": [beta1, beta2], "eps": eps, "weight_decay": decay, "max_grad_norm": norm,
            "algorithm": algorithm,
        });
        let mut file = File::new();
        file.header["__metadata__"]["config"] = json!(config.to_string());
        survive(&file.bytes());
    }
}

// safetensors 0.8.0 adds the last end, 2^64 - 28, to the header's length without a check: a panic in debug builds.
#[test]
fn tensors_that_end_at_the_last_address_are_an_error() {
    let size = (1_u64 << 61) - 4;
    let last = u64::MAX - 27 - 8 * size;
    let sizes = [size; 8].into_iter().chain([last]);
    let entries = (0_u64..).zip(sizes).map(|(i, bytes)| {
        let offsets = [i * size, i * size + bytes];
        (format!("grad.0.{i}"), json!({ "dtype": "F32", "shape": [bytes / 4], "data_offsets": offsets }))
    });
    let header = Value::Object(entries.collect()).to_string();
    let error = Trace::parse(&with_header(header.as_bytes(), &[])).unwrap_err();
    let message = "`grad.0.0`: its data ends at byte 2305843009213693948, the file has 0 bytes of data";
    assert_eq!(error.to_string(), message);
}
