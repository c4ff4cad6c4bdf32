//! The report as a page to read.

use crate::report::{Part, Report, mean};
use crate::rows::{Copied, PEERS, Quantiles, Step, Varied};
use crate::variants::OWN;

pub(crate) fn markdown(report: &Report) -> String {
    let sections = [heading(report), parts(report), copies(report), device_times(report), host_times(report)];
    sections.into_iter().chain([variants(report), failed_lists(report), tails(report)]).collect::<Vec<_>>().concat()
}

fn heading(report: &Report) -> String {
    let count = |status| report.parts.iter().filter(|part| part.status == status).count();
    let mut page = format!(
        "# fused-adamw on {}\n\n**{} parts passed, {} failed, {} skipped.**\n\n",
        report.facts.as_ref().map_or("no GPU", |facts| facts.name.as_str()),
        count("ok"),
        count("failed"),
        count("skipped"),
    );
    if let Some(facts) = &report.facts {
        page += &format!("- {}\n- compute capability {}, ", facts.device, facts.compute_capability);
        page += &format!("{} multiprocessors, ", facts.multiprocessors);
        page += &format!("{:.1} of {:.1} GB free\n", giga(facts.free_bytes), giga(facts.total_bytes));
        page += &format!("- the driver is for CUDA {}\n", facts.driver_cuda);
    }
    page.extend(report.peer.iter().map(|peer| format!("- compared with {}\n", peer.version)));
    page.extend(report.run.iter().map(|line| format!("- {line}\n")));
    page.extend(printed(report, "nvidia-smi"));
    page
}

/// What the parts of this name have printed, where that is for people to read.
fn printed<'a>(report: &'a Report, name: &'a str) -> impl Iterator<Item = String> + 'a {
    report.parts.iter().filter(move |part| part.status == "ok" && part.name.starts_with(name)).map(quoted)
}

fn parts(report: &Report) -> String {
    let note = |part: &Part| part.note.replace('|', "\\|");
    let line = |part: &Part| format!("| {} | {} | {} | {} |\n", part.name, part.status, part.seconds, note(part));
    let lines: String = report.parts.iter().map(line).collect();
    format!("\n## Parts\n\n| part | result | seconds | |\n| --- | --- | --- | --- |\n{lines}")
}

fn copies(report: &Report) -> String {
    let line = |copy: &Copied| {
        let speed = copy.gb_per_s();
        format!("| {} | {} | {speed:.1} | {:.2} |\n", copy.bytes, milliseconds(&copy.ms), speed / 28.0)
    };
    let lines: String = report.copies.iter().map(line).collect();
    format!(
        "\n## Copy on the device\n\nMedian (10th and 90th percentile). GB/s count what is read and what is written; \
         the last column is what a step of 28 bytes an element would do at that speed.\n\n\
         | bytes | ms | GB/s | 10^9 elements/s |\n| --- | --- | --- | --- |\n{lines}"
    )
}

const HOW: &str = "Between two CUDA events, the host ahead of the GPU, the L2 cache flushed before each repeat, after \
a warm-up: median (10th and 90th percentile). Ours was measured before PyTorch and after it; the share of the fastest \
copy above and the ratios are of the mean of both. Bytes are what a step has to read and write for an element: with \
bf16 parameters we keep an f32 master and f32 moments, PyTorch keeps bf16 moments and no master; with f32 masters it \
steps f32 copies of parameters and gradients, for which the gradients are widened before and the parameters narrowed \
after the step.";

fn device_times(report: &Report) -> String {
    let mut page = format!("\n## A step, on the device\n\n{HOW}\n\n");
    page += "| list | tensors | elements | by | bytes | ms | GB/s | share of copy | time over ours |\n";
    page += "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for list in &report.lists {
        let share = list.share_of_copy.map_or(String::new(), |share| format!("{:.0}%", 100.0 * share));
        list.ours.iter().for_each(|step| page += &device_time(step, &share, None));
        list.peers.iter().for_each(|(step, ratio)| page += &device_time(step, "", *ratio));
    }
    page
}

