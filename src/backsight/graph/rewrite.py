"""Copying a graph node by node, with other nodes in place of some."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from . import kinds
from .node import Graph, Node, Ref, substitute


class Rewrite:
    """A copy in the making.

    Attributes:
        to: for each node of the graph that has its place in the copy, or another one in its place,
            the index there.
    """

    def __init__(self, graph: Graph) -> None:
        self.to: dict[int, int] = {}
        self._graph = graph
        self._nodes: list[Node] = []

    def add(self, node: Node, **fields: object) -> int:
        """Append `node`, changed in these fields; its references are those of the copy."""
        index = len(self._nodes)
        self._nodes.append(replace(node, index=index, **fields))  # type: ignore[arg-type]
        return index

    def constant(self, name: str, value: Tensor) -> int:
        """Append a constant made here."""
        made = {"value": value, "dtype": value.dtype, "varies": False, "own": True}
        return self.add(Node(0, name, kinds.CONSTANT, **made))  # type: ignore[arg-type]

    def keep(self, node: Node) -> None:
        """Append a node of the graph as it is."""
        self.to[node.index] = self.add(
            node,
            args=self.moved(node.args),
            kwargs=self.moved(node.kwargs),
            inputs=tuple(self.to[i] for i in node.inputs),
        )

    def moved(self, args: Any) -> Any:
        """Arguments of the graph as those of the copy."""
        return substitute(args, lambda i: Ref(self.to[i]))

    def graph(self) -> Graph:
        """The copy, once every node of the graph was looked at, without what nobody reads."""
        old, to = self._graph, self.to
        sides = tuple(to[i] for i in old.sides)
        return Graph(self._nodes, to[old.input], to[old.output], old.axes, sides).without_unused()
