//! The same bits, by a C++ compiler (`$CXX`, c++, g++ or clang++); without one these tests say that they skip, and
//! `FUSED_ADAMW_REQUIRE_CXX=1` makes that a failure.

use crate::alarm::Alarm;
use crate::control::{Control, LossScale, NonFinite};
use crate::decide::{decide, is_bad_sum, unscale_of};
use crate::exact_sum::ExactSum;
use crate::fma::Fused;
use crate::rounding::{bf16_to_f32, f16_to_f32, f32_to_bf16_rn, f32_to_f16_rn};
use crate::scalars::step_scalars;
use crate::schedule::{Decay, Schedule};
use crate::table::{
    AlarmParams, AlarmState, ControlParams, ControlState, Element, Gradients, Hyper, Overrun, Peak, ScheduleParams,
    StepScalars, step_flags,
};
use crate::update::update;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

/// A C++ compiler, or `None` after saying so.
fn cxx() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let works = |cxx: &String| Command::new(cxx).arg("--version").output().is_ok_and(|out| out.status.success());
    let found = named.into_iter().chain(["c++", "g++", "clang++"].map(String::from)).find(works);
    if found.is_none() {
        assert!(std::env::var_os("FUSED_ADAMW_REQUIRE_CXX").is_none(), "no C++ compiler");
        // Once, and not by `eprintln!`: a test that passes would keep it to itself.
        static ONCE: Once = Once::new();
        let say =
            || std::io::stderr().write_all(b"SKIPPED: no C++ compiler, the bits of the .cuh files are not compared\n");
        ONCE.call_once(|| say().unwrap());
    }
    found
}

/// The program `source`, compiled with `cuda/` among its headers.
fn compiled(name: &str, source: &str) -> Option<PathBuf> {
    let cxx = cxx()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = std::env::temp_dir().join(format!("fused-adamw-{name}-{}", std::process::id()));
    let mut compiler = Command::new(cxx)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wno-unused-function", "-x", "c++", "-", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(root.join("cuda"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success(), "{name} does not compile");
    Some(program)
}

