//! Bytes -> [`Trace`]: a recorded run of an optimizer, in the format `adamw-trace/1`.
//!
//! A safetensors file with a header of at most 8 MiB. Metadata: `format` = `adamw-trace/1`; `steps` = the number N of steps; `config` = JSON with
//! PyTorch's names and defaults: `algorithm` (`adamw`, `adam`), `lr` (a number, or a list with one a step), `betas`,
//! `eps`, `weight_decay`, `amsgrad`, `maximize`, `max_grad_norm` (absent: no clipping), and `groups` (absent: one
//! group; else a list of objects that override these keys, each with `tensors: [i, ...]`).
//!
//! Tensors, of f32, f64, f16 or bf16, i from 0 and t from 1 to N:
//!
//! | name | |
//! | --- | --- |
//! | `param.i.0` | before the run |
//! | `grad.i.t` | absent: no gradient, the tensor is left alone and its step count does not move |
//! | `expect.param.i.N`, `expect.exp_avg.i.N`, `expect.exp_avg_sq.i.N` | as the other implementation had them after the run; the last two may both be absent where there is no `grad.i.t`: PyTorch keeps no state for such a tensor, and zeros are expected |
//! | `exact.param.i.N` (`exact.exp_avg…` are allowed) | in exact arithmetic, or f64; may be absent |
//!
//! Nothing in the file is believed before it is checked, no loop is as long as a number in the file says, no name may be
//! there twice, and memory is asked for before it is taken: where there is too little, that is an error.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::config::Config;
use crate::container::{Container, Entry, quoted_json};
use crate::error::{Quoted, Shape, TraceError};
use crate::memory::afford;
use crate::values::Values;

/// The longest trace: PyTorch counts steps in f32, and 2^24 is where that count stops.
pub(crate) const MAX_STEPS: u64 = 1 << 24;

const FORMAT: &str = "adamw-trace/1";

/// A run: what went in, step by step, and what came out at the end.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) steps: u64,
    pub(crate) config: Config,
    pub(crate) tensors: Vec<Tensor>,
    /// Step -> the tensors that have a gradient in it. Steps in which none has are absent: they change nothing.
    pub(crate) gradients: BTreeMap<u64, BTreeMap<usize, Values>>,
}

/// One parameter tensor of the run.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) group: usize,
    pub(crate) initial: Values,
    pub(crate) expect: Expected,
    /// The parameter as exact arithmetic gives it (f64, unrounded hyper-parameters).
    pub(crate) exact: Option<Values>,
}

/// What the other implementation had after the last step.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) param: Values,
    pub(crate) exp_avg: Values,
    pub(crate) exp_avg_sq: Values,
}

