"""From turns to the table: peers.csv (a row for every run), peers.md (over all runs) and peers.png."""

import csv
import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from contenders import LIMIT, OURS

ROOT = Path(__file__).resolve().parent.parent.parent
LABELS = ["list", "threads", "contender", "ms", "p10 to p90", "of the limit", "times ours", "turns", "note"]


@dataclass
class Row:
    """A contender in a case of a run. Times are in ms; empty where it failed."""

    run: int
    list: str
    dtype: str
    threads: int
    contender: str
    turns: int = 0
    ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    of_limit: float | None = None
    times_ours: float | None = None
    note: str = ""


class Results:
    def __init__(self):
        self.turns = {}  # case -> contender -> (sitting, round) -> nanoseconds of a step; of the limit's walks
        self.notes = {}

    def turn(self, case, name, place, times):
        self.turns.setdefault(case, {}).setdefault(name, {})[place] = times

    def note(self, case, name, text):
        if text:
            self.notes[*case, name] = text

    def rows(self, contenders):
        return [self.row(case, by_name, one.name) for case, by_name in self.turns.items() for one in contenders]

    def row(self, case, by_name, name):
        row = Row(*case, name, note=self.notes.get((*case, name), ""))
        if name not in by_name:
            return row
        walk, limit = limit_of(by_name)
        ours = {place: times[0] for place, times in by_name[OURS].items()}
        steps = limit if name == LIMIT else {place: times[0] for place, times in by_name[name].items()}
        row.turns = len(steps)
        row.p10_ms, row.ms, row.p90_ms = (1e-6 * quantile(steps.values(), tenths) for tenths in (1, 5, 9))
        row.of_limit = median(limit[place] / step for place, step in steps.items())
        row.times_ours = median(step / ours[place] for place, step in steps.items())
        if name == LIMIT:
            row.note = walk
        return row


def limit_of(by_name):
    """The better of the limit's two walks in this case."""
    walks = [{place: times[i] for place, times in by_name[LIMIT].items()} for i in range(2)]
    best = min((0, 1), key=lambda i: median(walks[i].values()))
    return ("plain walk", "walk at two places")[best], walks[best]


def quantile(values, tenths):
    values = sorted(values)
    return values[round((len(values) - 1) * tenths / 10)]


def merged(rows):
    """A contender's rows of all runs: for each number the median, lowest and highest."""
    numbers = {}
    for name in ("ms", "p10_ms", "p90_ms", "of_limit", "times_ours"):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        numbers[name] = (median(values), min(values), max(values)) if values else None
    return numbers, sum(row.turns for row in rows), "; ".join(dict.fromkeys(row.note for row in rows if row.note))


def cells(rows):
    first = rows[0]
    numbers, turns, note = merged(rows)
    line = [first.list, str(first.threads), first.contender]
    if not numbers["ms"]:
        return [*line, *["-"] * 4, "0", note]
    spread = f"{digits(numbers['p10_ms'][0])} to {digits(numbers['p90_ms'][0])}"
    compared = [over_runs(numbers["of_limit"], percent, len(rows)), over_runs(numbers["times_ours"], digits, len(rows))]
    return [*line, digits(numbers["ms"][0]), spread, *compared, str(turns), note]


def over_runs(of, form, runs):
    middle, lowest, highest = map(form, of)
    return f"{middle} ({lowest} to {highest})" if runs > 1 else middle


def percent(share):
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.2g}%"


def digits(value):
    """Three of them."""
    return f"{value:#.3g}".rstrip(".") if value < 100 else f"{value:.0f}"


def by_case(rows):
    """The runs of each contender, case after case."""
    groups = {}
    for row in rows:
        groups.setdefault((row.dtype, row.list, row.threads, row.contender), []).append(row)
    return groups


def markdown(lines):
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def shares(groups, dtype, threads, contenders):
    """The short table: a line a list."""
    names = [one.name for one in contenders if one.name != LIMIT]
    lists = dict.fromkeys(name for of, name, _, _ in groups if of == dtype)

    def cell(name, contender):
        of_limit = merged(groups[dtype, name, threads, contender])[0]["of_limit"]
        return percent(of_limit[0]) if of_limit else "-"

    return markdown([["list", *names], *([name, *(cell(name, one) for one in names)] for name in lists)])


