"""The node table while it is filled: which node, and in which layout, each exported value is."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import cells, kinds
from .kinds import Kind
from .layouts import InLayout, Layout
from .node import Node, Ref


class Table:
    """Nodes in the making.

    Attributes:
        axes: spatial axes of the image.
        nodes: those so far.
        layouts: how the model holds a map, by name, where it is not (batch, channels, *spatial);
            for an operation with several results, how it holds each.
        forms: the layouts so far, by the model's shape.
        batch: the batch size, as export calls it.
        device: of the image.
    """

    def __init__(self, axes: int, within: str) -> None:
        self.axes = axes
        self.nodes: list[Node] = []
        self.layouts: dict[str, Layout] = {}
        self.forms: dict[tuple[int, ...], Layout] = {}
        self.batch: Any = None
        self.device = torch.device("cpu")
        self._within = within
        self._index: dict[str, int] = {}
        self._batch_first: set[str] = set()  # names of the values whose first axis is the batch
        self._own: dict[tuple[int, Layout], int] = {}

    def index(self, fx: Any) -> int:
        """The node that `fx` is."""
        return self._index[fx.name]

    def holds(self, name: str) -> bool:
        return name in self._index

    def is_batch_first(self, name: str) -> bool:
        return name in self._batch_first

    def shape(self, value: Any) -> tuple[int, ...] | None:
        """The shape of one sample; None for what has none."""
        if not isinstance(value, Tensor) or not self._is_batched(value):
            return None
        known = all(isinstance(s, int) for s in value.shape[1:])
        return tuple(value.shape[1:]) if known else None

    def _is_batched(self, value: Tensor) -> bool:
        return value.ndim > 0 and str(value.shape[0]) == str(self.batch)

    def is_constant(self, index: int) -> bool:
        return isinstance(self.nodes[index].kind, kinds.Constant)

    def module(self, fx: Any) -> str:
        """The path of the module that an operation stands in."""
        stack = list((fx.meta.get("nn_module_stack") or {}).values())
        path: str = stack[-1][0] if stack else ""
        return path.removeprefix(self._within).removeprefix(".") if self._within else path

    # ------------------------------------------------------------------ nodes

    def add(self, fx: Any, kind: Kind, **fields: Any) -> int:
        """A node for the value of `fx`: in the table's form and of the shape that export gave it,
        unless told otherwise.
        """
        index = self.insert(fx, kind, fx.name)
        node = self.nodes[index]
        self.name(fx, index)
        value = fx.meta.get("val")
        if isinstance(value, Tensor):
            node.dtype = value.dtype
            shape = self.shape(value)
            if shape is not None:
                node.shape = shape
                node.spatial = len(shape) == self.axes + 1
        for key, field in fields.items():
            setattr(node, key, field)
        return index

    def insert(self, fx: Any, kind: Kind, name: str, **fields: Any) -> int:
        """A node beside that of `fx`."""
        index = len(self.nodes)
        self.nodes.append(Node(index, name, kind, module=self.module(fx), **fields))
        return index

    def set_map(self, fx: Any, index: int, layout: Layout, extent: tuple[int, ...]) -> None:
        """Make node `index` a map that the model holds as `layout` under the name of `fx`."""
        node = self.nodes[index]
        if isinstance(fx.meta.get("val"), Tensor):
            node.shape, node.spatial = (prod(layout.channels), *extent), True
            node.dtype = layout.truth or node.dtype
        self.name(fx, index, layout)

    def set_rules(self, index: int) -> None:
        """Find the window rules of a node whose other fields are set."""
        node = self.nodes[index]
        node.rules = node.kind.rules(node, self.nodes)

    # ------------------------------------------------------------------ names

    def name(self, fx: Any, index: int, layout: Layout | None = None) -> None:
        """Let `fx` stand for node `index`, in a layout where that is not the table's form."""
        self._index[fx.name] = index
        if layout is not None and not layout.is_standard:
            self.layouts[fx.name] = layout
            if self.nodes[index].spatial:
                self.forms[layout.shape(self.nodes[index].extent)] = layout
        value = fx.meta.get("val")
        if isinstance(value, Tensor) and self._is_batched(value):
            self._batch_first.add(fx.name)
        elif not self.nodes[index].spatial:
            self.nodes[index].batched = False

    def name_map(self, fx: Any, index: int) -> None:
        """Let `fx` stand for a map made here, and give the map its name."""
        self._index[fx.name] = index
        self.nodes[index].name = fx.name
        self._batch_first.add(fx.name)

    def overwrite(self, written: Any, fx: Any) -> None:
        """From here on `written` is what `fx` is: `fx` was an operation in place."""
        self._index[written.name] = self._index[fx.name]
        self.layouts.pop(written.name, None)
        if fx.name in self.layouts:
            self.layouts[written.name] = self.layouts[fx.name]

    # ------------------------------------------------------------------ arguments

    def refs(self, args: Any, make: Callable[[Any], Ref] | None = None) -> Any:
        """Arguments with a Ref for each fx node: to its node, or as `make` says."""
        if isinstance(args, torch.fx.Node):
            return make(args) if make else Ref(self.index(args))
        if isinstance(args, list | tuple):
            return (
                type(args)(self.refs(a, make) for a in args)
                if type(args) in (list, tuple)
                else [*(self.refs(a, make) for a in args)]
            )
        if isinstance(args, dict):
            return {k: self.refs(v, make) for k, v in args.items()}
        return args

    def operand(self, fx: Any) -> cells.Operand:
        index = self.index(fx)
        node = self.nodes[index]
        known = self.layouts.get(fx.name)
        if known is None and node.spatial and fx.name in self._batch_first:
            known = Layout.standard(node.shape[0], self.axes)
        return cells.Operand(index, known if node.spatial else None)

    def own(self, operand: cells.Operand, fx: Any, operation: str) -> int:
        """The value of an operand in the model's own form, made once."""
        index, layout = operand.index, operand.layout
        if layout is None or layout.is_standard:
            return index
        if (index, layout) not in self._own:
            source = self.nodes[index]
            shape = layout.shape(source.extent)
            made = self.insert(
                fx,
                kinds.FLAT,
                f"{source.name}_{operation}",
                operation=operation,
                target=InLayout(_itself, (Ref(0),), {}, [layout], None),
                args=(Ref(index),),
                inputs=(index,),
                shape=shape,
                spatial=len(shape) == self.axes + 1,
                dtype=torch.bool if layout.truth else source.dtype,
                varies=source.varies,
            )
            self.set_rules(made)
            self._own[index, layout] = made
        return self._own[index, layout]


def _itself(x: Tensor) -> Tensor:
    return x
