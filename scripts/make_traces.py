#!/usr/bin/env python3
"""Makes traces (format adamw-trace/1, read by examples/03_replay) with PyTorch.

    python3 scripts/make_traces.py committed tests/traces
    python3 scripts/make_traces.py random FOLDER --seed 7 --count 100 --impl fused

Needs torch 2.15.0 (the committed traces were made with 2.15.0+cu132, on the CPU), numpy and safetensors 0.8.0.
The same command with the same versions writes the same bytes.

`expect` is what torch.optim gives in f32 (or bf16, f16), `exact` what the same gradients give in f64 with
hyper-parameters that nothing has rounded: clipping too is done in f64 there.
"""

import argparse
import csv
import gzip
import json
import math
import pathlib

import numpy
import torch
from safetensors.torch import save

DIGITS = pathlib.Path(__file__).parent.parent / "examples/data/digits.csv.gz"
DEFAULTS = {
    "algorithm": "adamw",
    "lr": 1e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "amsgrad": False,
    "maximize": False,
}
IMPLEMENTATIONS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    # Not PyTorch's: a kernel that keeps every scalar in f32, as PyTorch's CUDA kernels keep beta and its capturable
    # forms keep the bias corrections.
    "all-f32": None,
}


def groups_of(config, tensors):
    """Each group's settings in full, with its tensors."""
    base = DEFAULTS | {key: config[key] for key in DEFAULTS if key in config}
    overrides = config.get("groups") or [{"tensors": list(range(tensors))}]
    return [base | group for group in overrides]


def lr_at(settings, step):
    lr = settings["lr"]
    return lr[step - 1] if isinstance(lr, list) else lr


class Torch:
    """The run that is expected: one torch optimizer for each group, since algorithms may differ."""

    def __init__(self, initial, config, implementation):
        self.params = [torch.nn.Parameter(p.clone()) for p in initial]
        self.groups = groups_of(config, len(initial))
        self.max_norm = config.get("max_grad_norm")
        self.optimizers = [self.optimizer(group, implementation) for group in self.groups]

    def optimizer(self, group, implementation):
        if implementation == "all-f32":
            return AllF32(self.params, group)
        kind = torch.optim.AdamW if group["algorithm"] == "adamw" else torch.optim.Adam
        options = {key: group[key] for key in ("eps", "weight_decay", "amsgrad", "maximize")}
        members = [self.params[i] for i in group["tensors"]]
        return kind(
            [{"params": members}], lr=lr_at(group, 1), betas=tuple(group["betas"]), **options,
            **IMPLEMENTATIONS[implementation],
        )

    def step(self, step, grads):
        """`grads`: tensor index -> gradient; the others have none."""
        for i, param in enumerate(self.params):
            param.grad = grads[i].clone() if i in grads else None
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.max_norm)
        for optimizer, group in zip(self.optimizers, self.groups):
            optimizer.param_groups[0]["lr"] = lr_at(group, step)
            optimizer.step()

    def result(self, i):
        states = {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}
        state = states.get(self.params[i], {})  # none where there never was a gradient
        return {"param": self.params[i].detach()} | {key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}


class AllF32:
    """Adam with the interface of torch.optim, as far as it is used here."""

    def __init__(self, params, group):
        self.params = [params[i] for i in group["tensors"]]
        self.group = {key: torch.tensor(value) for key, value in group.items() if key in ("betas", "eps", "weight_decay")}
        self.options = group
        self.param_groups = [{"lr": 0.0}]
        self.state = {}

    @torch.no_grad()
    def step(self):
        for p in self.params:
            if p.grad is not None:
                zeros = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq", "max")}
                self.update(p, self.state.setdefault(p, zeros | {"step": torch.tensor(0.0)}))

    def update(self, p, state):
        (b1, b2), eps, decay = self.group["betas"], self.group["eps"], self.group["weight_decay"]
        lr = torch.tensor(self.param_groups[0]["lr"])
        state["step"] += 1
        g = -p.grad if self.options["maximize"] else p.grad
        if self.options["algorithm"] == "adam":
            g = g + decay * p
        else:
            p -= lr * decay * p
        state["exp_avg"] = b1 * state["exp_avg"] + (1 - b1) * g
        state["exp_avg_sq"] = b2 * state["exp_avg_sq"] + (1 - b2) * g * g
        state["max"] = torch.maximum(state["max"], state["exp_avg_sq"])
        v = state["max"] if self.options["amsgrad"] else state["exp_avg_sq"]
        step_size = lr / (1 - torch.pow(b1, state["step"]))
        p -= step_size * state["exp_avg"] / (torch.sqrt(v) / torch.sqrt(1 - torch.pow(b2, state["step"])) + eps)


