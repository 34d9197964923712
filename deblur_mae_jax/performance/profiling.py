"""`--profile`: trace a few training steps and summarise where their time went.

`jax.profiler` writes the trace, which XProf, TensorBoard and Perfetto can open. The summary is computed
from the same files. It assigns the time of every instruction to a part of the model, by the scope in the
source code (which the compiler keeps as `op_name`), and to a kind of work, by the compiled instruction.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from deblur_mae_jax.performance.hlo import Instruction, instructions

FIRST, STEPS = 3, 5  # the steps to trace, after three others that load the program and the data
# Parts of the step by the scope of an instruction; the first match is used.
PARTS = (
    ("input and degradation", r"/input/|\(input\)"),
    ("optimiser", r"/update/"),
    ("encoder attention", r"(?<!decoder_)(?:blocks_|layers\d_)\S*/attn/"),
    ("encoder MLP", r"(?<!decoder_)(?:blocks_|layers\d_)\S*/mlp/"),
    ("encoder norms and residuals", r"(?<!decoder_)(?:blocks_|layers\d_)"),
    ("decoder attention", r"decoder_blocks_\d+/attn/"),
    ("decoder MLP", r"decoder_blocks_\d+/mlp/"),
    ("decoder norms and residuals", r"decoder_blocks_"),
    ("embedding, gathers, prediction", r"[.]encode/|[.]decode/"),
    ("convolutions", r"/conv\d|/conv/|conv_general"),
)


def part_of(instruction: Instruction) -> str:
    """Which part of the training step an instruction belongs to."""
    names = (name for name, regex in PARTS if re.search(regex, instruction.scope))
    return next(names, "the rest")


def events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield `(instruction, seconds)` for every executed instruction of the newest trace in `folder`."""
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    if not files:
        return
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    # Beside an accelerator's own planes, that of the host shows the same operations as they are launched.
    own = [plane for plane in planes if plane.name.startswith("/device:") and list(plane.lines)]
    for plane in own or planes:
        lines = list(plane.lines)
        # An accelerator may list the same operations twice: per stream, and in a separate line "XLA Ops".
        for line in [line for line in lines if line.name == "XLA Ops"] or lines:
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op")
                if name is None and line.name == "XLA Ops":
                    name = event.name.split(" = ")[0].lstrip("%")
                if name is not None:
                    yield str(name), event.duration_ns / 1e9


@dataclasses.dataclass
class Share:
    """Time and matrix-product work of a group of instructions in one step."""

    seconds: float = 0.0
    flops: float = 0.0


def shares(
    ran: Iterable[tuple[str, float]], program: Mapping[str, Instruction], steps: int
) -> tuple[dict[str, Share], dict[str, Share]]:
    """Time per step by part of the model and by kind of work, largest first."""
    by_part: dict[str, Share] = collections.defaultdict(Share)
    kinds: dict[str, Share] = collections.defaultdict(Share)
    unknown = Instruction("", "", set(), 0.0)
    for name, seconds in ran:
        instruction = program.get(name, unknown)
        # The instructions inside loops and calls are listed separately.
        if instruction.opcode in ("while", "call", "conditional"):
            continue
        for table, key in ((by_part, part_of(instruction)), (kinds, instruction.kind)):
            table[key].seconds += seconds / steps
            table[key].flops += instruction.flops / steps

    def ordered(table):
        return dict(sorted(table.items(), key=lambda item: -item[1].seconds))

    return ordered(by_part), ordered(kinds)


def summary(folder: Path, hlo: str, steps: int, step_seconds: float, devices: int = 1) -> list[str]:
    """Summarise the trace: time by part and by kind, and the speed of the matrix products."""
    by_part, kinds = shares(events(folder), instructions(hlo), steps)
    total = sum(share.seconds for share in by_part.values())
    if not total:
        return [f"the trace in {folder} contains no instruction of the training step"]
    lines = [
        f"one step              {1e3 * step_seconds:.1f} ms, instructions "
        f"{1e3 * total / devices:.1f} ms on each of {devices} device{'s' if devices > 1 else ''}"
    ]
    for title, table in (("by part of the step", by_part), ("by kind of work", kinds)):
        lines.append(title)
        for name, share in table.items():
            speed = ""
            if share.flops:
                speed = f"  {share.flops / share.seconds / 1e9:8.0f} GFLOP/s"
            lines.append(f"  {name:32s} {1e3 * share.seconds / devices:9.2f} ms  {share.seconds / total:6.1%}{speed}")
    return lines


class Tracer:
    """Traces the steps `STEPS` of a run, then prints a summary. The other steps are not slowed down."""

    def __init__(self, folder: Path, start: int, progress: Any):
        self.folder, self.progress = folder, progress
        self.first, self.last = start + FIRST + 1, start + FIRST + STEPS
        self._started, self._done = 0.0, False

    def around(self, step: int, running: Any) -> contextlib.AbstractContextManager[Any]:
        """Wrap the dispatch of `step`.

        running: arrays that the device is still computing before it.
        """
        if step == self.first:
            jax.block_until_ready(running)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder), profiler_options=options)
            self._started = time.monotonic()
        if self.first <= step <= self.last:
            return jax.profiler.StepTraceAnnotation("train", step_num=step)
        return contextlib.nullcontext()

    def after(self, step: int, result: Any, program: Any) -> None:
        """End the trace when its last step has been dispatched, and write the summary."""
        if step != self.last or not self._started:
            return
        jax.block_until_ready(result)
        seconds = (time.monotonic() - self._started) / STEPS
        self._started, self._done = 0.0, True
        jax.profiler.stop_trace()
        devices = jax.local_device_count()
        try:
            lines = summary(self.folder, program.as_text(), STEPS, seconds, devices)
        except Exception as error:  # the trace is saved; a failed summary must not stop the training run
            lines = [f"the trace could not be summarised: {type(error).__name__}: {error}"]
        path = self.folder / "summary.txt"
        path.write_text("\n".join(lines) + "\n")
        for line in [*lines, f"trace       {self.folder}", f"summary     {path}"]:
            self.progress.print(line)

    def close(self) -> None:
        """Stop the trace if the run ends before or during the traced steps."""
        if self._started:
            self._started = 0.0
            jax.profiler.stop_trace()
        if not self._done:
            self.progress.print("the run ended before --profile had traced its steps")
