"""The contenders of the table of peers and their processes: each has one, which steps its list when asked, a line in, a
line out (src/main.rs), and sleeps meanwhile."""

import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT, OURS = "limit", "fused-adamw"

LOAD_S = 900  # DeepSpeed compiles its kernel in its first
GO_S = 300


class Failed(Exception):
    """A contender cannot do what it was asked to; the reason is for the table."""


@dataclass
class Contender:
    name: str
    package: str  # whose version is reported
    f32: str  # what it reads and writes, for each dtype of parameter and gradient
    bf16: str

    def command(self, binary):
        in_rust = self.name in (LIMIT, OURS, "candle", "burn")
        return [binary, self.name] if in_rust else [sys.executable, HERE / "torch_peers.py", self.name]


F32_MOMENTS = "m, v in f32: 28 bytes an element"
ALL = [
    Contender(LIMIT, "", "a read-modify-write of 28 bytes an element", "of 28, as fused-adamw's"),
    Contender(OURS, "fused-adamw", F32_MOMENTS, "master, m, v in f32: 28 bytes"),
    Contender("torch-fused", "torch", F32_MOMENTS, "m, v in bf16, no master: 14 bytes"),
    Contender("torch-foreach", "torch", F32_MOMENTS, "m, v in bf16, no master: 14 bytes"),
    Contender("deepspeed", "deepspeed", F32_MOMENTS, "m, v in f32, no master: 22 bytes"),
    Contender("bitsandbytes", "bitsandbytes", F32_MOMENTS, "m, v in f32, no master: 22 bytes"),
    Contender("candle", "candle-nn", F32_MOMENTS, "m, v in bf16, no master: 14 bytes"),
    Contender("burn", "burn", F32_MOMENTS, "m, v in bf16, no master: 14 bytes"),
]


def environment(threads, folder):
    """Each contender has so many threads; and between its steps they go to sleep within a millisecond, so that they take
    nothing from the next one's, while within a step they wait as they always do."""
    count = str(threads)
    variables = {name: count for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    spin = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
    deepspeed = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder / "torch-extensions")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja, for DeepSpeed
    return os.environ | variables | spin | deepspeed | {"PATH": path}


class Process:
    """A contender that runs. One that has died is started again by its next `load`."""

    def __init__(self, contender, binary, threads, folder):
        self.name = contender.name
        self.command = contender.command(binary)
        self.environment = environment(threads, folder)
        self.log = folder / f"{self.name}.log"
        self.child = None

    def load(self, dtype, lengths):
        if self.child is None or self.child.poll() is not None:
            self.start()
        return self.ask(f"load {dtype} {','.join(map(str, lengths))}", LOAD_S)

    def go(self, seconds):
        return self.ask(f"go {round(1e9 * seconds)}", GO_S)

    def drop(self):
        if self.child is not None and self.child.poll() is None:
            self.ask("drop", GO_S)

    def start(self):
        with open(self.log, "ab") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.child = subprocess.Popen(self.command, env=self.environment, bufsize=0, **pipes)

    def ask(self, line, limit_s):
        try:
            self.child.stdin.write(f"{line}\n".encode())
        except OSError:
            raise Failed(self.died()) from None
        reply = self.reply(time.monotonic() + limit_s, limit_s)
        if not reply.startswith("ok"):
            raise Failed(reply.removeprefix("failed "))
        return [float(value) for value in reply.split()[1:]]

    def reply(self, deadline, limit_s):
        reply = b""
        while not reply.endswith(b"\n"):
            if not select.select([self.child.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                self.stop()
                raise Failed(f"no answer within {limit_s} s")
            part = os.read(self.child.stdout.fileno(), 1 << 16)
            if not part:
                raise Failed(self.died())
            reply += part
        return reply.decode().strip()

    def died(self):
        status = self.child.wait()
        how = f"killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"{how}, see {self.log.name}"

    def stop(self):
        if self.child is not None:
            self.child.kill()
            self.child.wait()