impl Trace {
    pub(crate) fn parse(file: &[u8]) -> Result<Self, TraceError> {
        let file = Container::parse(file)?;
        let steps = check_metadata(&file.metadata)?;
        let config = Config::parse(text(&file.metadata, "config", "JSON")?, steps)?;
        let count = (0..).take_while(|i| file.tensors.contains_key(&format!("param.{i}.0"))).count();
        check_names(&file, count, steps)?;
        let groups = config.assign(count)?;
        afford(file.tensors.values().map(Entry::size).sum())?;
        let gradients = gradients(&file);
        let moved: BTreeSet<usize> = gradients.values().flat_map(BTreeMap::keys).copied().collect();
        let tensor = |(i, group)| tensor(&file, i, group, steps, moved.contains(&i));
        let tensors = groups.into_iter().enumerate().map(tensor).collect::<Result<_, _>>()?;
        Ok(Self { steps, config, tensors, gradients })
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &'static str, expected: &'static str) -> Result<&'a str, TraceError> {
    let found = || map.get(key).map_or_else(|| Quoted::new("nothing"), quoted_json);
    map.get(key).and_then(Value::as_str).ok_or_else(|| TraceError::Metadata { key, expected, found: found() })
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<u64, TraceError> {
    let format = text(metadata, "format", FORMAT)?;
    if format != FORMAT {
        return Err(TraceError::Metadata { key: "format", expected: FORMAT, found: Quoted::new(format) });
    }
    let steps = text(metadata, "steps", "a string that holds an integer")?;
    let count = canonical(steps).filter(|n| (1..=MAX_STEPS).contains(n));
    count.ok_or_else(|| TraceError::Steps { found: Quoted::new(steps) })
}

/// A decimal number as a writer prints it: `007` and `+7` would give one tensor two names.
fn canonical(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

/// What a tensor's name says that it is.
enum Role {
    Param(u64),
    Grad(u64, u64),
    Result(u64),
}

fn role(name: &str, steps: u64) -> Option<Role> {
    let parts: Vec<&str> = name.split('.').collect();
    let last = |step: &str| canonical(step).is_some_and(|t| t == steps);
    match parts.as_slice() {
        ["param", i, "0"] => canonical(i).map(Role::Param),
        ["grad", i, t] => {
            let step = canonical(t).filter(|t| (1..=steps).contains(t))?;
            canonical(i).map(|i| Role::Grad(i, step))
        }
        ["expect" | "exact", "param" | "exp_avg" | "exp_avg_sq", i, t] if last(t) => canonical(i).map(Role::Result),
        _ => None,
    }
}

/// Every tensor must have a role, and belong to one of the `count` parameters that are there without a gap.
fn check_names(file: &Container<'_>, count: usize, steps: u64) -> Result<(), TraceError> {
    if count == 0 {
        return Err(TraceError::NoParameter);
    }
    for (name, entry) in &file.tensors {
        let unknown = || TraceError::UnknownTensor { tensor: Quoted::new(name), tensors: count, steps };
        let (Role::Param(i) | Role::Grad(i, _) | Role::Result(i)) = role(name, steps).ok_or_else(unknown)?;
        let parameter = format!("param.{i}.0");
        if i >= count as u64 {
            let tensor =
                if matches!(role(name, steps), Some(Role::Param(_))) { format!("param.{count}.0") } else { parameter };
            return Err(TraceError::Missing { tensor, present: name.clone() });
        }
        check_shape(file, name, entry, parameter)?;
    }
    Ok(())
}

fn check_shape(file: &Container<'_>, name: &str, entry: &Entry<'_>, parameter: String) -> Result<(), TraceError> {
    let expected = file.tensors.get(&parameter).map(|p| p.shape.clone()).unwrap_or_default();
    if entry.shape == expected {
        return Ok(());
    }
    let (tensor, found) = (name.to_owned(), Shape(entry.shape.clone()));
    Err(TraceError::Mismatch { tensor, parameter, expected: Shape(expected), found })
}

/// `moved`: the tensor has a gradient in some step.
fn tensor(file: &Container<'_>, i: usize, group: usize, steps: u64, moved: bool) -> Result<Tensor, TraceError> {
    let parameter = format!("param.{i}.0");
    let initial = need(file, &parameter, &parameter)?;
    let param = need(file, &format!("expect.param.{i}.{steps}"), &parameter)?;
    let [exp_avg, exp_avg_sq] = ["exp_avg", "exp_avg_sq"].map(|state| format!("expect.{state}.{i}.{steps}"));
    let has = |name: &String| file.tensors.contains_key(name);
    let state = |name: &String, other: &String| match (has(name) || moved, has(other)) {
        (true, _) => need(file, name, &parameter),
        (false, true) => need(file, name, other),
        (false, false) => Ok(initial.zeros()),
    };
    let [exp_avg, exp_avg_sq] = [state(&exp_avg, &exp_avg_sq)?, state(&exp_avg_sq, &exp_avg)?];
    let exact = file.tensors.get(&format!("exact.param.{i}.{steps}")).map(Entry::values);
    Ok(Tensor { group, initial, expect: Expected { param, exp_avg, exp_avg_sq }, exact })
}

/// The tensor of that name, which has to be there because `present` is.
fn need(file: &Container<'_>, name: &str, present: &str) -> Result<Values, TraceError> {
    let missing = || TraceError::Missing { tensor: name.to_owned(), present: present.to_owned() };
    file.tensors.get(name).map(Entry::values).ok_or_else(missing)
}

fn gradients(file: &Container<'_>) -> BTreeMap<u64, BTreeMap<usize, Values>> {
    let mut steps: BTreeMap<u64, BTreeMap<usize, Values>> = BTreeMap::new();
    for (name, entry) in &file.tensors {
        // `check_names` has bound the index by the number of parameters in the file.
        if let Some(Role::Grad(i, t)) = role(name, u64::MAX)
            && let Ok(i) = usize::try_from(i)
        {
            steps.entry(t).or_default().insert(i, entry.values());
        }
    }
    steps
}
