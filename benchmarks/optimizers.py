"""Step time and memory of each optimizer on GPT-2 small's parameters, beside other libraries', in one run.

    python -m benchmarks.optimizers [--device cpu|cuda] [--rounds 7] [--layers 12]        (or make bench-optimizers)

Time: the optimizers take turns, one step each. Our step always holds the gradients' norm, clipping and the check that
it is finite; another library's is shown alone and with torch's clip_grad_norm_, which does the first two of these.
Memory, each in a process of its own: what the state takes, and how far the peak of three steps lies above parameters
and gradients. The peers pytorch_optimizer, torch_optimizer and pytorch_ranger are found where PYTHONPATH names a folder
of them, as made by `pip install --no-deps --target FOLDER`; what is not installed is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretraining.optim.base import Optimizer, ParameterShard, Settings
from pretraining.optim.config import AdafactorConfig, AdamWConfig, LambConfig
from pretraining.optim.registry import build_update_rule
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.layout import Layout, TensorLayout

Maker = Callable[[dict[str, nn.Parameter]], Any]


def gpt2_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """GPT-2 small (Radford et al. 2019), 124 million parameters with 12 layers."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (50257, 768),
        "position_embedding.weight": (1024, 768),
    }
    block = {
        "attention.input": (2304, 768),
        "attention.output": (768, 768),
        "mlp.up": (3072, 768),
        "mlp.down": (768, 3072),
    }
    for i in range(layers):
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("attention_norm", "mlp_norm"):
            shapes |= {f"blocks.{i}.{name}.weight": (768,), f"blocks.{i}.{name}.bias": (768,)}
    return shapes | {"final_norm.weight": (768,), "final_norm.bias": (768,)}


def make_parameters(layers: int, device: str) -> dict[str, nn.Parameter]:
    torch.manual_seed(1)
    found = {}
    for name, shape in gpt2_shapes(layers).items():
        found[name] = nn.Parameter(torch.empty(shape, device=device).normal_(0.0, 0.02))
        found[name].grad = torch.empty(shape, device=device).normal_(0.0, 1e-3)
    return found


def ours(config: AdamWConfig | LambConfig | AdafactorConfig) -> Maker:
    def make(parameters: dict[str, nn.Parameter]) -> Optimizer:
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        rule = build_update_rule(config)
        weight, bias = Settings(rule.weight_decay), Settings(0.0, exempt=True)
        settings = {name: weight if len(shape) > 1 else bias for name, shape in shapes.items()}
        shards = [
            ParameterShard(Fragment.whole(n, shapes[n]), p.data, settings[n], i, grad=p.grad)  # type: ignore[arg-type]
            for i, (n, p) in enumerate(parameters.items())
        ]
        optimizer = Optimizer(list(parameters.values()), rule, 1.0, False)
        optimizer.attach(shards, Layout(tuple(TensorLayout(*item) for item in shapes.items())))
        optimizer.param_groups[0]["lr"] = config.lr
        return optimizer

    return make


def transformers_adafactor(parameters: dict[str, nn.Parameter]) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(parameters.values(), lr=None, relative_step=True, scale_parameter=True)


def peer_lamb(module: str) -> Maker:
    def make(parameters: dict[str, nn.Parameter]) -> Any:
        return importlib.import_module(module).Lamb(parameters.values(), lr=1e-3, weight_decay=0.01)

    return make


MAKERS: dict[str, tuple[str, str, Maker]] = {  # name -> (what it is compared with, module, maker)
    "adamw": ("", "torch", ours(AdamWConfig(name="adamw", lr=1e-3))),
    "torch AdamW(fused)": ("adamw", "torch", lambda p: torch.optim.AdamW(p.values(), lr=1e-3, fused=True)),
    "lamb": ("", "torch", ours(LambConfig(name="lamb", lr=1e-3))),
    "torch_optimizer Lamb": ("lamb", "torch_optimizer", peer_lamb("torch_optimizer")),
    "pytorch_optimizer Lamb": ("lamb", "pytorch_optimizer", peer_lamb("pytorch_optimizer")),
    "adafactor": ("", "torch", ours(AdafactorConfig(name="adafactor", lr=1e-2))),
    "torch Adafactor": ("adafactor", "torch", lambda p: torch.optim.Adafactor(p.values(), lr=1e-2)),
    "transformers Adafactor": ("adafactor", "transformers", transformers_adafactor),
}


