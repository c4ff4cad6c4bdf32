//! The metadata `config`: PyTorch's hyper-parameters as JSON -> one `Group` for each group of tensors.

use fused_adamw::{AdamWConfig, Algorithm};
use serde_json::{Map, Value};

use crate::container::quoted_json;
use crate::error::{Place, Quoted, TraceError};
use crate::json;

/// Hyper-parameters of a trace; what the config does not say is PyTorch's default.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) groups: Vec<Group>,
    /// `None`: gradients are not clipped.
    pub(crate) max_grad_norm: Option<f64>,
}

/// Hyper-parameters of some tensors.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// All of them, but for `lr`, which is `rate`'s.
    settings: AdamWConfig,
    rate: Rate,
    /// The tensors; `None` stands for all.
    tensors: Option<Vec<u64>>,
}

/// The learning rate over the steps.
#[derive(Clone, Debug)]
enum Rate {
    Constant(f64),
    /// One for each step.
    Listed(Vec<f64>),
}

impl Group {
    /// The settings of step `step`, counted from 1.
    pub(crate) fn at(&self, step: u64) -> AdamWConfig {
        let lr = match &self.rate {
            Rate::Constant(lr) => *lr,
            // The reader has made the list as long as the trace, so the default is never taken.
            Rate::Listed(list) => usize::try_from(step - 1).ok().and_then(|i| list.get(i)).copied().unwrap_or_default(),
        };
        AdamWConfig { lr, ..self.settings }
    }
}

impl Config {
    pub(crate) fn parse(json: &str, steps: u64) -> Result<Self, TraceError> {
        let json = json::parse(json.as_bytes());
        let json = json.map_err(|error| error.of("metadata `config`", TraceError::ConfigJson))?;
        let root = Object::new(&json, Place::Config)?;
        let base = root.group(&Group::default(), steps)?;
        let groups = match root.map.get("groups") {
            None | Some(Value::Null) => vec![base],
            Some(list) => override_groups(list, &base, steps)?,
        };
        Ok(Self { groups, max_grad_norm: root.max_grad_norm()? })
    }

    /// The group of each of `tensors` tensors: every one must be in exactly one.
    pub(crate) fn assign(&self, tensors: usize) -> Result<Vec<usize>, TraceError> {
        let mut group_of = vec![None; tensors];
        for (index, group) in self.groups.iter().enumerate() {
            match &group.tensors {
                None => group_of.fill(Some(index)),
                Some(members) => join(&mut group_of, index, members)?,
            }
        }
        let groups = self.groups.len();
        let alone = |tensor| TraceError::GroupNone { tensor, tensors, groups };
        group_of.iter().enumerate().map(|(tensor, group)| group.ok_or_else(|| alone(tensor))).collect()
    }
}

impl Default for Group {
    fn default() -> Self {
        let settings = AdamWConfig::default();
        Self { rate: Rate::Constant(settings.lr), settings, tensors: None }
    }
}

fn join(group_of: &mut [Option<usize>], index: usize, members: &[u64]) -> Result<(), TraceError> {
    let tensors = group_of.len();
    let place = Place::Group(index);
    for &tensor in members {
        let range = || TraceError::GroupRange { place, tensor, tensors };
        let tensor = usize::try_from(tensor).map_err(|_| range())?;
        let slot = group_of.get_mut(tensor).ok_or_else(range)?;
        if let Some(first) = slot.replace(index) {
            return Err(TraceError::GroupTwice { tensor, first: Place::Group(first), second: place });
        }
    }
    Ok(())
}

fn override_groups(list: &Value, base: &Group, steps: u64) -> Result<Vec<Group>, TraceError> {
    let expected = "a list of objects";
    let wrong = || TraceError::Value { place: Place::Config, key: "groups", expected, found: quoted_json(list) };
    let objects = list.as_array().ok_or_else(wrong)?.iter().enumerate();
    objects.map(|(index, group)| Object::new(group, Place::Group(index))?.group(base, steps)).collect()
}

/// An object of the config; every key of it is known.
struct Object<'a> {
    map: &'a Map<String, Value>,
    place: Place,
}

const KEYS: [&str; 7] = ["algorithm", "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"];

