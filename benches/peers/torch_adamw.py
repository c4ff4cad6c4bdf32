#!/usr/bin/env python3
"""PyTorch's AdamW, fused and foreach, on the lists of `gpu lists`: the rows of benches/gpu/rows.rs, timed as
benches/gpu/clock.rs times ours. 16-bit lists are stepped as they are, with 16-bit moments, and with masters, as ours are.

    torch_adamw.py LISTS.json [--small] [--device cpu]

On the CPU, which is there to try this program, all times are wall-clock. Exit status 77: nothing to compare with.
"""

import argparse
import gc
import json
import sys
import time

SKIPPED = 77
FLUSH_BYTES = 256 << 20
MOST_FLUSHES = 256

try:
    import torch
except (ImportError, OSError) as error:
    print(f"{sys.executable} has no PyTorch: {error}")
    sys.exit(SKIPPED)


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def row(kind, **fields):
    print(json.dumps({"row": kind} | fields, separators=(",", ":")), flush=True)


class Clock:
    """Between two events, with the L2 cache flushed and the host ahead of the GPU."""

    def __init__(self, device, small):
        self.cuda = device == "cuda"
        self.flush = torch.zeros(1 << 10 if small else FLUSH_BYTES, dtype=torch.uint8, device=device)
        self.warm_up_s = 0 if small else 0.3
        if self.cuda:
            self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure(self, repeats, work):
        start, warm, host_ms = time.perf_counter(), 0, 0.0
        while warm < 3 or time.perf_counter() - start < self.warm_up_s:
            _, host_ms = self.once(1, work)
            warm += 1
        flush_ms, _ = self.once(0, self.flush.zero_)
        flushes = next((n for n in range(1, MOST_FLUSHES) if n * flush_ms > 2 * host_ms), MOST_FLUSHES)
        times = [self.once(flushes, work) for _ in range(repeats)]
        return quantiles([ms for ms, _ in times]), quantiles([1e3 * host_ms for _, host_ms in times])

    def once(self, flushes, work):
        """Milliseconds of the stream and of the host."""
        for _ in range(flushes):
            self.flush.zero_()
        if self.cuda:
            self.begin.record()
        start = time.perf_counter()
        work()
        host_ms = 1e3 * (time.perf_counter() - start)
        if not self.cuda:
            return host_ms, host_ms
        self.end.record()
        torch.cuda.synchronize()
        return self.begin.elapsed_time(self.end), host_ms


def quantiles(values):
    values = sorted(values)
    return {name: values[(len(values) - 1) * tenths // 10] for name, tenths in (("p10", 1), ("median", 5), ("p90", 9))}


def filled(lengths, scale, dtype, device):
    """The values of `filled` in benches/gpu/work.rs."""
    pattern = torch.arange(min(max(lengths), 1 << 20), device=device)
    pattern = (scale * ((pattern % 1013) / 1013 - 0.4)).to(dtype)
    tensors = [torch.empty(length, dtype=dtype, device=device) for length in lengths]
    for tensor in tensors:
        for part in tensor.split(len(pattern)):
            part.copy_(pattern[: len(part)])
    return tensors


MASTERS = "fused, f32 masters"


def stepper(params, grads, implementation, limit):
    """A function that steps, and the bytes that it reads and writes for an element."""
    masters = [param.float() for param in params] if implementation == MASTERS else params
    gradients = [torch.empty_like(master) for master in masters] if implementation == MASTERS else grads
    for master, gradient in zip(masters, gradients):
        master.requires_grad_().grad = gradient
    optimizer = torch.optim.AdamW(masters, **{"foreach" if implementation == "foreach" else "fused": True})

    def work():
        if implementation == MASTERS:
            torch._foreach_copy_(gradients, grads)
        if limit:
            torch.nn.utils.clip_grad_norm_(masters, limit)
        optimizer.step()
        if implementation == MASTERS:
            with torch.no_grad():
                torch._foreach_copy_(params, masters)

    # Reads p, g, m, v and writes p, m, v, all of one dtype. Clipping reads g, and then reads and writes it. Of masters, the
    # gradients are widened before and the parameters narrowed after that.
    width, narrow = masters[0].dtype.itemsize, params[0].dtype.itemsize
    return work, (10 if limit else 7) * width + (2 * (width + narrow) if implementation == MASTERS else 0)


def step(of, dtype_name, implementation, clock, args):
    params, grads = (filled(of["lengths"], by, DTYPES[dtype_name], args.device) for by in (0.02, 1e-3))
    work, bytes_an_element = stepper(params, grads, implementation, of["max_grad_norm"])
    elements = sum(of["lengths"])
    repeats = 3 if args.small else 21 if elements >= 1_000_000_000 else 51
    ms, host_us = clock.measure(repeats, work)
    row("step", by=f"PyTorch {implementation}", list=of["name"], dtype=dtype_name, tensors=len(of["lengths"]),
        elements=elements, of_tensors=of["of_tensors"], of_elements=of["of_elements"],
        bytes_an_element=bytes_an_element, repeats=repeats, ms=ms, host_us=host_us)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} finds no GPU")
        sys.exit(SKIPPED)
    row("peer", version=f"PyTorch {torch.__version__}")
    with open(args.lists) as file:
        # It measures nothing, steps no mixture of dtypes, and its backward passes add gradients themselves.
        alone = lambda of: of["metrics"] or of["accumulates"] or of["dtype"] not in DTYPES
        lists = [of for of in json.load(file) if of["lengths"] and not alone(of)]
    clock = Clock(args.device, args.small)
    for of in lists:
        for implementation in ("fused", "foreach") if of["dtype"] == "f32" else ("fused", "foreach", MASTERS):
            try:
                step(of, of["dtype"], implementation, clock, args)
            except torch.cuda.OutOfMemoryError:
                row("failed", by=f"PyTorch {implementation}", list=of["name"], dtype=of["dtype"], why="out of memory")
            gc.collect()
            if clock.cuda:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
