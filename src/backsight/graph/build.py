"""The node table of an exported program."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from . import aten, kinds
from .export import written_to
from .fields import is_aside
from .node import Graph, references, substitute
from .place import place
from .refusals import CaptureError, refuse_training
from .table import Table

#: Extrema with their places, and without.
_LARGEST = {
    torch.ops.aten.max.dim: torch.ops.aten.amax.default,
    torch.ops.aten.min.dim: torch.ops.aten.amin.default,
}


def build(exported: Any, axes: int, within: str) -> Graph:
    """The node table of a program that torch.export made for images of so many spatial axes.

    Raises:
        CaptureError: it is no function of one image tensor.
        RefusedError: a batch norm or a dropout is in training mode.
    """
    return _Builder(exported, axes, within).graph()


class _Builder:
    def __init__(self, exported: Any, axes: int, within: str) -> None:
        self.exported = exported
        self.table = Table(axes, within)
        self.nodes = self.table.nodes
        self.largest: set[str] = set()  # names of extrema that stand for their first part

    def graph(self) -> Graph:
        table, signature = self.table, self.exported.graph_signature
        values = {
            **{n: self._state(t) for n, t in signature.inputs_to_parameters.items()},
            **{n: self._state(t) for n, t in signature.inputs_to_buffers.items()},
            **{
                n: self.exported.constants[t]
                for n, t in signature.inputs_to_lifted_tensor_constants.items()
            },
        }
        image: int | None = None
        sides: list[int] = []
        output: int | None = None
        for fx in self.exported.graph.nodes:
            if fx.op == "placeholder" and fx.name in values:
                self._constant(fx, values[fx.name].detach())
            elif fx.op == "placeholder" and image is not None:
                sides.append(table.add(fx, kinds.INPUT, varies=False))
            elif fx.op == "placeholder":
                image = self._image(fx)
            elif fx.op == "call_function":
                self._call(fx)
            elif fx.op == "output":
                if signature.buffers_to_mutate or len(signature.user_outputs) != 1:
                    raise CaptureError(
                        "expected a model that returns one tensor and changes no buffer"
                    )
                if not table.holds(signature.user_outputs[0]):
                    raise CaptureError("expected a model that returns a tensor")
                output = table.own(table.operand(fx.args[0][0]), fx, fx.name)
            else:
                raise CaptureError(f"the captured graph holds a {fx.op} node")
        if image is None or output is None:
            raise CaptureError("the captured graph has no input or no output")
        self._check(output, table.is_batch_first(signature.user_outputs[0]))
        return Graph(self.nodes, image, output, table.axes, tuple(sides)).without_unused()

    def _check(self, output: int, batch_first: bool) -> None:
        """Refuse what gives no scores for each image by itself."""
        if self.table.is_constant(output) or not batch_first:
            raise CaptureError(
                f"expected an output of shape (batch, ...), got {self.nodes[output].shape} whatever"
                " the batch"
            )
        if not self.nodes[output].varies:
            raise CaptureError("the output does not depend on the image")
        for node in self.nodes:
            for i in node.inputs:
                if node.varies and is_aside(self.nodes[i]) and not self.nodes[i].batched:
                    raise CaptureError(
                        f"{node.label} reads a side input whose first axis is not the batch"
                    )

    def _state(self, name: str) -> Tensor:
        value = self.exported.state_dict.get(name)
        tensor: Tensor = self.exported.constants[name] if value is None else value
        return tensor

    def _image(self, fx: Any) -> int:
        value = fx.meta["val"]
        self.table.batch, self.table.device = value.shape[0], value.device
        if not isinstance(self.table.batch, torch.SymInt):
            raise CaptureError("the model fixes the batch size")
        shape = tuple(map(int, value.shape[1:]))
        return self.table.add(fx, kinds.INPUT, shape=shape, spatial=True)

    def _constant(self, fx: Any, value: Tensor) -> None:
        self.table.add(fx, kinds.CONSTANT, value=value, varies=False)

    def _call(self, fx: Any) -> None:
        table, written = self.table, written_to(fx)
        if written is not None:
            name, overload = fx.target._schema.name, fx.target._schema.overload_name or "default"
            fx.target = getattr(
                getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_")), overload
            )
        if fx.target is operator.getitem and fx.args[0].name in self.largest:
            source = fx.args[0]
            table.name(fx, table.index(source), table.layouts.get(source.name))
            return
        if fx.target in _LARGEST and all(u.args[1] == 0 or not u.users for u in fx.users):
            # Only the values are read, not their places.
            x, dim, *keepdim = fx.args
            fx.target, fx.args = _LARGEST[fx.target], (x, [dim], *keepdim)
            fx.meta = {**fx.meta, "val": fx.meta["val"][0]}
            self.largest.add(fx.name)
        self._operation(fx)
        if written is not None:
            table.overwrite(written, fx)

    def _operation(self, fx: Any) -> None:
        args, kwargs = self.table.refs(fx.args), self.table.refs(fx.kwargs)
        inputs = tuple(references((args, kwargs)))
        made = fx.meta.get("val")
        if isinstance(made, torch.SymInt | torch.SymFloat | torch.SymBool):
            self._check_size(fx)
            called = {"target": fx.target, "args": args, "kwargs": kwargs, "inputs": inputs}
            self.table.add(fx, kinds.SIZE, **called, varies=False)
            return
        tensors = made if isinstance(made, list | tuple) else [made]
        fixed = all(map(self.table.is_constant, inputs))
        all_tensors = all(isinstance(t, Tensor) for t in tensors)
        if fixed and all_tensors and not aten.is_random(fx.target):
            args, kwargs = (substitute(a, lambda i: self.nodes[i].value) for a in (args, kwargs))
            with torch.no_grad():
                self._constant(fx, fx.target(*args, **kwargs))
            return
        self._refuse(fx, args)
        place(self.table, fx)

    def _check_size(self, fx: Any) -> None:
        """A number in the graph must be the batch size, or come from it alone."""
        if any(isinstance(a.meta.get("val"), Tensor) for a in fx.all_input_nodes) and (
            str(fx.meta["val"]) != str(self.table.batch)
        ):
            raise CaptureError(f"the model computes a number from a tensor ({fx.name})")

    def _refuse(self, fx: Any, args: tuple[Any, ...]) -> None:
        """A training-mode batch norm or dropout has no per-image output."""
        name, module = aten.operation_name(fx.target), self.table.module(fx)
        if "batch_norm" in name and "no_training" not in name and len(args) > 5 and args[5] is True:
            refuse_training(module, "a batch norm")
        if "dropout" in name and len(args) > 2 and args[1] and args[2] is True:
            refuse_training(module, "a dropout")
        drawn = aten.bind(fx.target, args, {}).get("dropout_p", 1.0) != 0.0
        if aten.is_random(fx.target) and "dropout" not in name and drawn:
            raise CaptureError(f"the model draws random numbers ({name})")
