"""Timing, peers and tables shared by the benchmarks.

Everything that is compared runs in one process, call by call in turn (``alternate``), with one
fixed thread count, so that a slow minute of the machine slows all of them.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from nets import calibrate, random_images, seeded
from oracle import grid

QUICK = os.environ.get("BENCH_QUICK", "") not in ("", "0")
MEBI = 1 << 20


# --- the machine ---------------------------------------------------------------------------------


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def has_amx() -> bool:
    """True where the CPU multiplies bf16 tiles."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def machine_line() -> str:
    parts = [
        cpu_model(),
        torch.backends.cpu.get_cpu_capability() + (" + AMX" if has_amx() else ""),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]
    if torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
        parts.append(f"TF32 in convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}")
    return ", ".join(parts)


# --- timing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stats:
    """Seconds of the rounds of one function."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance from the fastest to the slowest round, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def times(self, factor: float) -> Stats:
        """The same rounds, each scaled by ``factor`` (extrapolation from sampled positions)."""
        return Stats(tuple(s * factor for s in self.seconds))

    def __str__(self) -> str:
        return f"{duration(self.median)} ±{100 * self.spread:.0f}%"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def alternate(
    functions: dict[str, Callable[[], Any]],
    rounds: int = 5,
    warmup: int = 1,
    benchmark: Any = None,
) -> dict[str, Stats]:
    """Time the functions in alternation, each once a round, every round in another order: what one
    leaves in the caches is met by all others in turn.

    benchmark: pytest-benchmark's fixture. It then runs the first function itself, once a round, and
    the others run as the setup of its rounds.
    """
    names = list(functions)
    draw = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for function in functions.values():
            function()
    synchronize()

    if benchmark is None:
        for _ in range(rounds):
            for name in draw.sample(names, len(names)):
                seconds[name].append(timed(functions[name]))
    else:
        first, *others = names

        def run_others() -> None:
            for name in draw.sample(others, len(others)):
                seconds[name].append(timed(functions[name]))

        def run_first() -> None:
            seconds[first].append(timed(functions[first]))

        benchmark.pedantic(run_first, setup=run_others, rounds=rounds, iterations=1)
    return {name: Stats(tuple(values)) for name, values in seconds.items()}


# --- copy bandwidth ------------------------------------------------------------------------------


class Copy:
    """``copy_`` of ``count`` bytes into memory that is already there: the yardstick of an op.

    It reads and writes ``count`` bytes each, so it moves 2 * count. At least 128 MiB are copied, so
    that the working set of source and destination is 256 MiB or more and lies outside the caches.
    """

    def __init__(self, count: int = 128 * MEBI, device: str = "cpu") -> None:
        self.count = max(count, 128 * MEBI)
        elements = self.count // 4
        self.source = torch.rand(elements, device=device)
        self.target = torch.zeros(elements, device=device)

    def __call__(self) -> None:
        self.target.copy_(self.source)

    @property
    def bytes_moved(self) -> int:
        return 2 * self.count

    def share(self, bytes_moved: int, op: Stats, copy: Stats) -> float:
        """The op's bandwidth over the copy's; ``bytes_moved`` are the bytes the op must move."""
        return (bytes_moved / op.median) / (self.bytes_moved / copy.median)


# --- models and peers ----------------------------------------------------------------------------


def build(
    factory: Callable[[], nn.Module], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A calibrated full-size model in channels_last; calibration uses small images, for speed."""
    model = calibrate(seeded(factory), random_images((3, 128, 128), 4, seed=1))
    model.requires_grad_(False)
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last)


