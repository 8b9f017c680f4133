"""torch.export's graph of a model, turned into the node table."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from . import cells, kinds, resampling
from .aten import Call, Entry, Parts, bind, entry, is_random, operation, parts
from .fields import is_aside
from .kinds import Kind
from .layouts import InLayout, Layout
from .node import Graph, Node, Ref, references, substitute
from .twin import twin


class CaptureError(Exception):
    """The model cannot be captured; the message says why. Such a model is run as it is, whole."""


def capture(
    model: Callable[..., Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    sides: Sequence[Tensor] = (),
    within: str = "",
) -> Graph:
    """Capture `model` for images of `shape` (channels, *spatial), for any batch size.

    `sides` are further arguments of the model, batch first, whose shapes and dtypes count. Modules
    are named as they are within the module `within`.

    Raises:
        ValueError: a batch norm or a dropout of the model is in training mode: its output for an
            image then depends on the batch or on chance.
        CaptureError: torch.export cannot capture the model, or what it captured is no function of
        one image tensor.
    """
    module = twin(model) if isinstance(model, nn.Module) else _Function(model)
    # Two samples: a batch of one would be baked into views.
    example = torch.zeros((2, *shape), dtype=dtype, device=device)
    # With two samples each, whatever the batch that came.
    more = [side.new_zeros((2, *side.shape[1:])) for side in sides]
    shapes = torch.export.ShapesCollection()
    for tensor in (example, *more):
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    try:
        with torch.no_grad(), _quiet():
            dynamic = shapes.dynamic_shapes(module, (example, *more))
            exported = torch.export.export(
                module, (example, *more), dynamic_shapes=dynamic, strict=False
            )
            if (
                _writes_through_views(exported.graph)
                or _has_regions(exported.graph)
                or torch.is_autocast_enabled(device.type)
            ):
                # An empty table: in-place operations become functional ones, regions are inlined,
                # what autocast does becomes casts, and everything else stays as it is.
                exported = exported.run_decompositions({})
    except Exception as error:
        raise CaptureError(_first_line(error)) from error
    return _Builder(exported, len(shape) - 1, within).graph()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's warnings and graph dumps off the terminal: its error says enough."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Function(nn.Module):
    """A callable that is no module, for torch.export."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, images: Tensor, *sides: Tensor) -> Tensor:
        return self._function(images, *sides)


class RefusedError(ValueError):
    """A model that has no score of its own for each image."""


def refuse_training(module: str, what: str) -> None:
    raise RefusedError(
        f"expected a model in evaluation mode, got {what} in training mode"
        f"{f' at {module!r}' if module else ''}: call model.eval() first"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]