def available() -> list[str]:
    return [name for name, (_, module, _) in MAKERS.items() if importlib.util.find_spec(module) is not None]


def timed(step: Callable[[], Any], device: str) -> float:
    """-> milliseconds."""
    begin = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def clip_and_step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    optimizer.step()


def measure_times(names: list[str], layers: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Rounds of one step each, after a first round that is not counted. All share values and gradients."""
    parameters = make_parameters(layers, device)
    steps: dict[str, Callable[[], Any]] = {}
    for name in names:
        optimizer = MAKERS[name][2](parameters)
        steps[name] = optimizer.step
        if MAKERS[name][0]:
            steps[f"{name} + clip"] = functools.partial(clip_and_step, parameters, optimizer)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            for parameter in parameters.values():
                assert parameter.grad is not None
                parameter.grad.copy_(parameter.data).mul_(0.1)
            milliseconds = timed(step, device)
            if round_number:
                times[name].append(milliseconds)
    return times


def bytes_in_use(device: str) -> int:
    """Resets peak_bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Not getrusage's ru_maxrss: a process begins with that of the one which started it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def tensor_bytes(values: object) -> int:
    if isinstance(values, torch.Tensor):
        return values.nbytes
    return sum(map(tensor_bytes, values.values())) if isinstance(values, dict) else 0


def measure_memory(name: str, layers: int, device: str) -> dict[str, int]:
    """In this process, which has done nothing else yet."""
    warm = {"warm": nn.Parameter(torch.ones(8, 8, device=device))}
    warm["warm"].grad = torch.ones(8, 8, device=device)
    MAKERS[name][2](warm).step()  # what is imported and allocated by the first step of all is not counted
    parameters = make_parameters(layers, device)
    before = bytes_in_use(device)
    optimizer = MAKERS[name][2](parameters)
    for _ in range(3):
        optimizer.step()
    peak = peak_bytes(device) - before
    state = {p.fragment: p.state for p in optimizer.shards} if isinstance(optimizer, Optimizer) else optimizer.state
    return {"state": tensor_bytes(dict(state)), "peak": peak}


def measure_all_memory(names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, int]]:
    found = {}
    for name in names:
        command = [
            sys.executable,
            "-m",
            "benchmarks.optimizers",
            "--memory-of",
            name,
            "--device",
            arguments.device,
            "--layers",
            str(arguments.layers),
        ]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def print_table(times: dict[str, list[float]], memory: dict[str, dict[str, int]]) -> None:
    print(f"{'':32}{'median ms':>10}{'min':>8}{'max':>8}{'ratio':>8}{'state MB':>10}{'peak MB':>9}")
    for name, values in times.items():
        base = name.removesuffix(" + clip")
        ratio = statistics.median(values) / statistics.median(times[MAKERS[base][0] or base])
        line = f"{name:32}{statistics.median(values):10.1f}{min(values):8.1f}{max(values):8.1f}{ratio:8.2f}"
        if name in memory:
            line += f"{memory[name]['state'] / 1e6:10.1f}{memory[name]['peak'] / 1e6:9.1f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--memory-of", choices=list(MAKERS))
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.layers, arguments.device)))
        return
    names = available()
    count = sum(map(math.prod, gpt2_shapes(arguments.layers).values()))
    print(
        f"{count / 1e6:.1f}M parameters, {arguments.device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {arguments.rounds} rounds; ratio: to our optimizer of the same kind"
    )
    print_table(
        measure_times(names, arguments.layers, arguments.rounds, arguments.device), measure_all_memory(names, arguments)
    )
    print("".join(f"not installed: {name}\n" for name in MAKERS if name not in names), end="")


if __name__ == "__main__":
    main()