def photo(size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """One random image (1, 3, size, size), channels_last."""
    image = random_images((3, size, size), 1, seed=7)
    return image.to(device=device, dtype=dtype, memory_format=torch.channels_last)


def spread_sample(count: int, sample: int) -> list[int]:
    """``sample`` indices out of ``count``, evenly spread."""
    return [round(i * (count - 1) / max(1, sample - 1)) for i in range(min(sample, count))]


@torch.inference_mode()
def plain(
    model: Callable[[Tensor], Tensor], image: Tensor, boxes: Tensor, batch: int, fill: float = 0.0
) -> Tensor:
    """Scores (P, K) by plain batched occlusion: boxes filled into an expanded batch."""
    scores = []
    rows = boxes.tolist()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        x = image.expand(len(part), -1, -1, -1).clone(memory_format=torch.channels_last)
        for i, (top, left, bottom, right) in enumerate(part):
            x[i, :, top:bottom, left:right] = fill
        scores.append(model(x))
    return torch.cat(scores)


@dataclass(frozen=True)
class Peer:
    """A competitor that runs ``passes`` of a case's forward passes; the rest is extrapolated."""

    name: str
    run: Callable[[], Any]
    passes: int
    setting: str


def best_of(candidates: Iterable[Peer]) -> Peer:
    """The candidate with the least time a pass, each timed once (and warmed up where quick)."""
    best, best_time = None, float("inf")
    for peer in candidates:
        try:
            seconds = timed(peer.run)
            if seconds < 3:
                seconds = timed(peer.run)
        except (RuntimeError, MemoryError) as error:  # out of memory: not the best
            print(f"  {peer.name} {peer.setting}: {str(error).splitlines()[0]}")
            continue
        seconds /= peer.passes
        print(f"  {peer.name} {peer.setting}: {duration(seconds)} a pass", flush=True)
        if seconds < best_time:
            best, best_time = peer, seconds
    if best is None:
        raise RuntimeError("no candidate ran")
    return best


def plain_peers(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    boxes: Tensor,
    batches: Sequence[int],
    sample: int,
    name: str = "plain",
) -> list[Peer]:
    """Plain batched occlusion at several batch sizes, each on whole batches only."""
    peers = []
    for batch in batches:
        count = min(len(boxes), batch * max(1, sample // batch))
        part = boxes[spread_sample(len(boxes), count)]

        def run(batch: int = batch, part: Tensor = part) -> Tensor:
            return plain(model, image, part, batch)

        peers.append(Peer(name, run, len(part), f"batch {batch}"))
    return peers


def captum_peers(
    model: nn.Module, image: Tensor, evals: Sequence[int] = (1, 8, 32), sample: int = 32
) -> list[Peer]:
    """captum's Occlusion at several ``perturbations_per_eval``.

    What a position costs captum depends on neither window nor stride, so the sample is a coarser
    grid of the same image. Its pass over the unoccluded image counts as a pass. One target.
    """
    from captum.attr import Occlusion

    peers = []
    height, width = image.shape[2:]
    for per_eval in evals:
        # At least one full evaluation: side * side >= per_eval.
        side = next(n for n in range(2, 99) if n * n >= max(per_eval, sample))
        window = (3, -(-height // side), -(-width // side))
        positions = len(grid((height, width), window[1:], window[1:]))

        def run(per_eval: int = per_eval, window: tuple[int, int, int] = window) -> Tensor:
            return Occlusion(model).attribute(
                image,
                sliding_window_shapes=window,
                strides=window,
                target=0,
                perturbations_per_eval=per_eval,
            )

        peers.append(Peer("captum", run, positions + 1, f"perturbations_per_eval {per_eval}"))
    return peers


# --- tables --------------------------------------------------------------------------------------


class Report:
    """Rows of Markdown tables, one table a section, columns in the order of first mention."""

    def __init__(self) -> None:
        self.sections: dict[str, list[dict[str, str]]] = {}
        self.remarks: dict[str, list[str]] = {}

    def add(self, section: str, row: dict[str, str]) -> None:
        self.sections.setdefault(section, []).append(row)
        print("  " + ", ".join(f"{key}: {value}" for key, value in row.items()), flush=True)

    def remark(self, section: str, text: str) -> None:
        """A sentence below the section's table, once."""
        remarks = self.remarks.setdefault(section, [])
        if text not in remarks:
            remarks.append(text)

    def bandwidth(
        self, op: str, bytes_moved: int, stats: dict[str, Stats], copy: Copy, target: float
    ) -> None:
        """One row of the kernel table; stats holds "ours" and "copy" (and any other peer)."""
        ours = stats["ours"]
        row = {
            "op": op,
            "ours": str(ours),
            "GB/s": f"{bytes_moved / ours.median / 1e9:.1f}",
            "copy_ GB/s": f"{copy.bytes_moved / stats['copy'].median / 1e9:.1f}",
            "share of copy": f"{100 * copy.share(bytes_moved, ours, stats['copy']):.0f}%",
            "target": f"{100 * target:.0f}%",
        }
        for name, other in stats.items():
            if name not in ("ours", "copy"):
                row[name] = f"{other} ({other.median / ours.median:.1f}x)"
        self.add("Kernels", row)

    def markdown(self) -> str:
        lines = ["# Benchmark results", "", f"Machine: {machine_line()}", ""]
        for section, rows in self.sections.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            lines += [f"## {section}", ""]
            lines.append("| " + " | ".join(columns) + " |")
            lines.append("|" + "---|" * len(columns))
            for row in rows:
                lines.append("| " + " | ".join(row.get(key, "") for key in columns) + " |")
            lines.append("")
            lines += [f"- {text}" for text in self.remarks.get(section, [])]
            lines += [""] if section in self.remarks else []
        return "\n".join(lines).rstrip() + "\n"
