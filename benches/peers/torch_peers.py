#!/usr/bin/env python3
"""One contender of the table of peers, in Python: what benches/peers/src/main.rs is for those in Rust, line for line.

    torch_peers.py NAME     torch-fused, torch-foreach, deepspeed or bitsandbytes
"""

import gc
import os
import sys
import time

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 1e-2
PARAM_SCALE, GRAD_SCALE = 0.02, 1e-3

# What libraries print is no answer.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def optimizer(name, params):
    options = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    if name == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(params, adamw_mode=True, **options)
    if name == "bitsandbytes":
        import bitsandbytes

        return bitsandbytes.optim.AdamW(params, **options)
    import torch

    return torch.optim.AdamW(params, **{name.removeprefix("torch-"): True}, **options)


def set_grads(params, lengths, scale):
    from torch_adamw import filled

    for param, grad in zip(params, filled(lengths, scale, params[0].dtype, "cpu")):
        param.grad = grad


def load(name, dtype, lengths):
    """An optimizer's `step`, and some parameters after two of them (src/main.rs, `two_steps`)."""
    import torch
    from torch_adamw import filled

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    params = [torch.nn.Parameter(param) for param in filled(lengths, PARAM_SCALE, dtype, "cpu")]
    step = optimizer(name, params).step
    set_grads(params, lengths, GRAD_SCALE)
    step()
    set_grads(params, lengths, -0.5 * GRAD_SCALE)
    step()
    return step, sampled(params)


def sampled(params):
    """The places of `sampled` in src/values.rs."""
    of_each = max(4096 // len(params), 3)
    values = []
    for param in params:
        places = [i * (len(param) - 1) // (of_each - 1) for i in range(of_each)]
        values += param.detach().float()[places].tolist()
    return values


def seconds(step, steps):
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


def turn(step, at_least):
    """Nanoseconds of a step, as in src/main.rs."""
    first = seconds(step, 1)
    steps = int(at_least / first)
    return 1e9 * (seconds(step, steps) / steps if steps else first)


def main():
    step = None
    for line in sys.stdin:
        try:
            command, *args = line.split()
            values = []
            if command == "go":
                values = [turn(step, 1e-9 * int(args[0]))]
            else:
                step = None
                gc.collect()  # an optimizer and its parameters name one another
            if command == "load":
                dtype, lengths = args
                step, values = load(sys.argv[1], dtype, [int(length) for length in lengths.split(",")])
            print("ok", *values, file=answers)
        except (Exception, SystemExit) as error:
            step = None
            print("failed", type(error).__name__, " ".join(str(error).split()), file=answers)


if __name__ == "__main__":
    main()
