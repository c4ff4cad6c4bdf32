//! Files that are not traces, and what is said of each: the tensor or key, and both values.

use std::error::Error;

use serde_json::{Value, json};

use crate::container::MAX_HEADER;
use crate::error::TraceError;
use crate::trace::Trace;

/// A trace of two tensors of 3 and 2 elements and two steps, as a header that a test then spoils.
pub(crate) struct File {
    pub(crate) header: Value,
    pub(crate) data: Vec<u8>,
}

impl File {
    pub(crate) fn new() -> Self {
        let mut file = Self { header: json!({}), data: vec![] };
        file.header["__metadata__"] = json!({ "format": "adamw-trace/1", "steps": "2", "config": "{}" });
        for (i, len) in [(0, 3), (1, 2)] {
            for name in ["param.I.0", "grad.I.1", "grad.I.2", "expect.param.I.2", "expect.exp_avg.I.2"] {
                file.add(&name.replace('I', &i.to_string()), "F32", len);
            }
            file.add(&format!("expect.exp_avg_sq.{i}.2"), "F32", len);
            file.add(&format!("exact.param.{i}.2"), "F64", len);
        }
        file
    }

    pub(crate) fn add(&mut self, name: &str, dtype: &str, len: usize) {
        let start = self.data.len();
        let size = match dtype {
            "BF16" => 2,
            "F32" => 4,
            _ => 8,
        };
        self.data.resize(start + len * size, 0);
        self.header[name] = json!({ "dtype": dtype, "shape": [len], "data_offsets": [start, self.data.len()] });
    }

    /// Takes a tensor out, its bytes too.
    pub(crate) fn remove(&mut self, name: &str) {
        let gone = self.header.as_object_mut().unwrap().remove(name).unwrap()["data_offsets"].clone();
        let [start, end] = [&gone[0], &gone[1]].map(|x| usize::try_from(x.as_u64().unwrap()).unwrap());
        self.data.drain(start..end);
        for entry in self.header.as_object_mut().unwrap().values_mut() {
            for offset in entry.get_mut("data_offsets").and_then(Value::as_array_mut).into_iter().flatten() {
                let old = usize::try_from(offset.as_u64().unwrap()).unwrap();
                *offset = json!(if old >= end { old - (end - start) } else { old });
            }
        }
    }

    fn rename(&mut self, old: &str, new: &str) {
        let entry = self.header.as_object_mut().unwrap().remove(old).unwrap();
        self.header[new] = entry;
    }

    pub(crate) fn config(&mut self, config: &Value) {
        self.header["__metadata__"]["config"] = json!(config.to_string());
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = self.header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &self.data].concat()
    }
}

pub(crate) fn message(bytes: &[u8]) -> String {
    let error = Trace::parse(bytes).expect_err("not a trace");
    error.source().map_or(error.to_string(), |source| format!("{error}: {source}"))
}

fn spoilt(spoil: impl Fn(&mut File)) -> String {
    let mut file = File::new();
    spoil(&mut file);
    message(&file.bytes())
}

#[test]
fn the_file_that_the_others_spoil_is_a_trace() {
    let trace = Trace::parse(&File::new().bytes()).unwrap();
    assert_eq!((trace.steps, trace.tensors.len(), trace.gradients.len()), (2, 2, 2));
}

#[test]
fn a_short_file_says_how_short() {
    let bytes = File::new().bytes();
    let header = bytes.len() - 8 - File::new().data.len();
    let begins = "a trace begins with 8 that say how long its header is";
    assert_eq!(message(&[]), format!("the file has 0 bytes, {begins}"));
    assert_eq!(message(&bytes[..7]), format!("the file has 7 bytes, {begins}"));
    assert_eq!(message(&bytes[..20]), format!("the header claims {header} bytes, the file has 12 for it"));
    let last = "its data ends at byte 160, the file has 159 bytes of data";
    assert_eq!(message(&bytes[..bytes.len() - 1]), format!("`exact.param.1.2`: {last}"));
    assert_eq!(
        message(&[&bytes[..], &[0]].concat()),
        "the last tensor ends at byte 160, the file has 161 bytes of data"
    );
}

