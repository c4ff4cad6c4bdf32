#!/usr/bin/env python3
"""The table of peers: every contender steps the same lists, in turns, so that a machine's drift meets all alike. Started
by scripts/peers, which builds what it needs.

In a round each contender has one turn, in a new order each time; one works, the others sleep. A turn is a step, or as many
as fit into 20 ms behind a first one that is not counted. After 11 rounds a case (a list, a dtype, a number of threads) is
done; a contender that has used its time earlier has fewer turns, and fused-adamw and the limit have them all, so that
every turn has theirs beside it.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import report
from contenders import ALL, LIMIT, OURS, Failed, Process

ROUNDS = 11
TURN_S = 0.02
BUDGET_S = 1.5  # of a contender in a case
THREADS = (1, 2)
DTYPES = ("f32", "bf16")
# Of a list that would not fit into memory once for each contender, a part of them is measured at a time.
BYTES_AN_ELEMENT = 24
SHARE_OF_MEMORY = 0.7

# How far parameters may be from ours after two steps, which move them by 1.27 times the learning rate. In f32 by other
# roundings, a tenth of what the weight decay is. In bf16 by two roundings of the parameter and 2% of the learning rate:
# that a step has been taken can be seen there, but neither decay nor betas, which are below what bf16 resolves.
BOUNDS = {"f32": (2**-22, 2e-8), "bf16": (2**-6, 2e-5)}  # of the parameter, and in any case


def lists(binary, quick):
    lines = subprocess.check_output([binary, "lists", *["--quick"] * quick], text=True).splitlines()
    pairs = (line.split("\t") for line in lines)
    return {name: [int(length) for length in lengths.split(",")] for name, lengths in pairs}


def sittings(peers, elements):
    """The peers in groups, each to be measured beside the limit and ours, as many as fit into memory together."""
    with open("/proc/meminfo") as file:
        free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    together = max(1, int(SHARE_OF_MEMORY * free / (BYTES_AN_ELEMENT * elements)) - 2)
    groups = max(1, -(-len(peers) // together))
    return [peers[i::groups] for i in range(groups)]


def agrees(dtype, values, ours):
    """Or how far it is off."""
    relative, absolute = BOUNDS[dtype]
    far = [abs(a - b) for a, b in zip(values, ours, strict=True) if not abs(a - b) <= relative * abs(b) + absolute]
    return f"another result: {len(far)} of {len(ours)} parameters are off, by up to {max(far):.1e}" if far else ""


class Case:
    """A list of one dtype on so many threads."""

    def __init__(self, results, key, lengths):
        self.results = results
        self.key = key  # run, list, dtype, threads
        self.dtype = key[2]
        self.lengths = lengths

    def measure(self, processes):
        fixed = [processes[LIMIT], processes[OURS]]
        peers = [process for name, process in processes.items() if name not in (LIMIT, OURS)]
        _, ours = (process.load(self.dtype, self.lengths) for process in fixed)
        for sitting, group in enumerate(sittings(peers, sum(self.lengths))):
            loaded = self.loaded(group)
            for name, values in loaded.items():
                self.results.note(self.key, name, agrees(self.dtype, values, ours))
            self.rounds(sitting, fixed, [process for process in group if process.name in loaded])
            drop(group)
        drop(fixed)

    def loaded(self, processes):
        """The samples of those that can."""
        samples = {}
        for process in processes:
            try:
                samples[process.name] = process.load(self.dtype, self.lengths)
            except Failed as why:
                self.results.note(self.key, process.name, f"failed: {why}")
        return samples

    def rounds(self, sitting, fixed, peers):
        spent = dict.fromkeys((peer.name for peer in peers), 0.0)
        order = random.Random(0)
        for number in range(ROUNDS):
            present = fixed + [peer for peer in peers if spent[peer.name] < BUDGET_S]
            for process in order.sample(present, len(present)):
                start = time.monotonic()
                try:
                    times = process.go(TURN_S)
                except Failed as why:
                    if process in fixed:
                        raise  # there is no table without them
                    self.results.note(self.key, process.name, f"failed: {why}")
                    peers = [peer for peer in peers if peer is not process]
                    continue
                spent[process.name] = spent.get(process.name, 0) + time.monotonic() - start
                self.results.turn(self.key, process.name, (sitting, number), times)
                time.sleep(0.002)  # its threads have gone to sleep


def drop(processes):
    for process in processes:
        try:
            process.drop()
        except Failed:
            pass  # it has no memory any more, either


def run(number, args, results):
    for threads in THREADS:
        processes = {one.name: Process(one, args.binary, threads, args.folder) for one in args.contenders}
        try:
            for dtype in DTYPES:
                for name, lengths in lists(args.binary, args.quick).items():
                    start = time.monotonic()
                    Case(results, (number, name, dtype, threads), lengths).measure(processes)
                    print(f"run {number} of {args.runs}: {name}, {dtype}, {threads} thread(s):"
                          f" {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
        finally:
            for process in processes.values():
                process.stop()


def main():
    parser = argparse.ArgumentParser(prog="scripts/peers")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--folder", required=True, type=Path)
    args = parser.parse_args()
    args.given = sys.argv[1 : sys.argv.index("--binary")]
    only = set(args.only.split(",")) if args.only else {one.name for one in ALL}
    if unknown := only - {one.name for one in ALL}:
        parser.error(f"no peer {', '.join(unknown)}")
    args.contenders = [one for one in ALL if one.name in only | {LIMIT, OURS}]
    results = report.Results()
    head = report.head(args)
    for number in range(1, args.runs + 1):
        run(number, args, results)
        report.write(results, args, head)
    print((args.folder / "peers.md").read_text())


if __name__ == "__main__":
    main()