/// What the program makes of `input`; the program is removed.
fn run(program: &Path, input: Vec<u8>) -> Vec<u8> {
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    std::fs::remove_file(program).unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A program that reads `input` records, and for each runs `body` and writes `output`.
fn filter(headers: &str, input: &str, body: &str, output: &str) -> String {
    format!(
        "{headers}\n#include <cstdio>\nint main() {{ {input} in; while (fread(&in, sizeof in, 1, stdin) == 1) {{\n\
         {body}\nfwrite(&{output}, sizeof {output}, 1, stdout); }} }}\n"
    )
}

fn le(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Half of any bit pattern (subnormals, infinities, NaN), half of a size that meets in practice.
fn any_f32(random: &mut StdRng) -> f32 {
    let any = f32::from_bits(random.random());
    if random.random() { any } else { random.random_range(-2.0_f32..2.0) * 2.0_f32.powi(random.random_range(-40..10)) }
}

fn any_hyper(random: &mut StdRng) -> Hyper {
    let beta = |random: &mut StdRng| [0.0, 0.3, 0.5, 0.9, 0.95, 0.999, 0.999_999][random.random_range(0..7)];
    Hyper {
        lr: 10.0_f64.powf(random.random_range(-6.0..0.0)),
        beta1: beta(random),
        beta2: beta(random),
        eps: [0.0, 1e-15, 1e-8, 1e-3][random.random_range(0..4)],
        weight_decay: [0.0, 1e-2, 0.3][random.random_range(0..3)],
        flags: random.random_range(0..8),
    }
}

fn hyper_words(h: &Hyper) -> Vec<u32> {
    let numbers = halves(&[h.lr, h.beta1, h.beta2, h.eps, h.weight_decay].map(f64::to_bits));
    numbers.into_iter().chain([h.flags, 0]).collect()
}

fn scalar_words(s: &StepScalars) -> Vec<u32> {
    let numbers =
        [s.grad_scale, s.weight_decay, s.lerp1, s.lerp2, s.inv_sqrt_bias_correction2, s.eps, s.decay, s.step_size];
    numbers.into_iter().map(f32::to_bits).chain([s.flags]).collect()
}

#[test]
fn step_scalars_has_the_same_bits_in_cpp() {
    let source = filter(
        "#include \"scalars.cuh\"",
        "struct { Hyper h; u64 t; f64 grad_scale; }",
        "const StepScalars s = step_scalars(in.h, in.t, in.grad_scale);",
        "s",
    );
    let Some(program) = compiled("scalars", &source) else { return };
    let mut random = StdRng::seed_from_u64(1);
    let (mut input, mut wanted) = (Vec::new(), Vec::new());
    for i in 0..100_000_u64 {
        let (h, grad_scale) = (any_hyper(&mut random), random.random_range(0.0..4.0_f64));
        let t = if i % 2 == 0 { 1 + i / 2 } else { random.random::<u64>() >> random.random_range(0..64) };
        input.extend(hyper_words(&h));
        input.extend(halves(&[t, grad_scale.to_bits()]));
        wanted.extend(scalar_words(&step_scalars(&h, t, grad_scale)));
    }
    assert!(words(&run(&program, le(&input))) == wanted);
}

#[test]
fn update_has_the_same_bits_in_cpp_over_a_million_elements() {
    let source = filter(
        "#include \"update.cuh\"",
        "struct { StepScalars s; f32 g; Element e; }",
        "update(in.s, in.g, in.e);",
        "in.e",
    );
    let Some(program) = compiled("update", &source) else { return };
    let mut random = StdRng::seed_from_u64(2);
    let (mut input, mut wanted) = (Vec::new(), Vec::new());
    let mut flags_seen = 0;
    for i in 0..1_000_000_u64 {
        let s = step_scalars(&any_hyper(&mut random), 1 + i % 1000, random.random_range(0.0..2.0));
        let [g, p, m, v, vmax] = [(); 5].map(|()| any_f32(&mut random));
        // Second moments are not negative; that they may be NaN or infinite is part of the test.
        let mut e = Element { p, m, v: v.abs(), vmax: vmax.abs() };
        input.extend(scalar_words(&s));
        input.extend([g, e.p, e.m, e.v, e.vmax].map(f32::to_bits));
        update(&Fused, &s, g, &mut e);
        wanted.extend([e.p, e.m, e.v, e.vmax].map(f32::to_bits));
        flags_seen |= s.flags;
    }
    assert!(words(&run(&program, le(&input))) == wanted);
    let all =
        [step_flags::L2, step_flags::MAXIMIZE, step_flags::AMSGRAD, step_flags::SMALL_BETA1, step_flags::SMALL_BETA2];
    assert_eq!(flags_seen, all.iter().sum::<u32>());
}

#[test]
fn the_16_bit_formats_have_the_same_bits_in_cpp() {
    let source = filter(
        "#include \"rounding.cuh\"",
        "u32",
        "const f32 x = from_bits(in); u32 out[4] = { f32_to_bf16_rn(x), f32_to_f16_rn(x), \
         to_bits(bf16_to_f32(in & 0xffff)), to_bits(f16_to_f32(in & 0xffff)) };",
        "out",
    );
    let Some(program) = compiled("rounding", &source) else { return };
    let mut random = StdRng::seed_from_u64(3);
    let every_half = (0..=u32::from(u16::MAX)).flat_map(|half| [half, half << 16 | 0x8000, half << 13 | 0x1000]);
    let input: Vec<u32> = every_half.chain((0..1_000_000).map(|_| any_f32(&mut random).to_bits())).collect();
    let wide = |bits: u32| [bf16_to_f32(bits & 0xffff), f16_to_f32(bits & 0xffff)].map(f32::to_bits);
    let narrow = |bits: u32| [f32_to_bf16_rn(f32::from_bits(bits)), f32_to_f16_rn(f32::from_bits(bits))];
    let wanted: Vec<u32> = input.iter().flat_map(|&bits| narrow(bits).into_iter().chain(wide(bits))).collect();
    assert!(words(&run(&program, le(&input))) == wanted);
}

fn any_control(random: &mut StdRng) -> Control {
    let one_of = |random: &mut StdRng, values: &[u64]| values[random.random_range(0..values.len())];
    let (warmup, start) = (one_of(random, &[0, 1, 10]), one_of(random, &[0, 10, 50]));
    let end = start.max(warmup) + one_of(random, &[1, 40]);
    let floor = [0.0, 0.1, 1.0][random.random_range(0..3)];
    let decay = match random.random_range(0..5) {
        0 => Decay::Constant,
        1 => Decay::Cosine { end, floor },
        2 => Decay::Linear { start, end, floor },
        3 => Decay::InverseSqrt,
        _ => Decay::List([0.5, 2.0, 0.0].into()),
    };
    let policies = [NonFinite::Propagate, NonFinite::SkipStep, NonFinite::SkipTensor, NonFinite::Error];
    Control {
        max_grad_norm: random.random::<bool>().then_some(1.0),
        non_finite: policies[random.random_range(0..4)],
        loss_scale: random.random::<bool>().then(|| any_loss_scale(random)),
        schedule: Schedule { warmup, decay },
        norm_alarm: any_alarm(random),
        rms_alarm: any_alarm(random),
        ..Control::default()
    }
}

fn any_loss_scale(random: &mut StdRng) -> LossScale {
    let exponent = random.random_range(-149..128);
    LossScale {
        init_scale: (2.0_f64.powi(exponent)) as f32,
        growth_interval: [1, 2, 2000][random.random_range(0..3)],
        min_scale: [f32::MIN_POSITIVE, 1.0, 1024.0][random.random_range(0..3)],
        ..LossScale::default()
    }
}

fn any_alarm(random: &mut StdRng) -> Option<Alarm> {
    let (sigmas, steps) = ([0.0, 2.5][random.random_range(0..2)], [2, 5, 128][random.random_range(0..3)]);
    random.random::<bool>().then(|| Alarm { sigmas, steps, skip: random.random() })
}

fn halves(numbers: &[u64]) -> Vec<u32> {
    numbers.iter().flat_map(|&x| [(x & 0xffff_ffff) as u32, (x >> 32) as u32]).collect()
}

fn params_words(c: &ControlParams) -> Vec<u32> {
    let ScheduleParams { warmup, start, end, floor, list, list_len, kind } = c.schedule;
    let numbers = [c.max_grad_norm.to_bits(), c.growth_factor.to_bits(), c.backoff_factor.to_bits(), c.growth_interval];
    let schedule = halves(&[warmup, start, end, floor.to_bits(), list, list_len]);
    let alarm = |a: AlarmParams| halves(&[a.sigmas.to_bits(), a.steps, a.flags.into()]);
    let last = [c.min_loss_scale.to_bits(), c.flags];
    let last =
        halves(&[c.max_skipped]).into_iter().chain([c.norm_alarm, c.rms_alarm].into_iter().flat_map(alarm)).chain(last);
    schedule.into_iter().chain([kind, 0]).chain(halves(&numbers)).chain(last).collect()
}

fn state_words(s: &ControlState) -> Vec<u32> {
    let numbers = halves(&[s.grad_norm, s.grad_scale, s.lr_factor].map(f64::to_bits));
    let counts = halves(&[s.applied, s.skipped, s.skipped_running, s.growth_tracker]);
    let seen = halves(&[s.non_finite, s.unscale.to_bits(), s.rms.to_bits()]);
    let alarm = |a: AlarmState| halves(&[a.mean.to_bits(), a.variance.to_bits(), a.count, a.alarms, a.raised]);
    let alarms = [s.norm_alarm, s.rms_alarm].into_iter().flat_map(alarm);
    let Overrun { count, skipped_running, non_finite, grad_norm } = s.overrun;
    let overrun = halves(&[count, skipped_running, non_finite, grad_norm.to_bits()]);
    let last = [s.loss_scale.to_bits(), s.skip, s.rms_tensor, s.left_out, s.has_norm, s.padding];
    [counts, numbers, seen].into_iter().flatten().chain(alarms).chain(overrun).chain(last).collect()
}

// A run of 20 steps of each of many controls: the state of one is that of the next.
#[test]
fn decide_has_the_same_bits_in_cpp() {
    let source = filter(
        "#include \"decide.cuh\"",
        "struct { ControlParams c; Gradients g; Peak peak; f64 listed, grad_scale; ControlState s; }",
        "decide(in.c, in.g, in.peak, in.listed, unscale_of(in.grad_scale, in.s.loss_scale), in.s);",
        "in.s",
    );
    let Some(program) = compiled("decide", &source) else { return };
    let mut random = StdRng::seed_from_u64(4);
    let (mut input, mut wanted) = (Vec::new(), Vec::new());
    for _ in 0..5000 {
        let control = any_control(&mut random);
        let params = control.params(0);
        let mut state = ControlState { applied: random.random_range(0..100), ..control.first_state(None) };
        for _ in 0..20 {
            let squares = [0.0, 1e-30, 7.5, 1e30, f64::INFINITY, f64::NAN][random.random_range(0..6)];
            let non_finite = if random.random() { 0 } else { random.random_range(0..3) };
            let grad_scale = [0.0, 1e-45, 1.0, 1e10, 3.4e38, random.random_range(0.0..4.0)][random.random_range(0..6)];
            let listed = control.schedule.listed(state.applied);
            let square = [-1.0, 0.0, 0.9, 1.1, 300.0][random.random_range(0..5)];
            let peak = Peak { square, tensor: random.random_range(0..3) };
            let [bad, good] = [(); 2].map(|()| random.random_range(0..2));
            let g = Gradients { squares, non_finite, bad, good };
            let numbers = [squares.to_bits(), non_finite, bad, good, square.to_bits(), peak.tensor.into()];
            let numbers = halves(&numbers).into_iter().chain(halves(&[listed, grad_scale].map(f64::to_bits)));
            input.extend(params_words(&params).into_iter().chain(numbers).chain(state_words(&state)));
            decide(&params, &g, &peak, listed, unscale_of(grad_scale, state.loss_scale), &mut state);
            wanted.extend(state_words(&state));
        }
    }
    assert!(words(&run(&program, le(&input))) == wanted);
}

// Chunks of up to 40 addends of any size, and whether each is bad.
#[test]
fn exact_sums_have_the_same_bits_in_cpp() {
    let source = filter(
        "#include \"exact_sum.cuh\"\n#include \"decide.cuh\"",
        "struct { f32 x[40]; f64 unscale; }",
        "u64 all[EXACT_WORDS] = {}; u64* const words = all; for (f32 x : in.x) exact_add(words, x);\n\
         u64 out[2] = { 0, is_bad_sum(in.x[0], in.unscale) }; const f64 sum = exact_value(words);\n\
         memcpy(out, &sum, sizeof sum);",
        "out",
    );
    let Some(program) = compiled("exact-sum", &source) else { return };
    let mut random = StdRng::seed_from_u64(5);
    let (mut input, mut wanted) = (Vec::new(), Vec::new());
    for _ in 0..20_000 {
        let special = random.random_range(0..20) == 0;
        let any = |random: &mut StdRng| {
            f32::from_bits(random.random_range(0..if special { 0x7fc0_0001 } else { 0x7f80_0000 }))
        };
        let addends: [f32; 40] = std::array::from_fn(|_| any(&mut random));
        let unscale = 10.0_f64.powf(random.random_range(-50.0..50.0));
        let mut sum = ExactSum::default();
        addends.iter().for_each(|&x| sum.add(x));
        input.extend(addends.map(f32::to_bits).into_iter().chain(halves(&[unscale.to_bits()])));
        wanted.extend(halves(&[sum.value().to_bits(), is_bad_sum(addends[0], unscale).into()]));
    }
    assert!(words(&run(&program, le(&input))) == wanted);
}