fn device_time(step: &Step, share: &str, ratio: Option<f64>) -> String {
    let part = |count: usize, of: usize| if count == of { count.to_string() } else { format!("{count} of {of}") };
    format!(
        "| {} {} | {} | {} | {} | {} | {} | {:.1} | {share} | {} |\n",
        step.list,
        step.dtype,
        part(step.tensors, step.of_tensors),
        part(step.elements, step.of_elements),
        step.by,
        step.bytes_an_element,
        milliseconds(&step.ms),
        step.gb_per_s(),
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
    )
}

fn host_times(report: &Report) -> String {
    let mut page = "\n## A step, on the host\n\nMicroseconds until the call returns; nothing is waited for.\n\n\
                    | list | tensors | ours | ours again | "
        .to_owned();
    page += &format!("{} |\n{}\n", PEERS.join(" | "), "| --- ".repeat(4 + PEERS.len()) + "|");
    let time = |step: Option<&Step>| step.map_or(String::new(), |step| microseconds(&step.host_us));
    for list in &report.lists {
        let Some(any) = list.any() else { continue };
        let peer = |by: &&str| list.peers.iter().map(|(peer, _)| peer).find(|peer| peer.by == *by);
        let steps = [list.ours.first(), list.ours.get(1)].into_iter().chain(PEERS.iter().map(peer));
        let times: Vec<_> = steps.map(time).collect();
        page += &format!("| {} {} | {} | {} |\n", any.list, any.dtype, any.tensors, times.join(" | "));
    }
    page += "\nOf tensors of 8 elements, by how streams are kept apart (events: cudarc's tracking), and of a step of \
             tensors that are named once (`step_prepared`):\n";
    page.extend(printed(report, "host"));
    page += "\nOf a process, once, each waited for: nothing compiled before, then with the driver's cache:\n";
    page.extend(printed(report, "start"));
    page
}

const VARIED: &str = "One after the other, each with the CPU's bits; the crate's own first and last, and the ratio is \
to the mean of both. What is expected, and why: `benches/record/PREDICTIONS.md`.";

fn variants(report: &Report) -> String {
    let lines: String = report.varied.iter().map(|varied| variant(varied, &report.varied)).collect();
    if lines.is_empty() {
        return lines;
    }
    let head = "| list | variant | ms | GB/s | time over own | expected |\n| --- | --- | --- | --- | --- | --- |\n";
    format!("\n## Variants\n\n{VARIED}\n\n{head}{lines}")
}

fn variant(varied: &Varied, all: &[Varied]) -> String {
    let own = |of: &&Varied| of.variant == OWN && (&of.list, &of.dtype) == (&varied.list, &varied.dtype);
    let own = mean(all.iter().filter(own).map(|own| own.ms.median));
    format!(
        "| {} {} | {} | {} | {:.1} | {} | {} |\n",
        varied.list,
        varied.dtype,
        varied.variant,
        milliseconds(&varied.ms),
        varied.gb_per_s(),
        own.map_or(String::new(), |own| format!("{:.3}", varied.ms.median / own)),
        varied.predicted,
    )
}

fn failed_lists(report: &Report) -> String {
    let lines = report.failed_lists.iter().map(|f| format!("- {} {}, {}: {}\n", f.list, f.dtype, f.by, f.why));
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("\n## Lists that were not stepped\n\n{lines}") }
}

/// What the failed parts printed last.
fn tails(report: &Report) -> String {
    let failed: Vec<_> = report.parts.iter().filter(|part| part.status == "failed").collect();
    let quote = |part: &&Part| format!("\n### {}: {}\n{}", part.name, part.note, quoted(part));
    let quotes: String = failed.iter().map(quote).collect();
    if failed.is_empty() { quotes } else { format!("\n## The last lines of what failed\n{quotes}") }
}

fn quoted(part: &Part) -> String {
    format!("\n````text\n{}\n````\n", part.tail.join("\n"))
}

fn milliseconds(times: &Quantiles) -> String {
    format!("{:.4} ({:.4}, {:.4})", times.median, times.p10, times.p90)
}

fn microseconds(times: &Quantiles) -> String {
    format!("{:.1} ({:.1}, {:.1})", times.median, times.p10, times.p90)
}

#[expect(clippy::cast_precision_loss, reason = "bytes far below 2^53")]
fn giga(bytes: usize) -> f64 {
    bytes as f64 / 1e9
}
