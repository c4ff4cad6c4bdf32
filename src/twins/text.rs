//! The same lines, the same constants, the same fields.

const FLAGS: [&str; 2] = [include_str!("../flags.rs"), include_str!("../../cuda/table.cuh")];
const TABLE: [&str; 2] = [include_str!("../table.rs"), include_str!("../../cuda/table.cuh")];
const ROUNDING: [&str; 2] = [include_str!("../rounding.rs"), include_str!("../../cuda/rounding.cuh")];
const SCALARS: [&str; 2] = [include_str!("../scalars.rs"), include_str!("../../cuda/scalars.cuh")];
const DECIDE: [&str; 2] = [include_str!("../decide.rs"), include_str!("../../cuda/decide.cuh")];
const FULL: [&str; 2] = [include_str!("../full.rs"), include_str!("../../cuda/full.cuh")];
const COLLECT: [&str; 2] = [include_str!("../collect.rs"), include_str!("../../cuda/collect.cuh")];
const EXACT_SUM: [&str; 2] = [include_str!("../exact_sum.rs"), include_str!("../../cuda/exact_sum.cuh")];
const UPDATE: [&str; 2] = [include_str!("../update.rs"), include_str!("../../cuda/update.cuh")];

/// The lines between `// twin: NAME {` and `// } twin`, without their indentation.
fn twin<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("// twin: {name} {{");
    let lines = source.lines().map(str::trim);
    lines.skip_while(|line| *line != start).skip(1).take_while(|line| *line != "// } twin").collect()
}

/// A line of CUDA C++ as Rust writes it: declarations, constants, and suffixes of numbers.
fn as_rust(line: &str) -> String {
    let declared = ["f32", "f64", "u32", "u64", "bool"].iter().fold(line.to_owned(), |line, ty| {
        let fresh = line.strip_prefix(&format!("const {ty} ")).map(|rest| format!("let {rest}"));
        let changing = || line.strip_prefix(&format!("{ty} ")).map(|rest| format!("let mut {rest}"));
        fresh.or_else(changing).unwrap_or_else(|| line.clone())
    });
    let constant = declared.strip_prefix("constexpr ").and_then(|rest| rest.split_once(' '));
    let declared = match constant.and_then(|(ty, rest)| Some((ty, rest.split_once(" = ")?))) {
        Some((ty, (name, value))) => format!("pub(crate) const {name}: {ty} = {value}"),
        None => declared,
    };
    without_suffixes(&declared)
}

/// `0x7fu`, `0ull` and `0.5f` without their last letters.
fn without_suffixes(line: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    line.split_inclusive(|c| !is_word(c)).map(without_suffix).collect()
}

fn without_suffix(piece: &str) -> String {
    let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric());
    let is_number = word.starts_with(|c: char| c.is_ascii_digit());
    let short = match word.strip_suffix("ull").or(word.strip_suffix('u')) {
        Some(short) if is_number => short,
        _ if is_number && word.ends_with('f') && !word.starts_with("0x") => &word[..word.len() - 1],
        _ => word,
    };
    format!("{short}{}", &piece[word.len()..])
}

fn assert_same_text([rust, cuda]: [&str; 2], name: &str, lines: usize) {
    let rust = twin(rust, name);
    let cuda: Vec<String> = twin(cuda, name).into_iter().map(as_rust).collect();
    assert_eq!(rust, cuda, "{name}");
    assert!(rust.len() >= lines, "the marks of {name} enclose its whole body: {rust:?}");
}

/// The lines from the one that begins with `start` on, itself left out, that no twin encloses.
fn outside_of_twins<'a>(source: &'a str, start: &str) -> Vec<&'a str> {
    let (mut lines, mut outside) = (source.lines().skip_while(|line| !line.starts_with(start)).skip(1), Vec::new());
    while let Some(line) = lines.next() {
        if line.trim().starts_with("// twin: ") {
            lines.by_ref().find(|line| line.trim() == "// } twin");
        } else {
            outside.push(line);
        }
    }
    outside
}

