"""Compute cheap values again where they are read, rather than keep them in memory.

The normalised activations of a batch norm are needed in the forward walk over the batch and in the
backward one. What they are made of, a convolution's output, is kept in any case: so to compute them
again from it, in the loop that reads them, costs a few instructions, and saves a pass over memory
and the memory itself.
"""

from __future__ import annotations

from dataclasses import replace

from .fuse import FULL, kinds_of
from .graph import Buffer, Node, Ref, Region

CHEAP = {"add", "subtract", "multiply", "divide", "negative", "abs", "relu", "leaky_relu",
         "maximum", "minimum"}  # fmt: skip


def recompute(regions: list[Region], axis: int) -> None:
    """Let regions compute what they read of others, where that reads no more; in place.

    That is what cheap elementwise nodes make, of values that are in memory anyway, and what only
    elementwise nodes read, so that it can be fused with these.

    Parameters
    ----------
    regions
        In order, not fused yet.
    axis
        The extent of the batch: nodes move between regions that walk over it.
    """
    _Recomputation(regions, axis).run()


class _Recomputation:
    """What is made and read where."""

    def __init__(self, regions: list[Region], axis: int):
        self.regions, self.axis = regions, axis
        self.maker: dict[Buffer, tuple[int, Node]] = {}
        self.readers: dict[Buffer, list[tuple[int, Node]]] = {}
        self.assigned: dict[Buffer, list[int]] = {}  # states: where they change
        self.again: dict[tuple[int, Buffer], Buffer] = {}  # a value, as a region computes it again
        self.moved = [0] * len(regions)  # nodes that do so, at its start
        for at, region in enumerate(regions):
            for node in region.nodes:
                for ref in node.inputs:
                    self.readers.setdefault(ref.buffer, []).append((at, node))
                for output in node.outputs:
                    self.maker[output] = at, node
                    if node.is_assigning:
                        self.assigned.setdefault(output, []).append(at)

    def run(self) -> None:
        for at, region in enumerate(self.regions):
            for node in [*region.nodes]:
                value = node.outputs[0]
                later = {there for there, _ in self.readers.get(value, ()) if there > at}
                chain = self._chain(at, node) if later and not value.is_kept else None
                if chain and all(self._pays(chain, value, there) for there in later):
                    for there in later:
                        self._move(chain, value, there)
            self._drop_unread(region)

    def _chain(self, at: int, node: Node) -> list[Node] | None:
        """Return the nodes of a region that a value is made by, if all of them are cheap."""
        if self.regions[at].axis != self.axis or not self._is_cheap(node):
            return None
        chain: list[Node] = []
        for ref in node.inputs:
            there, maker = self.maker.get(ref.buffer, (-1, None))
            if there == at:
                before = self._chain(at, maker)
                if before is None:
                    return None
                chain += [one for one in before if one not in chain]
        return [*chain, node]

    @staticmethod
    def _is_cheap(node: Node) -> bool:
        return kinds_of(node) is not None and node.op.name in CHEAP

    def _pays(self, chain: list[Node], value: Buffer, there: int) -> bool:
        """Return whether a later region can compute a value and reads no more then."""
        if self.regions[there].axis != self.axis:
            return False
        readers = [node for at, node in self.readers[value] if at == there]
        if any(kinds_of(node) is None for node in readers):
            return False
        start = self.maker[value][0]
        made = {output for node in chain for output in node.outputs}
        taken: set[Buffer] = set()
        for node in chain:
            for ref, kind in zip(node.inputs, kinds_of(node), strict=True):
                if any(start <= at < there for at in self.assigned.get(ref.buffer, ())):
                    return False
                if kind == FULL and ref.buffer not in made:
                    taken.add(ref.buffer)
        read = {
            buffer for buffer, readers in self.readers.items()
            if buffer is not value and any(at == there for at, _ in readers)
        }  # fmt: skip
        return len(taken - read) <= 1

    def _move(self, chain: list[Node], value: Buffer, there: int) -> None:
        """Compute a value at the start of a later region."""
        for node in chain:
            before = node.outputs[0]
            if (there, before) in self.again:
                continue
            after = self.again[there, before] = Buffer(before.spec)
            again = replace(node, inputs=self._replaced(node, there), outputs=(after,))
            self.regions[there].nodes.insert(self.moved[there], again)
            self.moved[there] += 1
            self.maker[after] = there, again
            for ref in again.inputs:
                self.readers.setdefault(ref.buffer, []).append((there, again))
        for at, node in [*self.readers[value]]:
            if at == there:
                node.inputs = self._replaced(node, there)
                self.readers[value].remove((at, node))
                self.readers.setdefault(self.again[there, value], []).append((at, node))

    def _replaced(self, node: Node, there: int) -> tuple[Ref, ...]:
        return tuple(
            replace(ref, buffer=self.again.get((there, ref.buffer), ref.buffer))
            for ref in node.inputs
        )

    def _drop_unread(self, region: Region) -> None:
        """Drop what nobody reads any more."""
        for node in region.nodes[::-1]:
            value = node.outputs[0]
            if self._is_cheap(node) and not self.readers.get(value) and not value.is_kept:
                region.nodes.remove(node)
                for ref in node.inputs:
                    self.readers[ref.buffer] = [
                        (at, other) for at, other in self.readers[ref.buffer] if other is not node
                    ]


__all__ = ["recompute"]
