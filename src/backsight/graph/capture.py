"""torch.export's graph of a model, turned into the node table."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import kinds, resampling
from .aten import Call, Parts, bind, entry, is_random, operation, parts
from .kinds import Kind
from .node import Graph, Node, Ref, references, substitute


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
    module = model if isinstance(model, nn.Module) else _Function(model)
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


def refuse_training(module: str, what: str) -> None:
    raise ValueError(
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


class _Builder:
    def __init__(self, exported: Any, axes: int, within: str) -> None:
        self.exported = exported
        self.axes = axes
        self.within = within
        self.nodes: list[Node] = []
        self.index: dict[str, int] = {}
        self.batch: Any = None
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
                image = self._add(fx, kinds.INPUT)
                self.batch = fx.meta["val"].shape[0]
                if not isinstance(self.batch, torch.SymInt):
                    raise CaptureError("the model fixes the batch size")
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
                output = self.index[signature.user_outputs[0]]
            else:
                raise CaptureError(f"the captured graph holds a {fx.op} node")
        if image is None or output is None:
            raise CaptureError("the captured graph has no input or no output")
        shape = self.nodes[output].shape
        if (
            isinstance(self.nodes[output].kind, kinds.Constant)
            or self.nodes[output].name not in self.batch_first
        ):
            raise CaptureError(
                f"expected an output of shape (batch, ...), got {shape} whatever the batch"
            )
        if not self.nodes[output].varies:
            raise CaptureError("the output does not depend on the image")
        return Graph(self.nodes, image, output, self.axes, tuple(sides)).without_unused()

    def _state(self, name: str) -> Tensor:
        value = self.exported.state_dict.get(name)
        tensor: Tensor = self.exported.constants[name] if value is None else value
        return tensor

    # ------------------------------------------------------------------ nodes

    def _add(self, fx: Any, kind: Kind, **fields: Any) -> int:
        index = len(self.nodes)
        self.nodes.append(Node(index, fx.name, kind, module=self._module(fx), **fields))
        self.index[fx.name] = index
        value = fx.meta.get("val")
        if isinstance(value, Tensor):
            node = self.nodes[index]
            node.dtype = value.dtype
            if value.ndim and str(value.shape[0]) == str(self.batch):
                self.batch_first.add(fx.name)
                if all(isinstance(s, int) for s in value.shape[1:]):
                    node.shape = tuple(value.shape[1:])
                    node.spatial = value.ndim == self.axes + 2
        return index

    def _module(self, fx: Any) -> str:
        """The path of the module that an operation stands in."""
        stack = list((fx.meta.get("nn_module_stack") or {}).values())
        path: str = stack[-1][0] if stack else ""
        return path.removeprefix(self.within).removeprefix(".") if self.within else path

    def _constant(self, fx: Any, value: Tensor) -> None:
        self._add(fx, kinds.CONSTANT, value=value, varies=False)

    def _call(self, fx: Any) -> None:
        written = _written(fx)
        if written is not None:
            name, overload = fx.target._schema.name, fx.target._schema.overload_name or "default"
            fx.target = getattr(
                getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_")), overload
            )
        self._operation(fx)
        if written is not None:
            self.index[written.name] = self.index[fx.name]

    def _operation(self, fx: Any) -> None:
        args = self._refs(fx.args)
        kwargs = self._refs(fx.kwargs)
        inputs = tuple(references((args, kwargs)))
        name = operation(fx.target)
        if isinstance(fx.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
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
        if fixed and isinstance(fx.meta.get("val"), Tensor) and not is_random(fx.target):
            with torch.no_grad():
                value = fx.target(*_values(args, self.nodes), **_values(kwargs, self.nodes))
            self._constant(fx, value)
            return
        self._refuse(fx, name, args)
        device = getattr(fx.meta.get("val"), "device", torch.device("cpu"))
        call = Call(name, fx.target, args, kwargs, self.nodes, self.axes, device)
        if put_together := parts(call):
            self._side_by_side(fx, args[0].index, put_together)
            return
        kind, target, args, kwargs = entry(call)
        inputs = tuple(references((args, kwargs)))
        node = self.nodes[
            self._add(
                fx,
                kind,
                operation=name,
                target=target,
                args=args,
                kwargs=kwargs,
                inputs=inputs,
                varies=any(self.nodes[i].varies for i in inputs),
            )
        ]
        if not self._on_maps(node):
            node.kind = node.kind if self._keeps_off_maps(node) else kinds.BARRIER
        node.rules = node.kind.rules(node, self.nodes)

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

    def _refs(self, args: Any) -> Any:
        if isinstance(args, torch.fx.Node):
            return Ref(self.index[args.name])
        if isinstance(args, list | tuple):
            return (
                type(args)(self._refs(a) for a in args)
                if type(args) in (list, tuple)
                else [*map(self._refs, args)]
            )
        if isinstance(args, dict):
            return {k: self._refs(v) for k, v in args.items()}
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

    def _on_maps(self, node: Node) -> bool:
        """Whether a window rule may be applied: a map comes out, and what goes in is maps and
        constants.
        """
        return node.spatial and all(
            self.nodes[i].spatial or self._broadcasts(i, node) for i in node.inputs
        )

    def _broadcasts(self, index: int, node: Node) -> bool:
        """A constant that is the same at every place of the map."""
        value = self.nodes[index].value
        if not isinstance(self.nodes[index].kind, kinds.Constant) or not isinstance(value, Tensor):
            return False
        if not isinstance(node.kind, kinds.Join):
            return True
        return all(s == 1 for s in value.shape[max(value.ndim - self.axes, 0) :])

    @staticmethod
    def _keeps_off_maps(node: Node) -> bool:
        """Kinds that also mean something on values that are no maps (after a flatten)."""
        return isinstance(
            node.kind, kinds.Flat | kinds.Linear | kinds.Pointwise | kinds.GlobalSum
        ) or (not node.spatial and isinstance(node.kind, kinds.Join))


def _values(args: Any, nodes: list[Node]) -> Any:
    return substitute(args, lambda i: nodes[i].value)
