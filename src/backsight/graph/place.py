"""Where an exported operation goes in the node table: on maps in its form, on cells, on values."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import aten, cells, kinds, resampling
from .kinds import Kind
from .layouts import InLayout, Layout
from .node import Ref, references, substitute
from .table import Table


def place(table: Table, fx: Any) -> None:
    """Add the operation of `fx`, whose result is a tensor or several."""
    operands: list[cells.Operand] = []

    def operand(source: Any) -> Ref:
        operands.append(table.operand(source))
        return Ref(len(operands) - 1)

    template = table.refs(fx.args, operand), table.refs(fx.kwargs, operand)
    value = fx.meta.get("val")
    several = value if isinstance(value, list | tuple) and value else [None]
    call = cells.OnOperands(
        aten.operation_name(fx.target),
        fx.target,
        *template,
        table.nodes,
        table.axes,
        tuple(operands),
        table.shape(value),
        value.dtype if isinstance(value, Tensor) else None,
        table.shape(several[0]),
    )
    placing = _Placing(table, fx, call)
    if placing.from_parts():
        return
    layout = cells.relayout(call)
    if layout is not None:
        table.name(fx, call.operands[0].index, layout)
    elif not placing.in_standard_form() and not placing.on_cells():
        placing.on_own_values()


class _Placing:
    """One operation on its way into the table."""

    def __init__(self, table: Table, fx: Any, call: cells.OnOperands) -> None:
        self.table = table
        self.nodes = table.nodes
        self.axes = table.axes
        self.fx = fx
        self.call = call

    # ------------------------------------------------------------------ the ways in

    def from_parts(self) -> bool:
        """Add a call whose result is made of parts of its input, if it is one: as slices of the
        map, put together along one axis after the other.
        """
        operands, slices = self.call.operands, torch.ops.aten.slice.Tensor
        if any(o.layout is not None and not o.layout.is_standard for o in operands):
            return False
        found = aten.parts(self._on_nodes([o.index for o in operands]))
        if not found:
            return False
        source = operands[0].index
        for axis, ranges in found:
            dim, whole = 2 + axis, source
            pieces = [
                self._part(
                    resampling.SLICE, slices, (Ref(whole), dim, start, stop, 1), stop - start
                )
                for start, stop in ranges
            ]
            source = pieces[0]
            if len(pieces) > 1:
                width = sum(stop - start for start, stop in ranges)
                args = ([Ref(i) for i in pieces], dim)
                source = self._part(resampling.SPATIAL_CAT, torch.ops.aten.cat.default, args, width)
        self.table.name_map(self.fx, source)
        return True

    def in_standard_form(self) -> bool:
        """Add a call on maps in the table's form, or on none, where it has a window rule there."""
        call = self.call
        layouts = [o.layout for o in call.operands if o.layout is not None]
        if not all(layout.is_standard for layout in layouts):
            return False
        found = self._translated([o.index for o in call.operands])
        kind = found[0]
        if layouts and (not (kind.local or kind.by_difference) or call.dtype == torch.bool):
            return False
        layout = self._form(kind)
        if layout is not None:
            self._add_whole(found, layout)
            return True
        part = call.name == operator.getitem.__name__  # one of several
        form = self.table.layouts.get(self.fx.args[0].name) if part else None
        if form is not None and call.shape is not None:
            layout = form.resized(call.shape)
            assert layout is not None
        self._add(found, layout)
        return True

    def on_cells(self) -> bool:
        """Add a call that acts on each cell alone, if it does."""
        found = cells.entry(self.call)
        if found is None:
            return False
        self._add(self._on_inputs(found), found.layout, found.extent)
        return True

    def on_own_values(self) -> None:
        """Add a call on the values in the model's own form."""
        call = self.call
        own = [self.table.own(o, self.fx, call.name) for o in call.operands]
        found = self._translated(own)
        if own == [o.index for o in call.operands]:
            self._add(found)
            return
        if isinstance(found[0], kinds.Pointwise | kinds.Join):
            # It acts on cells of the value as it would lie in the table: not on the map's.
            found = kinds.BARRIER, call.target, (), {}
        if found[0] is kinds.BARRIER or found[0] is kinds.FLAT:
            self._add_whole(found, self._form(found[0]))
        else:
            self._add(found)

    # ------------------------------------------------------------------ the translation

    def _translated(self, indices: Sequence[int]) -> aten.Translation:
        """The call on the values of these nodes."""
        kind, target, args, kwargs = aten.translate(self._on_nodes(indices))
        inputs = references((args, kwargs))
        shape, dtype = self.call.shape, self.call.dtype
        spatial = shape is not None and len(shape) == self.axes + 1
        fits = self._on_maps(kind, spatial, inputs) or self._keeps_off_maps(kind, spatial)
        if spatial and kind.local and not (dtype and dtype.is_floating_point):
            fits = False  # no windows of it could be spliced
        return (kind if fits else kinds.BARRIER), target, args, kwargs

    def _on_nodes(self, indices: Sequence[int]) -> aten.OnNodes:
        call = self.call
        args, kwargs = (substitute(a, lambda k: Ref(indices[k])) for a in (call.args, call.kwargs))
        return aten.OnNodes(
            call.name, call.target, args, kwargs, self.nodes, self.axes, self.table.device
        )

    def _on_maps(self, kind: Kind, spatial: bool, inputs: Sequence[int]) -> bool:
        """Whether a window rule may be applied: a map comes out, and what goes in is maps that
        windows can be cut from, and constants.
        """
        return spatial and all(
            self.nodes[i].dtype.is_floating_point or not kind.local
            if self.nodes[i].spatial
            else self._broadcasts(i, kind)
            for i in inputs
        )

    def _broadcasts(self, index: int, kind: Kind) -> bool:
        """A constant that is the same at every place of the map."""
        value = self.nodes[index].value
        if not self.table.is_constant(index) or not isinstance(value, Tensor):
            return False
        if not isinstance(kind, kinds.Join):
            return True
        return all(s == 1 for s in value.shape[max(value.ndim - self.axes, 0) :])

    @staticmethod
    def _keeps_off_maps(kind: Kind, spatial: bool) -> bool:
        """Kinds that also mean something on values that are no maps (after a flatten)."""
        return isinstance(kind, kinds.Flat | kinds.Linear | kinds.Pointwise | kinds.GlobalSum) or (
            not spatial and isinstance(kind, kinds.Join)
        )

    def _form(self, kind: Kind) -> Layout | None:
        """How to hold the result of an operation that has no window rule, where not as the table
        does: any layout is right, and the one that the maps around it have is of use.
        """
        shape = self.call.shape
        if shape is None or not (kind is kinds.BARRIER or kind is kinds.FLAT):
            return None
        layouts = [o.layout for o in self.call.operands if o.layout is not None]
        form = layouts[0].resized(shape) if layouts else self.table.forms.get(shape)
        return None if form is None else Layout(form.axes, form.channels)

    # ------------------------------------------------------------------ the nodes

    def _add(
        self,
        found: aten.Translation,
        layout: Layout | None = None,
        extent: tuple[int, ...] | None = None,
        **fields: Any,
    ) -> int:
        """A node of this translation; with a layout, a map that the model holds so, of `extent` or
        as large as the call's result.
        """
        named = {"operation": self.call.name, **fields}
        index = self.table.add(self.fx, found[0], **self._called(found), **named)
        if layout is not None:
            if extent is None:
                assert self.call.shape is not None
                extent = layout.extent(self.call.shape)
            self.table.set_map(self.fx, index, layout, extent)
        self.table.set_rules(index)
        return index

    def _add_whole(self, found: aten.Translation, out: Layout | None) -> None:
        """Add the call on whole maps, between their own layouts and `out`."""
        call = self.call
        layouts = [
            None if o.layout is None or o.layout.is_standard else o.layout for o in call.operands
        ]
        target = InLayout(found[1], call.args, call.kwargs, layouts, out)
        refs = tuple(Ref(o.index) for o in call.operands)
        self._add((found[0], target, refs, {}), out)

    def _called(self, found: aten.Translation) -> dict[str, Any]:
        """What the node of a translation calls, and on what."""
        _, target, args, kwargs = found
        inputs = tuple(references((args, kwargs)))
        return {
            "target": target,
            "args": args,
            "kwargs": kwargs,
            "inputs": inputs,
            "varies": any(self.nodes[i].varies for i in inputs),
        }

    def _on_inputs(self, found: cells.Entry) -> aten.Translation:
        """An entry on its inputs' nodes, which are made where there are none."""
        inputs = [self._input(i) for i in found.inputs]
        args, kwargs = (substitute(a, lambda k: Ref(inputs[k])) for a in (found.args, found.kwargs))
        return found.kind, found.target, args, kwargs

    def _input(self, source: int | cells.Entry | Tensor) -> int:
        if isinstance(source, int):
            return source
        table, name = self.table, self.fx.name
        if isinstance(source, Tensor):
            index = table.insert(
                self.fx, kinds.CONSTANT, f"{name}_constant", varies=False, own=True
            )
            node = self.nodes[index]
            node.value, node.dtype = source, source.dtype
            if source.ndim == self.axes + 2:
                node.shape, node.spatial = tuple(source.shape[1:]), True
            return index
        fields = self._called(self._on_inputs(source))
        index = table.insert(self.fx, source.kind, f"{name}_operand", **fields)
        node = self.nodes[index]
        assert source.layout is not None
        node.shape, node.spatial = (prod(source.layout.channels), *source.extent), True
        node.dtype = self.nodes[node.inputs[0]].dtype
        table.set_rules(index)
        return index

    def _part(self, kind: Kind, target: Any, args: tuple[Any, ...], width: int) -> int:
        """A node that changes the size of one axis of its input map, `args[1]`, to `width`."""
        shape = [*self.nodes[references(args)[0]].shape]
        shape[args[1] - 1] = width
        name = f"{self.fx.name}_{len(self.nodes)}"
        return self._add((kind, target, args, {}), name=name, shape=tuple(shape))
