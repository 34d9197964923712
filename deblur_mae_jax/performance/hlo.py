"""List the instructions, matrix products and collectives of a compiled program.

They are parsed from the text of the program (`compiled.as_text()`), which has the same form on every backend.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MATRIX_CALLS = re.compile(r"gemm|matmul|dot|conv|fmha|attention|cublas|cudnn|triton", re.IGNORECASE)
MOVES = {"copy", "transpose", "bitcast", "reshape", "parameter", "constant", "slice", "concatenate"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z0-9\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)\s.*\{\s*$")
_SHAPE = re.compile(r"(?:f64|f32|bf16|f16|s32|u32|s8|u8|pred|s64|u64|f8\w*)\[([\d,]*)\]")


@dataclasses.dataclass
class Instruction:
    """One instruction, parsed from the text of the compiled program."""

    opcode: str
    scope: str
    inside: set[str]  # opcodes of the fused computation, itself included
    flops: float  # of its matrix products
    body: str = ""  # the computation that it is part of: the program's own, or of a loop or branch

    @property
    def kind(self) -> str:
        """The kind of work: matrix products, collectives, copies and transposes, or elementwise and sums."""
        if self.flops or "dot" in self.inside or "convolution" in self.inside:
            return "matrix products"
        if self.opcode == "custom-call":
            return "matrix products" if MATRIX_CALLS.search(self.scope) else "other kernels"
        if any(self.opcode.startswith(name) for name in COLLECTIVES):
            return "collectives"
        return "copies and transposes" if self.inside <= MOVES else "elementwise and sums"


def _sides(shape: str) -> list[int]:
    """Dimensions of the first array in the text of a shape."""
    match = _SHAPE.search(shape)
    return [int(d) for d in match.group(1).split(",") if d] if match else []


def _dot_flops(line: str, shape: str, shapes: Mapping[str, list[int]]) -> float:
    """FLOPs of a `dot`, 2 per multiply-add, from the shapes in the text."""
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    left = re.match(r"\((?:\w+\[\S*\s)?%?([\w.\-]+)", line)
    if not (contracted and left and left.group(1) in shapes):
        return 0.0
    sides = shapes[left.group(1)]
    inner = math.prod(sides[int(i)] for i in contracted.group(1).split(",") if i)
    return 2.0 * math.prod(_sides(shape)) * inner


def _library_flops(line: str, shape: str, shapes: Mapping[str, list[int]]) -> float:
    """FLOPs of a matrix product that a GPU's library computes (cuBLAS)."""
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', line)
    if contracted is None:
        return 0.0
    axes = contracted[1].replace('"', "")
    return _dot_flops(f"{line} lhs_contracting_dims={{{axes}}}", shape, shapes)


def instructions(hlo: str) -> dict[str, Instruction]:
    """Every instruction of a compiled program's text (`compiled.as_text()`) by name."""
    # Names are unique only within a computation.
    bodies: dict[str, dict[str, tuple[str, str, str]]] = collections.defaultdict(dict)
    computation = ""
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            name, *what = match.groups()
            bodies[computation][name] = (what[0], what[1], what[2])
        elif match := _COMPUTATION.match(line):
            computation = match.group(1)

    def describe(body: str, name: str) -> tuple[set[str], float]:
        shape, opcode, rest = bodies[body][name]
        if opcode == "dot":
            shapes = {key: _sides(value[0]) for key, value in bodies[body].items()}
            return {opcode}, _dot_flops("(" + rest, shape, shapes)
        if opcode == "custom-call" and "gemm_backend_config" in rest:
            shapes = {key: _sides(value[0]) for key, value in bodies[body].items()}
            return {opcode}, _library_flops("(" + rest, shape, shapes)
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", rest)
        if opcode not in ("fusion", "call") or not called:
            return {opcode}, 0.0
        inner = [describe(called.group(1), instruction) for instruction in bodies[called.group(1)]]
        return set().union(*(names for names, _ in inner)), sum(flops for _, flops in inner)

    result = {}
    for body, names in bodies.items():
        if "fused_computation" in body:
            continue
        for name, (_, opcode, rest) in names.items():
            scope = re.search(r'op_name="([^"]*)"', rest)
            target = re.search(r'custom_call_target="([^"]*)"', rest)
            where = (scope.group(1) if scope else "") + (" " + target.group(1) if target else "")
            result[name] = Instruction(opcode, where, *describe(body, name), body)
    return result


BYTES = {
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
}


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """`{kind: (how many, bytes of their results)}` of the communication between devices in one run."""
    totals: dict[str, tuple[int, int]] = {}
    for line in hlo.splitlines():
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        _, shape, opcode, _ = match.groups()
        # An operation in two halves: the shape of the first, `-start`, has its operands too.
        kind = opcode.removesuffix("-done")
        if kind not in COLLECTIVES:
            continue
        size = sum(
            BYTES.get(dtype, 1) * math.prod(int(d) for d in sides.split(",") if d)
            for dtype, sides in re.findall(r"([a-z]+[0-9]*)\[([\d,]*)\]", shape)
        )
        count, total = totals.get(kind, (0, 0))
        totals[kind] = (count + 1, total + size)
    return totals