def _written(fx: Any) -> Any:
    """The fx node that an in-place operation writes to, or None."""
    schema = getattr(fx.target, "_schema", None)
    if fx.op != "call_function" or schema is None:
        return None
    for argument, value in zip(schema.arguments, fx.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return value
    return None


def _writes_through_views(graph: Any) -> bool:
    """Whether an in-place operation changes a value that is also read under another name (a view of
    it).

    The rest is turned into functional operations here, which takes no time; export's own pass takes
    seconds.
    """
    order = {fx: i for i, fx in enumerate(graph.nodes)}
    root: dict[Any, Any] = {fx: fx for fx in graph.nodes}
    family: dict[Any, list[Any]] = {fx: [fx] for fx in graph.nodes}
    for fx in graph.nodes:
        schema = getattr(fx.target, "_schema", None)
        source = fx.args[0] if fx.args and isinstance(fx.args[0], torch.fx.Node) else None
        written = _written(fx)
        if written is not None:
            if not isinstance(written, torch.fx.Node) or written is not source:
                return True
            others = [v for v in family[root[written]] if v is not written]
            if any(order[user] > order[fx] for v in others for user in v.users if user is not fx):
                return True
            root[fx] = fx  # from here on the old name means the new value
            continue
        views = schema is not None and any(r.alias_info is not None for r in schema.returns)
        if source is not None and (views or "dropout" in fx.name or fx.target is operator.getitem):
            root[fx] = root[source]
            family[root[fx]].append(fx)
    return False


def _has_regions(graph: Any) -> bool:
    """Whether a part of the model runs in a context of its own (autocast, no_grad)."""
    return any(isinstance(fx.target, torch._ops.HigherOrderOperator) for fx in graph.nodes)


#: Extrema with their places, and without.
_LARGEST = {
    torch.ops.aten.max.dim: torch.ops.aten.amax.default,
    torch.ops.aten.min.dim: torch.ops.aten.amin.default,
}


class _Builder:
    def __init__(self, exported: Any, axes: int, within: str) -> None:
        self.exported = exported
        self.axes = axes
        self.within = within
        self.nodes: list[Node] = []
        self.index: dict[str, int] = {}
        # How the model holds a map, by name, where it is not (batch, channels, *spatial); for an
        # operation with several results, how it holds each.
        self.layouts: dict[str, Layout] = {}
        self.forms: dict[tuple[int, ...], Layout] = {}  # the layouts so far, by the model's shape
        self.largest: set[str] = set()  # names of extrema that stand for their first part
        self.materialised: dict[tuple[int, Layout], int] = {}
        self.batch: Any = None
        self.device = torch.device("cpu")
        self.batch_first: set[str] = set()  # names of the nodes whose first axis is the batch

    def graph(self) -> Graph:
        signature = self.exported.graph_signature
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
                sides.append(self._add(fx, kinds.INPUT, varies=False))
            elif fx.op == "placeholder":
                self.batch = fx.meta["val"].shape[0]
                self.device = fx.meta["val"].device
                if not isinstance(self.batch, torch.SymInt):
                    raise CaptureError("the model fixes the batch size")
                image = self._add(fx, kinds.INPUT)
                self.nodes[image].shape = tuple(map(int, fx.meta["val"].shape[1:]))
                self.nodes[image].spatial = True
            elif fx.op == "call_function":
                self._call(fx)
            elif fx.op == "output":
                if signature.buffers_to_mutate or len(signature.user_outputs) != 1:
                    raise CaptureError(
                        "expected a model that returns one tensor and changes no buffer"
                    )
                if signature.user_outputs[0] not in self.index:
                    raise CaptureError("expected a model that returns a tensor")
                output = self._own(self._operand(fx.args[0][0]), fx, fx.name)
            else:
                raise CaptureError(f"the captured graph holds a {fx.op} node")
        if image is None or output is None:
            raise CaptureError("the captured graph has no input or no output")
        shape = self.nodes[output].shape
        if (
            isinstance(self.nodes[output].kind, kinds.Constant)
            or signature.user_outputs[0] not in self.batch_first
        ):
            raise CaptureError(
                f"expected an output of shape (batch, ...), got {shape} whatever the batch"
            )
        if not self.nodes[output].varies:
            raise CaptureError("the output does not depend on the image")
        for node in self.nodes:
            for i in node.inputs:
                if node.varies and is_aside(self.nodes[i]) and not self.nodes[i].batched:
                    raise CaptureError(
                        f"{node.label} reads a side input whose first axis is not the batch"
                    )
        return Graph(self.nodes, image, output, self.axes, tuple(sides)).without_unused()

    def _state(self, name: str) -> Tensor:
        value = self.exported.state_dict.get(name)
        tensor: Tensor = self.exported.constants[name] if value is None else value
        return tensor

    # ------------------------------------------------------------------ nodes

    def _add(self, fx: Any, kind: Kind, **fields: Any) -> int:
        """A node for the value of `fx`: in the table's form and of the shape that export gave it,
        unless told otherwise.
        """
        index = self._insert(fx, kind, fields.pop("name", fx.name))
        node = self.nodes[index]
        self._name(fx, index)
        value = fx.meta.get("val")
        if isinstance(value, Tensor):
            node.dtype = value.dtype
            shape = self._shape(value)
            if shape is not None:
                node.shape = shape
                node.spatial = len(shape) == self.axes + 1
        for key, field in fields.items():
            setattr(node, key, field)
        return index

    def _module(self, fx: Any) -> str:
        """The path of the module that an operation stands in."""
        stack = list((fx.meta.get("nn_module_stack") or {}).values())
        path: str = stack[-1][0] if stack else ""
        return path.removeprefix(self.within).removeprefix(".") if self.within else path

    def _insert(self, fx: Any, kind: Kind, name: str, **fields: Any) -> int:
        index = len(self.nodes)
        self.nodes.append(Node(index, name, kind, module=self._module(fx), **fields))
        return index

    def _name(self, fx: Any, index: int, layout: Layout | None = None) -> None:
        """Let `fx` stand for node `index`, in a layout where that is not the table's form."""
        self.index[fx.name] = index
        if layout is not None and not layout.is_standard:
            self.layouts[fx.name] = layout
            if self.nodes[index].spatial:
                self.forms[layout.shape(self.nodes[index].extent)] = layout
        value = fx.meta.get("val")
        if isinstance(value, Tensor) and self._is_batched(value):
            self.batch_first.add(fx.name)
        elif not self.nodes[index].spatial:
            self.nodes[index].batched = False

    def _is_batched(self, value: Tensor) -> bool:
        return value.ndim > 0 and str(value.shape[0]) == str(self.batch)

    def _shape(self, value: Any) -> tuple[int, ...] | None:
        """The shape of one sample; None for what has none."""
        if not isinstance(value, Tensor) or not self._is_batched(value):
            return None
        known = all(isinstance(s, int) for s in value.shape[1:])
        return tuple(value.shape[1:]) if known else None

    def _constant(self, fx: Any, value: Tensor) -> None:
        self._add(fx, kinds.CONSTANT, value=value, varies=False)

    def _call(self, fx: Any) -> None:
        written = _written(fx)
        if written is not None:
            name, overload = fx.target._schema.name, fx.target._schema.overload_name or "default"
            fx.target = getattr(
                getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_")), overload
            )
        if fx.target is operator.getitem and fx.args[0].name in self.largest:
            self._name(fx, self.index[fx.args[0].name], self.layouts.get(fx.args[0].name))
            return
        if fx.target in _LARGEST and all(u.args[1] == 0 or not u.users for u in fx.users):
            # Only the values are read, not their places.
            x, dim, *keepdim = fx.args
            fx.target, fx.args = _LARGEST[fx.target], (x, [dim], *keepdim)
            fx.meta = {**fx.meta, "val": fx.meta["val"][0]}
            self.largest.add(fx.name)
        self._operation(fx)
        if written is not None:
            self.index[written.name] = self.index[fx.name]
            self.layouts.pop(written.name, None)
            if fx.name in self.layouts:
                self.layouts[written.name] = self.layouts[fx.name]

    def _operation(self, fx: Any) -> None:
        args = self._refs(fx.args)
        kwargs = self._refs(fx.kwargs)
        inputs = tuple(references((args, kwargs)))
        name = operation(fx.target)
        if isinstance(fx.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            self._check_size(fx)
            self._add(
                fx,
                kinds.SIZE,
                target=fx.target,
                args=args,
                kwargs=kwargs,
                inputs=inputs,
                varies=False,
            )
            return
        fixed = all(isinstance(self.nodes[i].kind, kinds.Constant) for i in inputs)
        made = fx.meta.get("val")
        tensors = made if isinstance(made, list | tuple) else [made]
        all_tensors = all(isinstance(t, Tensor) for t in tensors)
        if fixed and all_tensors and not is_random(fx.target):
            with torch.no_grad():
                value = fx.target(*_values(args, self.nodes), **_values(kwargs, self.nodes))
            self._constant(fx, value)
            return
        self._refuse(fx, name, args)
        operands: list[cells.Operand] = []

        def operand(source: Any) -> Ref:
            operands.append(self._operand(source))
            return Ref(len(operands) - 1)

        template = self._refs(fx.args, operand), self._refs(fx.kwargs, operand)
        value = fx.meta.get("val")
        several = value if isinstance(value, list | tuple) and value else [None]
        call = cells.Call(
            name,
            fx.target,
            *template,
            tuple(operands),
            self.nodes,
            self.axes,
            self._shape(value),
            value.dtype if isinstance(value, Tensor) else None,
            self._shape(several[0]),
        )
        if self._is_put_together(fx, call):
            return
        layout = cells.relayout(call)
        if layout is not None:
            self._name(fx, call.operands[0].index, layout)
        elif not self._in_standard_form(fx, call) and not self._on_cells(fx, call):
            self._on_own_values(fx, call)

    def _operand(self, fx: Any) -> cells.Operand:
        index = self.index[fx.name]
        node = self.nodes[index]
        known = self.layouts.get(fx.name)
        if known is None and node.spatial and fx.name in self.batch_first:
            known = Layout.standard(node.shape[0], self.axes)
        return cells.Operand(index, known if node.spatial else None)

    def _in_standard_form(self, fx: Any, call: cells.Call) -> bool:
        """Add the entry of a call on maps in the table's form, or on none, where it has one."""
        layouts = [o.layout for o in call.operands if o.layout is not None]
        if not all(layout.is_standard for layout in layouts):
            return False
        found = self._entry(call, [o.index for o in call.operands])
        kind = found[0]
        if layouts and (not (kind.local or kind.by_difference) or call.dtype == torch.bool):
            return False
        layout = self._form(call, kind)
        if layout is not None:
            self._add_whole(fx, call, found, layout)
            return True
        index = self._add_entry(fx, call, found)
        form = self.layouts.get(fx.args[0].name) if call.name == operator.getitem.__name__ else None
        if form is not None and call.shape is not None:  # one of several parts
            layout = form.resized(call.shape)
            assert layout is not None
            self._set_map(fx, index, layout, layout.extent(call.shape))
        return True

    def _on_cells(self, fx: Any, call: cells.Call) -> bool:
        """Add the entry of a call that acts on each cell alone, if it does."""
        found = cells.entry(call)
        if found is None:
            return False
        index = self._add(fx, found.kind, operation=call.name, **self._fields(fx, found))
        if found.layout is not None:
            self._set_map(fx, index, found.layout, found.extent)
        node = self.nodes[index]
        node.rules = node.kind.rules(node, self.nodes)
        return True

    def _fields(self, fx: Any, found: cells.Entry) -> dict[str, Any]:
        """What a node of this entry calls, and on what; its inputs are made where they are none."""
        inputs = [self._input(fx, i) for i in found.inputs]
        return {
            "target": found.target,
            "args": substitute(found.args, lambda k: Ref(inputs[k])),
            "kwargs": substitute(found.kwargs, lambda k: Ref(inputs[k])),
            "inputs": tuple(dict.fromkeys(inputs)),
            "varies": any(self.nodes[i].varies for i in inputs),
        }

    def _input(self, fx: Any, source: int | cells.Entry | Tensor) -> int:
        if isinstance(source, int):
            return source
        if isinstance(source, Tensor):
            index = self._insert(fx, kinds.CONSTANT, f"{fx.name}_constant", varies=False, own=True)
            node = self.nodes[index]
            node.value, node.dtype = source, source.dtype
            if source.ndim == self.axes + 2:
                node.shape, node.spatial = tuple(source.shape[1:]), True
            return index
        fields = self._fields(fx, source)
        index = self._insert(fx, source.kind, f"{fx.name}_operand", **fields)
        node = self.nodes[index]
        assert source.layout is not None
        node.shape, node.spatial = (prod(source.layout.channels), *source.extent), True
        node.dtype = self.nodes[node.inputs[0]].dtype
        node.rules = node.kind.rules(node, self.nodes)
        return index

    def _set_map(self, fx: Any, index: int, layout: Layout, extent: tuple[int, ...]) -> None:
        """Make node `index` a map that the model holds as `layout` under the name of `fx`."""
        node = self.nodes[index]
        if isinstance(fx.meta.get("val"), Tensor):
            node.shape, node.spatial = (prod(layout.channels), *extent), True
            node.dtype = layout.truth or node.dtype
        self._name(fx, index, layout)

    def _on_own_values(self, fx: Any, call: cells.Call) -> None:
        """Add a call on the values in the model's own form."""
        own = [self._own(o, fx, call.name) for o in call.operands]
        found = self._entry(call, own)
        if own == [o.index for o in call.operands]:
            self._add_entry(fx, call, found)
            return
        if isinstance(found[0], kinds.Pointwise | kinds.Join):
            # It acts on cells of the value as it would lie in the table: not on the map's.
            found = kinds.BARRIER, call.target, (), {}
        if found[0] is kinds.BARRIER or found[0] is kinds.FLAT:
            self._add_whole(fx, call, found, self._form(call, found[0]))
        else:
            self._add_entry(fx, call, found)

    def _form(self, call: cells.Call, kind: Kind) -> Layout | None:
        """How to hold the result of an operation that has no window rule, where not as the table
        does: any layout is right, and the one that the maps around it have is of use.
        """
        if call.shape is None or not (kind is kinds.BARRIER or kind is kinds.FLAT):
            return None
        layouts = [o.layout for o in call.operands if o.layout is not None]
        form = layouts[0].resized(call.shape) if layouts else self.forms.get(call.shape)
        return None if form is None else Layout(form.axes, form.channels)

    def _add_whole(self, fx: Any, call: cells.Call, found: Entry, out: Layout | None) -> None:
        """Add a call on whole maps, between their own layouts and `out`."""
        layouts = [
            None if o.layout is None or o.layout.is_standard else o.layout for o in call.operands
        ]
        target = InLayout(found[1], call.args, call.kwargs, layouts, out)
        refs = tuple(Ref(o.index) for o in call.operands)
        index = self._add_entry(fx, call, (found[0], target, refs, {}))
        if out is not None and call.shape is not None:
            self._set_map(fx, index, out, out.extent(call.shape))
            node = self.nodes[index]
            node.rules = node.kind.rules(node, self.nodes)

    def _own(self, operand: cells.Operand, fx: Any, operation: str) -> int:
        """The value of an operand in the model's own form, made once."""
        index, layout = operand.index, operand.layout
        if layout is None or layout.is_standard:
            return index
        if (index, layout) not in self.materialised:
            source = self.nodes[index]
            shape = layout.shape(source.extent)
            made = self._insert(
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
            self.nodes[made].rules = kinds.FLAT.rules(self.nodes[made], self.nodes)
            self.materialised[index, layout] = made
        return self.materialised[index, layout]

    def _entry(self, call: cells.Call, indices: Sequence[int]) -> Entry:
        """The entry of a call on the values of these nodes."""
        kind, target, args, kwargs = entry(self._aten_call(call, indices))
        spatial = call.shape is not None and len(call.shape) == self.axes + 1
        inputs = references((args, kwargs))
        fits = self._on_maps(kind, spatial, inputs) or self._keeps_off_maps(kind, spatial)
        if spatial and kind.local and not (call.dtype and call.dtype.is_floating_point):
            fits = False  # no windows of it could be spliced
        return (kind if fits else kinds.BARRIER), target, args, kwargs

    def _check_size(self, fx: Any) -> None:
        """A number in the graph must be the batch size, or come from it alone."""
        if any(isinstance(a.meta.get("val"), Tensor) for a in fx.all_input_nodes) and (
            str(fx.meta["val"]) != str(self.batch)
        ):
            raise CaptureError(f"the model computes a number from a tensor ({fx.name})")

    def _aten_call(self, call: cells.Call, indices: Sequence[int]) -> Call:
        args, kwargs = (substitute(a, lambda k: Ref(indices[k])) for a in (call.args, call.kwargs))
        return Call(call.name, call.target, args, kwargs, self.nodes, self.axes, self.device)

    def _add_entry(self, fx: Any, call: cells.Call, found: Entry) -> int:
        kind, target, args, kwargs = found
        inputs = tuple(references((args, kwargs)))
        index = self._add(
            fx,
            kind,
            operation=call.name,
            target=target,
            args=args,
            kwargs=kwargs,
            inputs=inputs,
            varies=any(self.nodes[i].varies for i in inputs),
        )
        node = self.nodes[index]
        node.rules = kind.rules(node, self.nodes)
        return index

    def _is_put_together(self, fx: Any, call: cells.Call) -> bool:
        """Add a call whose result is made of parts of its input, if it is one."""
        if any(o.layout is not None and not o.layout.is_standard for o in call.operands):
            return False
        put_together = parts(self._aten_call(call, [o.index for o in call.operands]))
        if put_together:
            self._side_by_side(fx, call.operands[0].index, put_together)
        return bool(put_together)

    def _side_by_side(self, fx: Any, source: int, axes: Sequence[Parts]) -> None:
        """Write `fx` as slices of the map `source`, put together along one axis after the other."""
        slices, cat = torch.ops.aten.slice.Tensor, torch.ops.aten.cat.default
        for axis, ranges in axes:
            dim, whole = 2 + axis, source
            pieces = [
                self._part(
                    fx, resampling.SLICE, slices, (Ref(whole), dim, start, stop, 1), stop - start
                )
                for start, stop in ranges
            ]
            source = pieces[0]
            if len(pieces) > 1:
                width = sum(stop - start for start, stop in ranges)
                args = ([Ref(i) for i in pieces], dim)
                source = self._part(fx, resampling.SPATIAL_CAT, cat, args, width)
        self.index[fx.name] = source
        self.nodes[source].name = fx.name
        self.batch_first.add(fx.name)

    def _part(self, fx: Any, kind: Kind, target: Any, args: tuple[Any, ...], width: int) -> int:
        """A node that changes the size of one axis of its input map, `args[1]`, to `width`."""
        inputs = tuple(references(args))
        like = self.nodes[inputs[0]]
        shape = [*like.shape]
        shape[args[1] - 1] = width
        index = self._add(
            fx,
            kind,
            operation=operation(fx.target),
            target=target,
            args=args,
            inputs=inputs,
            varies=like.varies,
        )
        node = self.nodes[index]
        node.name, node.shape = f"{fx.name}_{index}", tuple(shape)
        node.rules = kind.rules(node, self.nodes)
        return index

    def _refs(self, args: Any, make: Callable[[Any], Ref] | None = None) -> Any:
        """Arguments with a Ref for each fx node: to its node, or as `make` says."""
        if isinstance(args, torch.fx.Node):
            return make(args) if make else Ref(self.index[args.name])
        if isinstance(args, list | tuple):
            return (
                type(args)(self._refs(a, make) for a in args)
                if type(args) in (list, tuple)
                else [*(self._refs(a, make) for a in args)]
            )
        if isinstance(args, dict):
            return {k: self._refs(v, make) for k, v in args.items()}
        return args

    def _refuse(self, fx: Any, name: str, args: tuple[Any, ...]) -> None:
        """A training-mode batch norm or dropout has no per-image output."""
        module = self._module(fx)
        if "batch_norm" in name and "no_training" not in name and len(args) > 5 and args[5] is True:
            refuse_training(module, "a batch norm")
        if "dropout" in name and len(args) > 2 and args[1] and args[2] is True:
            refuse_training(module, "a dropout")
        bound = bind(fx.target, args, {})
        if is_random(fx.target) and "dropout" not in name and bound.get("dropout_p", 1.0) != 0.0:
            raise CaptureError(f"the model draws random numbers ({name})")

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
        if not isinstance(self.nodes[index].kind, kinds.Constant) or not isinstance(value, Tensor):
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


def _itself(x: Tensor) -> Tensor:
    return x


def _values(args: Any, nodes: list[Node]) -> Any:
    return substitute(args, lambda i: nodes[i].value)
