"""Find the hot loop in what a compiler wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_LABEL = re.compile(r"^[.$]?(L\w+):")
_JUMP = re.compile(r"^\s+(?:@!?%p\d+ )?(?:j|b|cb|tb)[\w.]*\s+(?:[\w#]+,\s*)*[.$]?(L\w+)")
# Arithmetic on vectors of floats: x86's (packed: ps, pd) and ARM's (on registers of lanes).
_VECTOR = re.compile(
    r"^\s+(?:v?(?:fn?m\w+|add|sub|mul|div|max|min|sqrt)\w*p[sd]"
    r"|f(?:mla|mls|add|sub|mul|div|maxnm|minnm|max|min|sqrt)\s+v\d+)"
)
_SCALAR = re.compile(
    r"^\s+(?:v?(?:fn?m\w+|add|sub|mul|div|max|min|sqrt)\w*s[sd]\b"
    r"|f(?:madd|msub|add|sub|mul|div|max|min|sqrt)\s+[sd]\d+)"
)
_PTX = re.compile(r"^\s+(?:@!?%p\d+ )?(?:fma|add|sub|mul|max|min|mma)\.[\w.]*(?:f32|f64|tf32)")
_IR_LABEL = re.compile(r"^([\w.$-]+|\"[^\"]+\"):")
_IR_TARGET = re.compile(r"label %([\w.$-]+|\"[^\"]+\")")
_IR_VECTOR = re.compile(r"\b(?:f(?:add|sub|mul|div|cmp)|call)\b.*<\d+ x (?:float|double)>")


def of_assembly(text: str) -> list[str]:
    """Return the lines of the innermost loop with the most arithmetic, of a CPU's code or PTX.

    Arithmetic on vectors comes before any on numbers; without loops there is nothing.

    Examples
    --------
    >>> of_assembly(chr(10).join([
    ...     ".LBB0_1:", "  incq %rax", ".LBB0_2:", "  vmulps %ymm0, %ymm1, %ymm2",
    ...     "  jne .LBB0_2", "  jne .LBB0_1", "  retq"]))
    ['.LBB0_2:', '  vmulps %ymm0, %ymm1, %ymm2', '  jne .LBB0_2']
    """
    lines = text.splitlines()
    loops = _loops(lines)
    for kind in (_VECTOR, _SCALAR, _PTX):
        scores = {(a, b): _score(lines[a : b + 1], kind) for a, b in loops}
        scores = {loop: score for loop, score in scores.items() if score}
        innermost = [
            (a, b)
            for a, b in scores
            if not any((a, b) != (c, d) and a <= c and d <= b for c, d in scores)
        ]
        if innermost:
            start, end = max(innermost, key=scores.get)
            return lines[start : end + 1]
    return []


def of_llvm(text: str) -> list[str]:
    """Return the block with the most arithmetic on vectors, of those that jump to themselves.

    Where none does, of all blocks.
    """
    blocks = list(_blocks(text.splitlines()))
    themselves = [lines for name, lines in blocks if name in _IR_TARGET.findall(lines[-1])]
    for pieces in (themselves, [lines for _, lines in blocks]):
        best = max(pieces, key=lambda lines: _score(lines, _IR_VECTOR), default=[])
        if _score(best, _IR_VECTOR):
            return best
    return []


def instructions(lines: Sequence[str]) -> tuple[int, int]:
    """Return how many instructions a loop has, and how many of them compute on vectors."""
    count = sum(bool(re.match(r"^\s+[a-z]", line)) for line in lines)
    return count, sum(bool(_VECTOR.match(line)) for line in lines)


def _loops(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first and the last line of each jump back."""
    places = {found[1]: k for k, line in enumerate(lines) if (found := _LABEL.match(line))}
    jumps = ((k, found[1]) for k, line in enumerate(lines) if (found := _JUMP.match(line)))
    return [(places[label], k) for k, label in jumps if places.get(label, len(lines)) <= k]


def _score(lines: Sequence[str], kind: re.Pattern) -> int:
    return sum(bool(kind.search(line)) for line in lines)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and lines of each basic block."""
    name, block = "", []
    for line in lines:
        label = _IR_LABEL.match(line)
        if label or not line.strip() or line.startswith("}"):
            if name and len(block) > 1:
                yield name, block
            name, block = (label[1], [line]) if label else ("", [])
        elif name:
            block.append(line)