class Exact:
    """The run in f64."""

    def __init__(self, initial, config):
        self.p = [p.double() for p in initial]
        self.m = [torch.zeros_like(p) for p in self.p]
        self.v = [torch.zeros_like(p) for p in self.p]
        self.vmax = [torch.zeros_like(p) for p in self.p]
        self.t = [0] * len(initial)
        self.settings = {i: group for group in groups_of(config, len(initial)) for i in group["tensors"]}
        self.max_norm = config.get("max_grad_norm")

    def step(self, step, grads):
        grads = {i: g.double() for i, g in grads.items()}
        clip = 1.0
        if self.max_norm is not None:
            norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
            clip = min(1.0, self.max_norm / (norm + 1e-6))
        for i, g in grads.items():
            self.update(i, g * clip, self.settings[i], lr_at(self.settings[i], step))

    def update(self, i, g, s, lr):
        beta1, beta2 = s["betas"]
        self.t[i] += 1
        if s["maximize"]:
            g = -g
        if s["algorithm"] == "adam":
            g = g + s["weight_decay"] * self.p[i]
        else:
            self.p[i] = self.p[i] * (1 - lr * s["weight_decay"])
        self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
        self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
        self.vmax[i] = torch.maximum(self.vmax[i], self.v[i])
        v = self.vmax[i] if s["amsgrad"] else self.v[i]
        d = torch.sqrt(v) / math.sqrt(1 - beta2 ** self.t[i]) + s["eps"]
        self.p[i] = self.p[i] - lr / (1 - beta1 ** self.t[i]) * self.m[i] / d


def write(path, config, initial, steps, implementation, with_exact=True):
    """`steps`: for each step a dict of gradients, or a function of the parameters that gives one."""
    run, exact = Torch(initial, config, implementation), Exact(initial, config)
    tensors = {f"param.{i}.0": p for i, p in enumerate(initial)}
    for t, step in enumerate(steps, 1):
        grads = step([p.detach() for p in run.params]) if callable(step) else step
        run.step(t, grads)
        exact.step(t, grads)
        tensors |= {f"grad.{i}.{t}": g for i, g in grads.items()}
    n = len(steps)
    for i in range(len(initial)):
        tensors |= {f"expect.{key}.{i}.{n}": value for key, value in run.result(i).items()}
        if with_exact:
            tensors[f"exact.param.{i}.{n}"] = exact.p[i]
    metadata = {
        "format": "adamw-trace/1",
        "steps": str(n),
        "config": json.dumps(config),
        "made_with": f"torch {torch.__version__} CPU, {implementation}; scripts/make_traces.py",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ordered(save({name: t.clone().contiguous() for name, t in tensors.items()}, metadata)))


def ordered(file):
    """safetensors writes its metadata in the order of a hash map: sort the header, or no two runs agree."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def noise(rng, shape, scale, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape) * scale).to(dtype)


def random_steps(rng, shapes, steps, scales, missing=0.0, zeros=0.0, dtype=torch.float32):
    """Gradients of each tensor's own scale, which also wanders over the steps; some exactly 0, some absent."""
    run = []
    for _ in range(steps):
        grads = {}
        for i, (shape, scale) in enumerate(zip(shapes, scales)):
            g = noise(rng, shape, scale * 10 ** rng.uniform(-1, 1), dtype)
            g[torch.from_numpy(rng.random(shape) < zeros)] = 0
            if rng.random() >= missing:
                grads[i] = g
        run.append(grads)
    return run


