"""The drops of a large image into a store, unit by unit."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..._version import __version__
from ...models.subject import Subject
from ...occlusion_store import Store, tidy
from ...sources import geo
from ...sweep.readout import Drops, Reading
from .derive import derive
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
    if meta["geo"] and len(task.shape) == 3:
        geo.load_tifffile("writing GeoTIFF")  # says that the package is missing before all work
    meta |= {"plan": _plan(task)}
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
        if missing or store.base is None or store.targets is None:
            _pass(task, store, watch)
            found = task.drops([task.units[i] for i in missing], watch)
            # Closed here, a phase that is interrupted ends before the error goes on.
            with _Behind(store, watch) as writer, closing(found):  # type: ignore[type-var]
                for number, (unit, drops) in zip(missing, found, strict=True):
                    boxes = task.grid.boxes[torch.from_numpy(unit.positions)]
                    writer.write(number, boxes.numpy(), drops)
                    if number == missing[-1]:  # while it is still told of the sweep
                        writer.wait()
        if len(store.done) == len(task.units):
            derive(store)
            floors = (store.read(unit, "noise_floor") for unit in range(len(task.units)))
            store.finish({"noise_floor": max(float(f["noise_floor"][0]) for f in floors)})
    return Store.view(path)


class _Behind:
    """Writes units in a thread of its own while the next one is computed. A context manager, at
    whose end nothing is being written any more.
    """

    def __init__(self, store: Store, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self._thread = ThreadPoolExecutor(1, "backsight-store")
        self._flying: tuple[int, Future[None]] | None = None

    def write(self, number: int, boxes: npt.NDArray[np.int64], found: Drops) -> None:
        """Begin to write a unit, once the one before it is written."""
        self.wait()
        drops = found.drops[0].cpu().numpy()
        most_probable = found.most_probable[0, :, None].cpu().numpy()
        base, floor = _base(found), found.noise_floor

        def work() -> None:
            scores = np.empty_like(drops)
            # Of doubles, and rounded once.
            np.subtract(base, drops, out=scores, dtype=np.float64, casting="same_kind")
            self._store.write(
                number,
                drops=drops,
                scores=scores,
                boxes=boxes,
                most_probable=most_probable,
                noise_floor=floor,
            )

        self._flying = number, self._thread.submit(work)

    def wait(self) -> None:
        """Until what is being written is there; raises what has kept it from that."""
        if self._flying is not None:
            number, written = self._flying
            written.result()
            self._flying = None
            self._watch.stored(number)

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()


def _pass(task: Large, store: Store, watch: Watch) -> None:
    """The first pass over the image, unless another process has kept what it found, and the scores
    of the unoccluded image.
    """
    kept = store.first_pass
    found = task.first_pass(watch, kept)
    carried = task.sweep.maps.carried()
    if carried is not None and carried != kept:
        store.write_first_pass(carried)
    if store.base is None or store.targets is None:
        targets = torch.arange(found.base.shape[1]) if found.targets is None else found.targets[0]
        store.write_base(_base(found), targets.cpu().numpy())


def _base(found: Drops | Reading) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = found.base[0].double().cpu().numpy()
    return values


def description(task: Large) -> dict[str, Any]:
    """What the result depends on, in plain values: equal for runs that give equal bytes. The plan
    follows from it, and takes the model's graph.
    """
    readout = task.readout
    return {
        "model": _fingerprint(task.subject),
        "image": {"shape": list(task.shape), "fingerprint": task.image.fingerprint()},
        "geo": geo.known(getattr(task.image, "geo", None)),
        "grid": None if task.grid.shape is None else list(task.grid.shape),
        **task.places,
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


def _plan(task: Large) -> dict[str, Any]:
    """Of the plan what any machine would say."""
    plan = task.plan().as_dict()
    names = ("positions", "units", "side", "pass_flops", "flops", "plain_flops", "bytes", "memory")
    return {name: plan[name] for name in names}


def _is_finished(path: str | PathLike[str], meta: dict[str, Any]) -> bool:
    """Whether a store holds this very sweep, and all of it."""
    try:
        found = Store.view(path)
    except (ValueError, OSError):
        return False
    same = {**found.meta, "plan": None} == {**meta, "plan": None}
    return same and found.intact


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
