"""The drops of a large image into a store, unit by unit."""

from __future__ import annotations

import hashlib
from os import PathLike
from typing import Any

import numpy as np
import torch

from ..._version import __version__
from ...models.subject import Subject
from ...occlusion_store import Store, tidy
from .task import Large
from .watch import Silent, Watch

__all__ = ["description", "fill"]


def fill(
    task: Large,
    path: str | PathLike[str],
    shard: tuple[int, int] | None = None,
    watch: Watch | None = None,
) -> Store:
    """The units of a shard that a store is missing, into it.

    Returns:
        A view of the store.
    """
    first, step = _shard(shard)
    meta = description(task)
    if _is_finished(path, meta):
        tidy(path)
        return Store.view(path)
    watch = watch or Silent()
    outputs = task.readout.columns(task.sweep.graph.outputs)
    wide = torch.float64 if task.like.dtype == torch.float64 else torch.float32
    with Store.begin(
        path,
        meta,
        units=[len(unit.positions) for unit in task.units],
        outputs=outputs,
        axes=len(task.shape) - 1,
        dtype=str(wide).removeprefix("torch."),
        shared=shard is not None,
    ) as store:
        done = store.done
        missing = [i for i in range(len(task.units)) if i not in done and i % step == first]
        if missing or store.base is None:
            found = task.drops([task.units[i] for i in missing], watch)
            for number, (unit, drops) in zip(missing, found, strict=True):
                boxes = task.grid.boxes[torch.from_numpy(unit.positions)]
                store.write(number, drops.drops[0].cpu().numpy(), boxes=boxes.numpy())
                watch.stored(number)
            reading = task.sweep.base()
            store.write_base(reading.base[0].double().cpu().numpy())
        if len(store.done) == len(task.units):
            targets = task.sweep.base().targets
            store.finish({"targets": None if targets is None else targets[0].tolist()})
    return Store.view(path)


def description(task: Large) -> dict[str, Any]:
    """What the result depends on, in plain values: equal for runs that give equal bytes."""
    readout = task.readout
    return {
        "model": _fingerprint(task.subject),
        "image": {"shape": list(task.shape), "fingerprint": task.image.fingerprint()},
        "boxes": hashlib.sha256(task.grid.boxes.numpy().tobytes()).hexdigest(),
        "baseline": np.asarray(task.baseline, np.float64).reshape(-1).tolist(),
        "output": task.output,
        "probability": readout.probability,
        "targets": None if readout.targets is None else list(readout.targets),
        "top": readout.top,
        "memory": task.memory,
        "dtype": str(task.like.dtype).removeprefix("torch."),
        "machine": _machine(task.like.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "backsight": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _fingerprint(subject: Subject) -> str:
    """Of the layers and what their forward functions do, the weights, and the preprocessing. A
    function that a forward function calls may change unseen.
    """
    model = subject.module
    found = hashlib.sha256(f"{model!r} {subject.preprocessing!r}".encode())
    for name, module in model.named_modules():
        found.update(f"{name} {type(module).__qualname__}".encode())
        code = getattr(type(module).forward, "__code__", None)
        found.update(code.co_code if code else b"")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_finished(path: str | PathLike[str], meta: dict[str, Any]) -> bool:
    """Whether a store holds this very sweep, and all of it."""
    try:
        found = Store.view(path)
    except (ValueError, OSError):
        return False
    return (
        found.finished
        and found.meta == meta
        and found.base is not None
        and len(found.done) == len(found.units)
    )


def _machine(device: torch.device) -> str:
    """What the bits of a result depend on: the instruction set, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def _shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    first, count = shard
    if not 0 <= first < count:
        raise ValueError(f"expected a shard (i, n) with i from 0 to n - 1, got {shard!r}")
    return first, count