#[test]
fn a_header_has_a_largest_length() {
    let bytes = File::new().bytes();
    for length in [0, MAX_HEADER + 1, 99_000_000, 100_000_000, 1 << 63, u64::MAX] {
        let file = [&length.to_le_bytes()[..], &bytes[8..]].concat();
        assert_eq!(message(&file), format!("the header claims {length} bytes, a trace's has from 1 to 8388608"));
    }
    let longest = [&MAX_HEADER.to_le_bytes()[..], &bytes[8..]].concat();
    let found = bytes.len() - 8;
    assert_eq!(message(&longest), format!("the header claims 8388608 bytes, the file has {found} for it"));
}

#[test]
fn a_header_that_is_not_an_object_is_refused() {
    for text in ["{", "nul", "{\"a\":1}}", " "] {
        assert!(matches!(Trace::parse(&with_header(text)), Err(TraceError::HeaderJson(_))), "{text}");
    }
    for (text, found) in [("[]", "[]"), ("7", "7"), ("null", "null"), ("\"a\"", "a")] {
        assert_eq!(message(&with_header(text)), format!("the header must be a JSON object, found {found}"));
    }
    // Deep nesting would exhaust the stack of a careless parser.
    assert!(message(&with_header(&"[".repeat(100_000))).contains("not JSON: recursion limit"));
}