impl<'a> Object<'a> {
    fn new(value: &'a Value, place: Place) -> Result<Self, TraceError> {
        let key = if place == Place::Config { "config" } else { "groups" };
        let wrong = || TraceError::Value { place, key, expected: "an object", found: quoted_json(value) };
        let map = value.as_object().ok_or_else(wrong)?;
        // A key that is skipped in silence is an option that is not tested: a misspelt `amsgrad` passes then.
        let own: &[&str] = if place == Place::Config { &["max_grad_norm", "groups"] } else { &["tensors"] };
        let unknown = map.keys().find(|key| !KEYS.contains(&key.as_str()) && !own.contains(&key.as_str()));
        match unknown {
            Some(key) => Err(TraceError::UnknownKey { place, key: Quoted::new(key) }),
            None => Ok(Self { map, place }),
        }
    }

    /// `base`, with what this object overrides.
    fn group(&self, base: &Group, steps: u64) -> Result<Group, TraceError> {
        let old = &base.settings;
        let settings = AdamWConfig {
            algorithm: self.get("algorithm", "\"adamw\" or \"adam\"", algorithm)?.unwrap_or(old.algorithm),
            betas: self.get("betas", "two numbers", pair)?.unwrap_or(old.betas),
            eps: self.get("eps", "a number", Value::as_f64)?.unwrap_or(old.eps),
            weight_decay: self.get("weight_decay", "a number", Value::as_f64)?.unwrap_or(old.weight_decay),
            amsgrad: self.get("amsgrad", "true or false", Value::as_bool)?.unwrap_or(old.amsgrad),
            maximize: self.get("maximize", "true or false", Value::as_bool)?.unwrap_or(old.maximize),
            ..*old
        };
        let rate = self.get("lr", "a number or a list of numbers", rate)?.unwrap_or_else(|| base.rate.clone());
        self.check_length(&rate, steps)?;
        Ok(Group { settings, rate, tensors: self.tensors()? })
    }

    fn get<T>(
        &self,
        key: &'static str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, TraceError> {
        let wrong = |value| TraceError::Value { place: self.place, key, expected, found: quoted_json(value) };
        self.map.get(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    fn check_length(&self, rate: &Rate, steps: u64) -> Result<(), TraceError> {
        match rate {
            Rate::Listed(list) if list.len() as u64 != steps => {
                Err(TraceError::LrLength { place: self.place, steps, found: list.len() })
            }
            _ => Ok(()),
        }
    }

    fn tensors(&self) -> Result<Option<Vec<u64>>, TraceError> {
        let expected = "a list of tensor indices";
        let members = self.get("tensors", expected, indices)?;
        let missing =
            || TraceError::Value { place: self.place, key: "tensors", expected, found: Quoted::new("nothing") };
        match self.place {
            Place::Group(_) if members.is_none() => Err(missing()),
            _ => Ok(members),
        }
    }

    /// Absent and `null` (PyTorch's `None`) alike mean no clipping.
    fn max_grad_norm(&self) -> Result<Option<f64>, TraceError> {
        let positive = |value: &Value| not_negative(value).filter(|&x| x > 0.0);
        let limit = |value: &Value| if value.is_null() { Some(None) } else { positive(value).map(Some) };
        Ok(self.get("max_grad_norm", "a number above 0", limit)?.flatten())
    }
}

fn algorithm(value: &Value) -> Option<Algorithm> {
    match value.as_str()? {
        "adamw" => Some(Algorithm::AdamW),
        "adam" => Some(Algorithm::Adam),
        _ => None,
    }
}

fn not_negative(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&x| x >= 0.0)
}

fn pair(value: &Value) -> Option<(f64, f64)> {
    match value.as_array()?.as_slice() {
        [first, second] => first.as_f64().zip(second.as_f64()),
        _ => None,
    }
}

fn rate(value: &Value) -> Option<Rate> {
    match value {
        Value::Array(list) => list.iter().map(Value::as_f64).collect::<Option<_>>().map(Rate::Listed),
        number => number.as_f64().map(Rate::Constant),
    }
}

fn indices(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(Value::as_u64).collect()
}
