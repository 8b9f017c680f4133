"""Models that are there already, with their slow modules replaced."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.utils import _ntuple

from .. import nn as ours
from ..models.call import unwrapped

__all__ = ["Acceleration", "accelerate", "restore"]

# torch's classes and ours. Each of ours is a subclass with the same attributes, so that a module
# changes by its class alone: it stays the same object, with its parameters, hooks and owners.
_DECONVS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: ours.ConvTranspose1d,
    nn.ConvTranspose2d: ours.ConvTranspose2d,
    nn.ConvTranspose3d: ours.ConvTranspose3d,
}
_POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: ours.MaxPool1dSwitches,
    nn.MaxPool2d: ours.MaxPool2dSwitches,
    nn.MaxPool3d: ours.MaxPool3dSwitches,
}
_UNPOOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxUnpool1d: ours.MaxUnpool1d,
    nn.MaxUnpool2d: ours.MaxUnpool2d,
    nn.MaxUnpool3d: ours.MaxUnpool3d,
}
_PEERS = _DECONVS | _POOLS | _UNPOOLS
_TORCHS = {mine: torchs for torchs, mine in _PEERS.items()}
_MARK = "_accelerated"  # in the __dict__ of a module that `accelerate` changed, copies included


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` did.

    Attributes:
        swapped: names of the modules that it changed, with torch's class of each. A module with
            several names is listed under its first.
        left: names of the other modules of these kinds, with the reason why they stay.
    """

    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        count = len(self.swapped)
        lines = [f"{count} module{'' if count == 1 else 's'} swapped"]
        lines += [f"  {name or '(the model)'}: {kind}" for name, kind in self.swapped.items()]
        if self.left:
            lines.append(
                f"{len(self.left)} left as {'it is' if len(self.left) == 1 else 'they are'}"
            )
            lines += [f"  {name or '(the model)'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Acceleration:
    """Swaps modules of a model, in place, for those of `backsight.nn`, which compute the same.

    - Transposed convolutions, `nn.ConvTranspose1d` to `3d`.
    - Max pools with ``return_indices=True`` whose indices go to max unpools and nowhere else, and
      those unpools: they then pass on switches of one byte (`functional.Switches`). Only where a
      symbolic trace of the model's forward shows it, the windows do not overlap, and no hook can
      see the indices. Called by itself, such a pool returns switches. An unpool to another size
      than was pooled puts values where the pool took them; torch counts cells in the wrong map.

    Modules stay the same objects and parameters the same tensors: optimisers, hooks, shared
    modules, the training flag and the state_dict are not touched. Subclasses of torch's modules are
    left alone. What was swapped can be copied, pickled, compiled and exported; `restore` undoes it.

    ::

        print(backsight.accelerate(generator))
        backsight.restore(generator)

    Args:
        model: any module; of one in torch.compile's or DataParallel's wrapper, what is inside.

    Returns:
        Which modules were swapped, and which were left and why. Modules that were swapped before
        are in neither.

    Raises:
        TypeError: model is no module.
    """
    model = _unwrapped("accelerate", model)
    modules = dict(model.named_modules())
    left: dict[str, str] = {}
    found = {}
    for name, module in modules.items():
        reason = _reason(module)
        if reason is not None:
            left[name] = reason
        elif type(module) in _DECONVS:
            found[name] = module
    pools = {n: m for n, m in modules.items() if _returns_indices(m) and n not in left}
    unpools = {n: m for n, m in modules.items() if type(m) in _UNPOOLS and n not in left}
    paired, others = _pairs(model, modules, pools, unpools)
    left |= others
    found |= paired
    found = {name: module for name, module in modules.items() if name in found}  # in their order
    _assign((module, _PEERS[type(module)]) for module in found.values())
    swapped = {name: _TORCHS[type(module)].__name__ for name, module in found.items()}
    return Acceleration(swapped, left)


def restore(model: nn.Module) -> tuple[str, ...]:
    """Undoes `accelerate`: the modules that it swapped, in this model or in one that this model was
    copied from, are of torch's classes again. Modules of `backsight.nn` that were built as such
    stay.

    Returns:
        The names of the modules that were restored.

    Raises:
        TypeError: model is no module.
    """
    modules = dict(_unwrapped("restore", model).named_modules())
    found = {n: m for n, m in modules.items() if _MARK in m.__dict__ and type(m) in _TORCHS}
    _assign((module, _TORCHS[type(module)]) for module in found.values())
    return tuple(found)


def _unwrapped(function: str, model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: expected a torch.nn.Module, got {type(model).__name__}")
    return unwrapped(model)  # type: ignore[return-value]


def _assign(changes: Iterable[tuple[nn.Module, type[nn.Module]]]) -> None:
    """Gives modules other classes: all of them, or none if something comes between."""
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module, kind in changes:
            before.append((module, type(module)))
            _become(module, kind)
    except BaseException:
        for module, kind in before:
            _become(module, kind)
        raise


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind
    if kind in _TORCHS:
        module.__dict__[_MARK] = True
    else:
        module.__dict__.pop(_MARK, None)


def _returns_indices(module: nn.Module) -> bool:
    return type(module) in _POOLS and bool(getattr(module, "return_indices", False))


def _reason(module: nn.Module) -> str | None:
    """Why a module of these kinds has to stay, as far as that can be seen from itself."""
    kinds = (*_DECONVS, *_UNPOOLS)
    if type(module) in _TORCHS or not (
        isinstance(module, kinds)
        or (isinstance(module, tuple(_POOLS)) and getattr(module, "return_indices", False))
    ):
        return None
    if type(module) not in _PEERS:
        return f"{type(module).__name__} is a class of its own"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    return None


# --- pools and the unpools that they feed --------------------------------------------------------


def _pairs(
    model: nn.Module,
    modules: dict[str, nn.Module],
    pools: dict[str, nn.Module],
    unpools: dict[str, nn.Module],
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The pools and unpools that can be swapped together, and for the others why not."""
    every = pools | unpools
    left: dict[str, str] = {}
    for name, module in every.items():
        if _overlaps(module):
            left[name] = "its windows overlap, or are dilated"
        elif any(_hooked(modules[owner]) for owner in _owners(name, modules)):
            left[name] = "a hook may see the indices"
    if not pools.keys() - left.keys() or not unpools.keys() - left.keys():
        for name in every.keys() - left.keys():
            left[name] = "nothing to pair it with"
        return {}, _ordered(left, every)
    try:
        traces = _traces(model)
    # A forward may raise anything when it is called with proxies.
    except Exception as error:
        why = f"the model cannot be traced: {type(error).__name__}"
        left |= dict.fromkeys(every.keys() - left.keys(), why)
        return {}, _ordered(left, every)
    swapped = every.keys() - left.keys()
    while bad := set().union(*(_mismatched(trace, modules, swapped) for trace in traces)):
        left |= dict.fromkeys(bad, "its indices go, or come from, somewhere else too")
        swapped -= bad
    return {name: every[name] for name in swapped}, _ordered(left, every)


def _ordered(left: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: left[name] for name in names if name in left}


def _owners(name: str, modules: dict[str, nn.Module]) -> Iterator[str]:
    """The module itself, and those it lies in."""
    parts = name.split(".") if name else []
    owners = (".".join(parts[:i]) for i in range(len(parts) + 1))
    return (owner for owner in owners if owner in modules)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _geometry(module: Any) -> tuple[tuple[int, ...], ...]:
    dims = int(type(module).__name__[-2])
    each = _ntuple(dims)
    return tuple(each(v) for v in (module.kernel_size, module.stride, module.padding))


def _overlaps(module: Any) -> bool:
    """Where windows overlap, torch gives the gradient of a cell to all that named it."""
    kernel, stride, _ = _geometry(module)
    dilation = _ntuple(len(kernel))(getattr(module, "dilation", 1))
    return any(k > s or d > 1 for k, s, d in zip(kernel, stride, dilation, strict=True))


class _Tracer(fx.Tracer):
    """Enters neither torch's modules nor ours."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _TORCHS or super().is_leaf_module(m, module_qualified_name)


def _traces(model: nn.Module) -> list[fx.Graph]:
    """What the model's forward does, in training and in evaluation.

    A copy is traced, so that what forwards write to the model or to buffers is not left there.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return [_Tracer().trace(twin.train(mode)) for mode in (True, False)]


def _mismatched(graph: fx.Graph, modules: dict[str, nn.Module], swapped: set[str]) -> set[str]:
    """The names among `swapped` that cannot be: some index passes between one of them and something
    else, or a module that is not called at all."""
    bad = set(swapped)
    called = {}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in swapped:
            called[node] = str(node.target)
            bad.discard(str(node.target))
    for node, name in called.items():
        if type(modules[name]) in _UNPOOLS:
            indices = node.args[1] if len(node.args) > 1 else node.kwargs.get("indices")
            source = _source(indices)
            if source not in called or not _fits(modules[called[source]], modules[name]):
                bad.add(name)
            continue
        if not all(_passes(user, called) for user in node.users):
            bad.add(name)
    return bad


def _passes(result: fx.Node, called: dict[fx.Node, str]) -> bool:
    """Whether this use of what a pool returns takes the values, or hands the indices to unpools."""
    if result.op != "call_function" or result.target is not operator.getitem:
        return False
    return bool(result.args[1] == 0) or all(
        taker in called and _takes(taker, result) for taker in result.users
    )


def _source(indices: Any) -> fx.Node | None:
    """The call whose second result `indices` is."""
    if not isinstance(indices, fx.Node) or indices.target is not operator.getitem:
        return None
    value, position = indices.args
    return value if position in (1, -1) and isinstance(value, fx.Node) else None


def _takes(unpool: fx.Node, indices: fx.Node) -> bool:
    """Whether a call takes `indices` as its indices, and as nothing else."""
    places = chain(enumerate(unpool.args), unpool.kwargs.items())
    return [place for place, value in places if value is indices] in ([1], ["indices"])


def _fits(pool: nn.Module, unpool: nn.Module) -> bool:
    return type(pool) in _POOLS and _geometry(pool) == _geometry(unpool)