fn with_header(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

// Of two values of one name some readers take the first, and some the last.
#[test]
fn a_name_that_is_there_twice_is_named() {
    let header = File::new().header.to_string();
    let entry = r#""grad.0.1":{"data_offsets":[12,24],"dtype":"F32","shape":[3]}"#;
    assert!(header.contains(entry), "{header}");
    let cases = [
        (entry, format!("{entry},{entry}"), "grad.0.1"),
        (entry, format!(r#"{entry},"grad.\u0030.1":0"#), "grad.0.1"),
        (entry, entry.replace('}', r#","dtype":"F32"}"#), "dtype"),
        (entry, entry.replace('}', r#","x":{"y":[{"":0,"z":1,"":0}]}}"#), ""),
        (r#""steps":"2""#, r#""steps":"2","steps":"3""#.to_owned(), "steps"),
        ("{\"__metadata__", "{\"__metadata__\":{},\"__metadata__".to_owned(), "__metadata__"),
    ];
    for (old, new, name) in cases {
        let mut bytes = with_header(&header.replacen(old, &new, 1));
        bytes.extend(File::new().data);
        assert_eq!(message(&bytes), format!("the header has the name `{name}` twice in one object"), "{new}");
    }
}

#[test]
fn a_key_of_the_config_that_is_there_twice_is_named() {
    let cases = [
        (r#"{"lr":1,"lr":1}"#, "lr"),
        (r#"{"lr":1,"eps":1e-8,"l\u0072":2}"#, "lr"),
        (r#"{"groups":[{"tensors":[0,1],"eps":1,"eps":2}]}"#, "eps"),
    ];
    for (config, name) in cases {
        let expected = format!("metadata `config` has the name `{name}` twice in one object");
        assert_eq!(spoilt(|f| f.header["__metadata__"]["config"] = json!(config)), expected);
    }
    let twice = r#"{"groups":[{"tensors":[0],"lr":1},{"tensors":[1],"lr":2}],"lr":3}"#;
    let mut file = File::new();
    file.header["__metadata__"]["config"] = json!(twice);
    assert!(Trace::parse(&file.bytes()).is_ok(), "one name in several objects");
}

type Case = (fn(&mut File), &'static str);

#[test]
fn a_hostile_header_is_named() {
    let cases: [Case; 16] = [
        (|f| f.header["grad.0.1"] = json!(7), "`grad.0.1`: dtype must be a string, found nothing"),
        (|f| f.header["grad.0.1"]["dtype"] = json!(3), "`grad.0.1`: dtype must be a string, found 3"),
        (
            |f| f.header["grad.0.1"]["dtype"] = json!("I32"),
            "`grad.0.1`: dtype must be F16, BF16, F32 or F64, found I32",
        ),
        (
            |f| f.header["grad.0.1"]["dtype"] = json!("BF16"),
            "`grad.0.1`: its shape [3] takes 6 bytes, its data_offsets span 12",
        ),
        (
            |f| f.header["grad.0.1"]["shape"] = json!([-3]),
            "`grad.0.1`: shape must be a list of integers from 0, found [-3]",
        ),
        (
            |f| f.header["grad.0.1"]["shape"] = json!(null),
            "`grad.0.1`: shape must be a list of integers from 0, found null",
        ),
        (
            |f| f.header["grad.0.1"]["shape"] = json!([4]),
            "`grad.0.1`: its shape [4] takes 16 bytes, its data_offsets span 12",
        ),
        (
            |f| f.header["grad.0.1"]["shape"] = json!([1_u64 << 32, 1_u64 << 32]),
            "`grad.0.1`: shape [4294967296, 4294967296] of 4-byte elements exceeds 2^64 bytes",
        ),
        (
            |f| f.header["grad.0.1"]["shape"] = json!([1_u64 << 62, 1]),
            "`grad.0.1`: shape [4611686018427387904, 1] of 4-byte elements exceeds 2^64 bytes",
        ),
        (
            |f| f.header["grad.0.1"]["shape"] = json!([1, 1, 1, 1, 1, 1, 1, 1, 3, 2]),
            "`grad.0.1`: its shape [1, 1, 1, 1, 1, 1, 1, 1]... of 10 dimensions takes 24 bytes, its data_offsets span 12",
        ),
        (
            |f| f.header["grad.0.1"]["data_offsets"] = json!([12, 24, 36]),
            "`grad.0.1`: data_offsets must be two integers from 0, found [12,24,36]",
        ),
        (
            |f| f.header["grad.0.1"]["data_offsets"] = json!([24, 12]),
            "`grad.0.1`: data_offsets end at byte 12, before they start at 24",
        ),
        (
            |f| f.header["grad.0.1"]["data_offsets"] = json!([0, 12]),
            "`param.0.0`: its data starts at byte 0, the tensor before it ends at 12",
        ),
        (
            |f| f.header["grad.0.1"]["data_offsets"] = json!([u64::MAX - 12, u64::MAX]),
            "`grad.0.2`: its data starts at byte 24, the tensor before it ends at 12",
        ),
        (
            |f| f.header["exact.param.1.2"]["data_offsets"] = json!([u64::MAX - 16, u64::MAX]),
            "`exact.param.1.2`: its data ends at byte 18446744073709551615, the file has 160 bytes of data",
        ),
        (|f| f.header["a\u{1b}[2Jb"] = json!(7), "`a\\u{1b}[2Jb`: dtype must be a string, found nothing"),
    ];
    for (spoil, expected) in cases {
        assert_eq!(spoilt(spoil), expected);
    }
}

#[test]
fn metadata_that_is_not_a_traces_is_named() {
    let cases: [Case; 12] = [
        (|f| f.header["__metadata__"] = json!(null), "metadata `format` must be adamw-trace/1, found nothing"),
        (|f| f.header["__metadata__"]["format"] = json!("pt"), "metadata `format` must be adamw-trace/1, found pt"),
        (|f| f.header["__metadata__"]["format"] = json!(1), "metadata `format` must be adamw-trace/1, found 1"),
        (
            |f| f.header["__metadata__"]["steps"] = json!(2),
            "metadata `steps` must be a string that holds an integer, found 2",
        ),
        (
            |f| f.header["__metadata__"]["steps"] = json!("0"),
            "metadata `steps` must be an integer from 1 to 16777216, found 0",
        ),
        (
            |f| f.header["__metadata__"]["steps"] = json!("-1"),
            "metadata `steps` must be an integer from 1 to 16777216, found -1",
        ),
        (
            |f| f.header["__metadata__"]["steps"] = json!("2.0"),
            "metadata `steps` must be an integer from 1 to 16777216, found 2.0",
        ),
        (
            |f| f.header["__metadata__"]["steps"] = json!("1000000000000000000"),
            "metadata `steps` must be an integer from 1 to 16777216, found 1000000000000000000",
        ),
        (
            |f| f.header["__metadata__"]["steps"] = json!("99999999999999999999"),
            "metadata `steps` must be an integer from 1 to 16777216, found 99999999999999999999",
        ),
        (
            |f| f.header["__metadata__"]["steps"] = json!("3"),
            "`exact.param.0.2` is not a tensor of a trace of 2 parameters and 3 steps",
        ),
        (
            |f| f.header["__metadata__"]["config"] = json!("{"),
            "metadata `config` is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (|f| f.header["__metadata__"]["config"] = json!(null), "metadata `config` must be JSON, found null"),
    ];
    for (spoil, expected) in cases {
        assert_eq!(spoilt(spoil), expected);
    }
}

#[test]
fn a_config_is_checked_key_by_key() {
    let all = json!([{ "tensors": [0, 1] }]);
    let cases = [
        (json!([]), "config: `config` must be an object, found []"),
        (json!({ "beta": 1 }), "config: `beta` is not a key of a trace"),
        (json!({ "tensors": [0, 1] }), "config: `tensors` is not a key of a trace"),
        (json!({ "algorithm": "sgd" }), "config: `algorithm` must be \"adamw\" or \"adam\", found sgd"),
        (json!({ "lr": "fast" }), "config: `lr` must be a number or a list of numbers, found fast"),
        (json!({ "lr": [1, null] }), "config: `lr` must be a number or a list of numbers, found [1,null]"),
        (json!({ "lr": [0.1, 0.2, 0.3] }), "config: `lr` has 3 entries, the trace has 2 steps"),
        (json!({ "betas": 0.9 }), "config: `betas` must be two numbers, found 0.9"),
        (json!({ "betas": [0.9] }), "config: `betas` must be two numbers, found [0.9]"),
        (json!({ "eps": null }), "config: `eps` must be a number, found null"),
        (json!({ "weight_decay": true }), "config: `weight_decay` must be a number, found true"),
        (json!({ "amsgrad": 1 }), "config: `amsgrad` must be true or false, found 1"),
        (json!({ "maximize": "no" }), "config: `maximize` must be true or false, found no"),
        (json!({ "max_grad_norm": 0 }), "config: `max_grad_norm` must be a number above 0, found 0"),
        (json!({ "groups": {} }), "config: `groups` must be a list of objects, found an object of 0 keys"),
        (json!({ "groups": [3] }), "groups[0]: `groups` must be an object, found 3"),
        (json!({ "groups": [{}] }), "groups[0]: `tensors` must be a list of tensor indices, found nothing"),
        (
            json!({ "groups": [{ "tensors": [-1] }] }),
            "groups[0]: `tensors` must be a list of tensor indices, found [-1]",
        ),
        (json!({ "groups": [{ "tensors": [0, 2] }] }), "groups[0] names tensor 2, the trace has 2"),
        (json!({ "groups": [{ "tensors": [0] }] }), "tensor 1 of 2 is in none of the 1 groups"),
        (json!({ "groups": [] }), "tensor 0 of 2 is in none of the 0 groups"),
        (
            json!({ "groups": [{ "tensors": [0, 1] }, { "tensors": [1] }] }),
            "tensor 1 is in groups[0] and again in groups[1]",
        ),
        (json!({ "groups": [{ "tensors": [0, 1, 0] }] }), "tensor 0 is in groups[0] and again in groups[0]"),
        (
            json!({ "groups": [{ "tensors": [0, 1], "max_grad_norm": 1 }] }),
            "groups[0]: `max_grad_norm` is not a key of a trace",
        ),
        (
            json!({ "groups": [{ "tensors": [0, 1], "lr": [] }] }),
            "groups[0]: `lr` has 0 entries, the trace has 2 steps",
        ),
        (json!({ "groups": all, "lr": [1] }), "config: `lr` has 1 entries, the trace has 2 steps"),
    ];
    for (config, expected) in cases {
        assert_eq!(spoilt(|f| f.config(&config)), expected);
    }
}

#[test]
fn null_means_no_clipping_and_one_group() {
    let mut file = File::new();
    file.config(&json!({ "max_grad_norm": null, "groups": null }));
    let trace = Trace::parse(&file.bytes()).unwrap();
    assert_eq!((trace.config.max_grad_norm, trace.config.groups.len()), (None, 1));
}

#[test]
fn tensors_that_are_missing_or_strange_are_named() {
    let cases: [Case; 11] = [
        (|f| f.remove("param.0.0"), "`param.0.0` is missing: the trace has no parameter"),
        (|f| f.remove("param.1.0"), "`param.1.0` is missing, `exact.param.1.2` is there"),
        (|f| f.rename("param.1.0", "param.2.0"), "`param.1.0` is missing, `exact.param.1.2` is there"),
        (|f| f.remove("expect.param.1.2"), "`expect.param.1.2` is missing, `param.1.0` is there"),
        (|f| f.remove("expect.exp_avg.0.2"), "`expect.exp_avg.0.2` is missing, `param.0.0` is there"),
        (|f| f.remove("expect.exp_avg_sq.1.2"), "`expect.exp_avg_sq.1.2` is missing, `param.1.0` is there"),
        (|f| f.rename("grad.0.2", "grad.0.3"), "`grad.0.3` is not a tensor of a trace of 2 parameters and 2 steps"),
        (|f| f.rename("grad.0.2", "grad.0.02"), "`grad.0.02` is not a tensor of a trace of 2 parameters and 2 steps"),
        (|f| f.rename("grad.0.2", "gradient"), "`gradient` is not a tensor of a trace of 2 parameters and 2 steps"),
        (|f| f.header["grad.0.2"]["shape"] = json!([3, 1]), "`grad.0.2`: shape [3, 1], `param.0.0` has [3]"),
        (
            |f| f.header["exact.param.1.2"]["shape"] = json!([1, 2]),
            "`exact.param.1.2`: shape [1, 2], `param.1.0` has [2]",
        ),
    ];
    for (spoil, expected) in cases {
        assert_eq!(spoilt(spoil), expected);
    }
}

// Gradients and `exact` may be absent; the step count of the tensor then does not move.
#[test]
fn a_trace_may_leave_out_gradients_and_exact() {
    let mut file = File::new();
    for name in ["grad.0.1", "grad.1.1", "grad.1.2", "exact.param.0.2", "exact.param.1.2"] {
        file.remove(name);
    }
    file.header["__metadata__"]["steps"] = json!("2");
    let trace = Trace::parse(&file.bytes()).unwrap();
    assert_eq!(trace.gradients.keys().collect::<Vec<_>>(), [&2]);
    assert!(trace.tensors.iter().all(|tensor| tensor.exact.is_none()));
}

// The largest count is accepted at once: steps without a gradient are not walked.
#[test]
fn many_steps_without_gradients_cost_nothing() {
    let mut file = File::new();
    for name in ["grad.0.1", "grad.0.2", "grad.1.1", "grad.1.2"] {
        file.remove(name);
    }
    file.header = serde_json::from_str(&file.header.to_string().replace(".2\"", ".16777216\"")).unwrap();
    file.header["__metadata__"]["steps"] = json!("16777216");
    let report = crate::on_cpu(&Trace::parse(&file.bytes()).unwrap());
    assert!(report.passes() && report.max_ulp == 0);
}