def random_trace(path, seed, implementation, dtype):
    """A trace with options drawn at random; ranges like those of the traces that the crate was given."""
    rng = numpy.random.default_rng(seed)
    draw = lambda options: options[rng.integers(len(options))]
    steps = int(draw([1, 2, 3, 5, 10, 30, 100, 300]))
    largest = max(40, 40_000 // steps)
    lengths = [n for n in (0, 1, 3, 35, 64, 1023, 1025, 4099, 16640) if n <= largest]
    shapes = [(draw(lengths),) for _ in range(rng.integers(1, 7))]
    lr = float(10 ** rng.uniform(-5, -1.7))
    config = {
        "algorithm": draw(["adamw", "adamw", "adam"]),
        "lr": [lr * (t + 1) / steps for t in range(steps)] if rng.random() < 0.3 else lr,
        "betas": [draw([0.0, 0.8, 0.85, 0.9, 0.95]), draw([0.0, 0.95, 0.98, 0.99, 0.999, 0.9999])],
        "eps": float(10 ** rng.uniform(-11, -5)),
        "weight_decay": draw([0.0, 0.01, 0.1]),
    }
    config |= {key: True for key in ("amsgrad", "maximize") if rng.random() < 0.3}
    if rng.random() < 0.3:
        config["max_grad_norm"] = float(10 ** rng.uniform(-2, 1))
    if rng.random() < 0.4 and len(shapes) > 1:
        first = sorted(int(i) for i in rng.permutation(len(shapes))[: rng.integers(1, len(shapes))])
        rest = [i for i in range(len(shapes)) if i not in first]
        config["groups"] = [{"tensors": rest}, {"tensors": first, "weight_decay": 0.0, "betas": [0.85, 0.98]}]
    initial = [noise(rng, shape, 10 ** rng.uniform(-3, 1), dtype) for shape in shapes]
    scales = [10 ** rng.uniform(-11, 2) for _ in shapes]
    run = random_steps(rng, shapes, steps, scales, draw([0.0, 0.0, 0.2]), draw([0.0, 0.0, 0.3]), dtype)
    write(path, config, initial, run, implementation)


def digits_trace(path, width=14, steps=50, batch=64):
    """A small network learns the digits: gradients as training makes them."""
    with gzip.open(DIGITS, "rt") as file:
        rows = [row for row in csv.reader(file) if row and row[0].replace(".", "").isdigit()]
    data = torch.tensor([[float(x) for x in row] for row in rows])
    pixels, labels = data[:, :64] / 16, data[:, 64].long()
    generator = torch.Generator().manual_seed(1)
    shapes = [(width, 64), (width,), (10, width), (10,)]
    initial = [(2 * torch.rand(shape, generator=generator) - 1) / 8 for shape in shapes]

    def gradients(params):
        picked = torch.randint(len(labels), (batch,), generator=generator)
        leaves = [p.clone().requires_grad_() for p in params]
        hidden = torch.relu(pixels[picked] @ leaves[0].T + leaves[1])
        loss = torch.nn.functional.cross_entropy(hidden @ leaves[2].T + leaves[3], labels[picked])
        return dict(enumerate(torch.autograd.grad(loss, leaves)))

    config = {"lr": 3e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
    write(path, config, initial, [gradients] * steps, "fused")


def committed(out):
    """The traces of tests/traces: small, and together every option."""
    digits_trace(out / "digits-cut.safetensors")
    f32 = torch.float32
    small = [(3,), (0,), (5, 7), (1,)]
    cases = {
        # name: (config, shapes, steps, gradient scales, missing, zeros, dtype, implementation)
        "defaults": ({}, [(33, 31), (17,)], 10, [1e-2, 1.0], 0, 0, f32, "for-loop"),
        "tiny-gradients": ({"eps": 1e-8, "lr": 1e-2}, small, 6, [1e-8, 1, 1e-7, 1e-12], 0, 0.3, f32, "for-loop"),
        "groups": (
            {
                "lr": 2e-2, "weight_decay": 0.1, "betas": [0.95, 0.99],
                "groups": [
                    {"tensors": [2, 0], "lr": [1e-3 * t for t in range(1, 11)]},
                    {"tensors": [1], "amsgrad": True, "maximize": True},
                    {"tensors": [3], "algorithm": "adam", "eps": 1e-6, "betas": [0.8, 0.9999], "weight_decay": 0.05},
                ],
            },
            small, 10, [1e-3, 1, 10, 1e-2], 0.3, 0, f32, "foreach",
        ),
        "adam-l2": ({"algorithm": "adam", "weight_decay": 0.1, "lr": 1e-2, "maximize": True}, small, 8, [0.1, 1, 1, 1], 0, 0, f32, "fused"),
        "amsgrad": ({"amsgrad": True, "betas": [0.8, 0.95], "eps": 1e-10}, small, 20, [1, 1, 1e-3, 1], 0, 0, f32, "fused"),
        "maximize-clip": (
            {"maximize": True, "max_grad_norm": 0.5, "lr": [2e-2 / t for t in range(1, 8)]},
            [(65,), (3,)], 7, [0.05, 0.01], 0, 0, f32, "for-loop",
        ),
        "betas-0": ({"betas": [0.0, 0.0], "weight_decay": 0.0}, small, 4, [1, 1, 1e-4, 1], 0, 0, f32, "for-loop"),
        "missing": ({"lr": 1e-2, "weight_decay": 0.1}, [(9,), (4,), (2,)], 9, [1, 1e-5, 1], 0.5, 0, f32, "foreach"),
        "bf16": ({"lr": 1e-2, "betas": [0.9, 0.95]}, small, 3, [1, 1, 1e-2, 1], 0, 0, torch.bfloat16, "fused"),
        "f16": ({"lr": 1e-2, "betas": [0.9, 0.9], "eps": 1e-3}, small, 2, [1, 1, 0.1, 1], 0, 0, torch.float16, "fused"),
        "long": ({"lr": 1e-3, "betas": [0.9, 0.99]}, [(5,)], 200, [1e-2], 0, 0, f32, "for-loop"),
    }
    for seed, (name, case) in enumerate(cases.items()):
        config, shapes, steps, scales, missing, zeros, dtype, implementation = case
        rng = numpy.random.default_rng(seed)
        initial = [noise(rng, shape, 1.0, dtype) for shape in shapes]
        run = random_steps(rng, shapes, steps, scales, missing, zeros, dtype)
        write(out / f"{name}.safetensors", config, initial, run, implementation, with_exact=name != "betas-0")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["committed", "random"])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, default="for-loop")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a sum split over threads rounds otherwise
    if args.what == "committed":
        committed(args.out)
        return
    for i in range(args.count):
        name = f"random-{args.seed}-{args.impl}-{i:03}.safetensors"
        random_trace(args.out / name, [args.seed, i], args.impl, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
