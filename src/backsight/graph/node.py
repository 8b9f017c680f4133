"""The node table: a captured model as plain entries that can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry import Rules

if TYPE_CHECKING:
    from .kinds import Kind


@dataclass(frozen=True)
class Ref:
    """Stands in a node's arguments for the value of node `index`."""

    index: int


@dataclass
class Node:
    """One operation of the captured model.

    `shape` is the shape of one sample, batch axis left out: (channels, *spatial) for a map.
    `spatial` says that the value is a map over the image's D axes, so that windows of it exist.
    `rules` holds, for each input that is a map, one axis rule per spatial axis; None for inputs
    that are not. `batched` says that the first axis of the value is the batch. `varies` says that
    the value depends on the image, and not on side inputs and constants alone. `own` marks a
    constant made here, beside the model's own parameters.
    """

    index: int
    name: str
    kind: Kind
    target: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    spatial: bool = False
    batched: bool = True
    varies: bool = True
    module: str = ""
    operation: str = ""
    own: bool = False
    value: Any = None
    rules: tuple[Rules | None, ...] = ()

    @property
    def extent(self) -> tuple[int, ...]:
        """Sizes of the spatial axes of a map."""
        return self.shape[1:]

    @property
    def label(self) -> str:
        """The operation, and the path of the module it came from, for tables and messages."""
        return f"{self.operation} at {self.module}" if self.module else self.operation or self.name

    def call(self, value: Callable[[int], Any]) -> Any:
        """Run the original operation on the values that `value` gives for the inputs' indices."""
        assert self.target is not None
        return self.target(*substitute(self.args, value), **substitute(self.kwargs, value))


def substitute(args: Any, value: Callable[[int], Any]) -> Any:
    """`args` with each Ref replaced by the value of its node."""
    if isinstance(args, Ref):
        return value(args.index)
    if isinstance(args, tuple | list):
        return type(args)(substitute(a, value) for a in args)
    if isinstance(args, dict):
        return {k: substitute(v, value) for k, v in args.items()}
    return args


def references(args: Any) -> list[int]:
    """The indices of the nodes that `args` refers to, in order, each once."""
    found: dict[int, None] = {}

    def visit(index: int) -> None:
        found[index] = None

    substitute(args, visit)
    return list(found)


@dataclass
class Graph:
    """A captured model: its nodes in an order in which each stands after its inputs.

    `input` is the node of the image; `sides` are those of further inputs, one value per image, that
    no occlusion changes.
    """

    nodes: list[Node]
    input: int
    output: int
    axes: int
    sides: tuple[int, ...] = ()

    def without_unused(self) -> Graph:
        """The graph without the nodes that its output does not depend on."""
        needed = {self.output, self.input, *self.sides}
        for node in reversed(self.nodes):
            if node.index in needed:
                needed.update(node.inputs)
        kept = [n for n in self.nodes if n.index in needed]
        to = {n.index: i for i, n in enumerate(kept)}
        nodes = [
            replace(
                n,
                index=to[n.index],
                args=substitute(n.args, lambda i: Ref(to[i])),
                kwargs=substitute(n.kwargs, lambda i: Ref(to[i])),
                inputs=tuple(to[i] for i in n.inputs),
            )
            for n in kept
        ]
        sides = tuple(to[i] for i in self.sides)
        return Graph(nodes, to[self.input], to[self.output], self.axes, sides)

    def consumers(self) -> list[list[int]]:
        """For each node, the nodes that read it."""
        table: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in node.inputs:
                table[i].append(node.index)
        return table

    @property
    def outputs(self) -> int:
        """How many numbers the model puts out per image."""
        return prod(self.nodes[self.output].shape)

    def last_use(self, keep: Sequence[int] = ()) -> list[list[int]]:
        """For each node, the values that nobody reads after it, except those of `keep`."""
        last = list(range(len(self.nodes)))
        for node in self.nodes:
            for i in node.inputs:
                last[i] = node.index
        table: list[list[int]] = [[] for _ in self.nodes]
        for i, at in enumerate(last):
            if i not in keep and i != self.output:
                table[at].append(i)
        return table

    def replay(
        self, images: Tensor, keep: Sequence[int] = (), sides: Sequence[Tensor] = ()
    ) -> dict[int, Any]:
        """Run the whole graph on `images` (batch, *input shape), with the side inputs' values.

        Returns the values of the output node and of the nodes in `keep`; others are freed as soon
        as nothing reads them any more.
        """
        done: dict[int, Any] = {}
        given = dict(zip((self.input, *self.sides), (images, *sides), strict=True))
        drop = self.last_use(keep)
        for node in self.nodes:
            i = node.index
            done[i] = given[i] if i in given else node.kind.whole(node, done)
            for i in drop[node.index]:
                del done[i]
        return done

    def __call__(self, images: Tensor, *sides: Tensor) -> Tensor:
        """The model's output for `images`."""
        output: Tensor = self.replay(images, sides=sides)[self.output]
        return output