def head(args):
    """What ran where; the load is that before the run, because later it is ours."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    widest = next((simd for simd in ("avx512f", "avx2") if f" {simd}" in cpu), "no AVX2")
    commit = shell("git", "-C", ROOT, "describe", "--always", "--dirty")
    command = shlex.join(["scripts/peers", *args.given])
    return "\n".join([
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`, fused-adamw at {commit}",
        f"- {model[1] if model else platform.machine()}, {os.cpu_count()} cores, {widest}; Linux {platform.release().split('-')[0]};"
        f" load before the run: {os.getloadavg()[0]:.2f}",
        f"- {shell('rustc', '--version')}, `-C target-cpu=native`; Python {platform.python_version()}",
        *(f"- {one.name}: {version(one.package)}; f32: {one.f32}; bf16: {one.bf16}" for one in args.contenders),
    ])  # fmt: skip


def shell(*command):
    try:
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version(package):
    lock = (ROOT / "benches/peers/Cargo.lock").read_text()
    if crate := re.search(rf'name = "{package}"\nversion = "(.*)"', lock):
        return f"{package} {crate[1]}"
    try:
        return f"{package} {importlib.metadata.version(package)}" if package else "ours"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed"


def write(results, args, head):
    rows = results.rows(args.contenders)
    with open(args.folder / "peers.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in asdict(row).items()} for row in rows)
    (args.folder / "peers.md").write_text(text(rows, args, head))
    draw(by_case(rows), args)


EXPLANATION = """\
- The limit: a read-modify-write of the same 28 bytes an element by the same threads with next to no arithmetic, by the
  better of two walks (benches/peers/src/limit.rs). Small lists stay in the cache, and their limit with them.
- ms: median over all turns of a step's time, and from the 10th to the 90th percentile. Shares of the limit and multiples
  of fused-adamw's time are medians over rounds, so that what they compare was measured side by side. Of several runs, each
  in processes of its own: the median, and in brackets the lowest and the highest.
- After two steps from the same values all parameters that were compared agree with fused-adamw's, or a note says how many
  do not. In bf16 the contenders keep different things, so that it is not the same work: see above."""


def text(rows, args, head):
    groups = by_case(rows)
    part = ["# AdamW's step on the CPU, beside its peers and the limit", head, EXPLANATION]
    for dtype in dict.fromkeys(row.dtype for row in rows):
        for threads in dict.fromkeys(row.threads for row in rows):
            part.append(f"## Share of the limit: {dtype}, {threads} thread(s)")
            part.append(shares(groups, dtype, threads, args.contenders))
    for dtype in dict.fromkeys(row.dtype for row in rows):
        part.append(f"## All figures: {dtype}")
        part.append(markdown([LABELS, *(cells(of) for (of_dtype, *_), of in groups.items() if of_dtype == dtype)]))
    return "\n\n".join(part) + "\n"


def draw(groups, args):
    try:
        from matplotlib import pyplot
    except ImportError as error:
        print(f"no peers.png: {error}", file=sys.stderr)
        return
    cases = list(dict.fromkeys((dtype, threads) for dtype, _, threads, _ in groups))
    size = {"figsize": (10, 3 * len(cases)), "layout": "constrained"}
    figure, axes = pyplot.subplots(len(cases), sharey=True, squeeze=False, **size)
    for axis, (dtype, threads) in zip(axes.flat, cases):
        panel(axis, {key: rows for key, rows in groups.items() if (key[0], key[2]) == (dtype, threads)}, args.contenders)
        axis.set_title(f"{dtype}, {threads} thread(s): share of the limit", loc="left", fontsize="medium")
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, ncols=len(args.contenders), loc="outside lower center", fontsize="small")
    figure.savefig(args.folder / "peers.png", dpi=110)
    pyplot.close(figure)


def panel(axis, groups, contenders):
    """List after list, the contenders side by side; a bar from the lowest run to the highest."""
    names = list(dict.fromkeys(name for _, name, _, _ in groups))
    steppers = [one.name for one in contenders if one.name != LIMIT]
    for place, (contender, marker) in enumerate(zip(steppers, "o^vsDPX")):
        shares = {name: merged(rows)[0]["of_limit"] for (_, name, _, whose), rows in groups.items() if whose == contender}
        shares = {name: of for name, of in shares.items() if of}
        at = [names.index(name) + 0.08 * (place - 3) for name in shares]
        middles = [middle for middle, _, _ in shares.values()]
        below = [middle - low for middle, low, _ in shares.values()]
        above = [high - middle for middle, _, high in shares.values()]
        axis.errorbar(at, middles, [below, above], fmt=marker, label=contender, capsize=3)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda share, _: percent(share))
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="y", alpha=0.3)