#[test]
fn the_bodies_are_the_same_text_comments_included() {
    let of_update = [("gradient", 3), ("first moment", 2), ("second moment", 3), ("denominator", 2)];
    for (name, lines) in of_update.into_iter().chain([("parameter", 4), ("stored", 4)]) {
        assert_same_text(UPDATE, name, lines);
    }
    assert_eq!(outside_of_twins(UPDATE[1], "DEVICE void update("), ["}"], "the parts are all of it");
    assert_same_text(SCALARS, "pow_rn64", 9);
    assert_same_text(SCALARS, "step_scalars", 14);
    for (name, lines) in [
        ("cos_pi", 14),
        ("schedule_factor", 14),
        ("clip_factor", 2),
        ("is_bad_sum", 3),
        ("is_usable", 2),
        ("next_loss_scale", 8),
        ("peak_of", 5),
        ("larger", 5),
        ("watch", 17),
        ("skips", 1),
        ("overran", 5),
        ("unscale_of", 1),
        ("decide", 29),
    ] {
        assert_same_text(DECIDE, name, lines);
    }
    assert_same_text([include_str!("../accumulate.rs"), include_str!("../../cuda/accumulate.cuh")], "next_sum", 1);
    for (name, lines) in [("clamp", 2), ("measure", 13), ("add", 10)] {
        assert_same_text(FULL, name, lines);
    }
    assert_same_text(COLLECT, "add", 10);
    assert_same_text(EXACT_SUM, "exact_add", 12);
    assert_same_text(EXACT_SUM, "exact_value", 28);
    let functions = ["canonical", "max_nan", "bf16_to_f32", "f32_to_bf16_rn", "f16_to_f32", "f32_to_f16_rn"];
    functions.into_iter().for_each(|name| assert_same_text(ROUNDING, name, 1));
}

#[test]
fn the_constants_are_the_same() {
    assert_same_text(FLAGS, "dtypes", 3);
    assert_same_text(FLAGS, "row flags", 4);
    assert_same_text(FLAGS, "firsts", 3);
    assert_same_text(FLAGS, "step flags", 6);
    assert_same_text(FLAGS, "control flags", 4);
    assert_same_text(FLAGS, "exact words", 4);
    assert_same_text(FLAGS, "norm words", 2);
    assert_same_text(FLAGS, "alarm flags", 2);
    assert_same_text(FLAGS, "full flags", 2);
    assert_same_text(FLAGS, "sums flags", 2);
    assert_same_text(FLAGS, "schedule kinds", 5);
    let value = |source: &str, before: &str| {
        let line = source.lines().find_map(|line| line.trim().strip_prefix(before)).unwrap();
        line.trim_end_matches(';').to_owned()
    };
    let inline = value(TABLE[0], "pub(crate) const INLINE_SCALARS: usize = ");
    assert_eq!(inline, value(TABLE[1], "constexpr u32 INLINE_SCALARS = "));
    let block = value(include_str!("../cuda.rs"), "pub(crate) const BLOCK: u32 = ");
    assert_eq!(block, value(include_str!("../../cuda/block.cuh"), "constexpr u32 BLOCK = "));
    let block = value(include_str!("../cuda_control.rs"), "const FINALIZE_BLOCK: u32 = ");
    assert_eq!(block, value(include_str!("../../cuda/finalize.cuh"), "constexpr u32 FINALIZE_BLOCK = "));
}

/// `name type` of every field of a struct.
fn fields(source: &str, of: &str, parse: fn(&str) -> Option<String>) -> Vec<String> {
    let body = source.split_once(&format!("struct {of} {{")).unwrap().1;
    body.lines().take_while(|line| !line.starts_with('}')).filter_map(|line| parse(line.trim())).collect()
}

fn rust_field(line: &str) -> Option<String> {
    let (name, ty) = line.strip_prefix("pub(crate) ")?.strip_suffix(',')?.split_once(": ")?;
    Some(format!("{name} {ty}"))
}

fn cuda_field(line: &str) -> Option<String> {
    let (ty, name) = line.strip_suffix(';')?.split_once(' ')?;
    Some(format!("{name} {ty}"))
}

#[test]
fn the_structs_have_the_same_fields_in_the_same_order() {
    let controlled = [("ScheduleParams", 7), ("ControlParams", 10), ("ControlState", 19), ("Class", 2), ("Counter", 2)];
    let structs = [("TensorRow", 11), ("Chunk", 3), ("Hyper", 6), ("StepScalars", 9), ("Element", 4), ("Squares", 2)];
    let full = [("FullParams", 2), ("Sums", 8), ("TensorSums", 9), ("CollectTables", 6), ("FinalizeTables", 15)];
    let alarm = [("AlarmParams", 3), ("AlarmState", 5), ("Peak", 2), ("Overrun", 4), ("Gradients", 4)];
    for (name, count) in
        structs.into_iter().chain(controlled).chain(full).chain(alarm).chain([("SumRow", 6), ("MasterRow", 6)])
    {
        let rust = fields(TABLE[0], name, rust_field);
        assert_eq!(rust, fields(TABLE[1], name, cuda_field), "{name}");
        assert_eq!(rust.len(), count, "{name}: {rust:?}");
    }
}
