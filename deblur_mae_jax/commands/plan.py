"""`--plan`: estimate the cost of a run on other chips by formula, and on this machine by a benchmark.

The cost depends on four numbers: the FLOPs of the matrix products (each model's `flops_per_image`), the bytes moved
to and from the memory of a chip, the size of that memory, and the price of an hour.

    bytes of a step  = 5 x saved activations + 42 x parameters
    memory           = 18 x parameters + saved activations + input + images kept on the device
    seconds          = FLOPs / (80 % of peak) + bytes / (90 % of bandwidth)

Saved activations are the arrays that JAX keeps for the backward pass, counted from the program itself.
They are written once and read twice, and as many gradients are written and read. With `model.remat` the forward
pass runs twice: a third more FLOPs, and its arrays, of which few are kept, are written once more. Of the 42 bytes per
parameter, AdamW uses 36 (it reads weight, gradient and two moments, writes three of them, and reads the
gradient once more for its norm) and the bfloat16 copy uses 6. Matrix products and memory traffic do not
overlap, as in a program without fused attention. Large products and copies reach 80 and 90 % on an H100.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import network as networks
from deblur_mae_jax.commands import plan_pods
from deblur_mae_jax.commands.run import PROGRAMS
from deblur_mae_jax.config import copy, flat
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.input_pipeline import stores
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.performance import chips, compile_cache
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import compilation, experiment
from deblur_mae_jax.training.progress import Progress, duration

PRODUCTS, COPIES = 0.8, 0.9
# FLOPs of the step that is timed on a CPU: enough to fill the CPU, but less than a batch for a pod.
TIMED_FLOPS = 5e11


@dataclasses.dataclass(frozen=True)
class Need:
    """Requirements of a run on any accelerator, in bfloat16; bytes and FLOPs are per whole step."""

    parameters: int
    flops_per_image: float
    saved_per_image: float
    written_per_image: float  # saved without `model.remat`: bytes that the forward pass writes
    recomputes: bool  # `model.remat`
    input_per_image: float
    images: float  # bytes of the whole data set if it is kept on the device
    batch: int
    accum: int
    steps: int
    chooses: bool = False  # `data.store=auto`: a set that is too large for a device is streamed

    def on(self, chip: chips.Chip) -> Need:
        """The same on this chip, without the images if they are streamed there."""
        streamed = self.chooses and self.images > stores.RESIDENT_SHARE["accelerator"] * 1e9 * chip.gigabytes
        return dataclasses.replace(self, images=0.0) if streamed else self

    @property
    def flops(self) -> float:
        """FLOPs of the matrix products of one step."""
        return self.flops_per_image * self.batch * (4 / 3 if self.recomputes else 1)

    @property
    def bytes(self) -> float:
        """Bytes moved to and from memory in one step."""
        return self.traffic_per_image * self.batch + 42 * self.parameters

    @property
    def traffic_per_image(self) -> float:
        """Bytes of activations and their gradients moved to and from memory for one image."""
        return (6 if self.recomputes else 5) * self.written_per_image

    def memory(self, accum: int | None = None, dtype: str = "bfloat16") -> float:
        """Peak memory of a step, in bytes."""
        images_at_once = self.batch / (accum or self.accum)
        held = images_at_once * (_width(dtype) * self.saved_per_image + self.input_per_image)
        return 18 * self.parameters + held + self.images

    def seconds(self, chip: chips.Chip) -> float:
        """One step on one chip."""
        if chip.measured_share is not None:
            return self.flops / (chip.measured_share * 1e12 * chip.tflops)
        products = self.flops / (PRODUCTS * 1e12 * chip.tflops)
        traffic = _width(chip.dtype) * self.bytes
        return products + traffic / (COPIES * 1e12 * chip.terabytes_per_second)


def _width(dtype: str) -> int:
    """Size of the data type relative to bfloat16."""
    return jnp.dtype(dtype).itemsize // 2


def saved_bytes(network: Any, batch: Any, keys: Any) -> float:
    """Bytes per image that JAX saves in the forward pass for the backward pass.

    The count excludes the parameters and their copies in another precision, the batch, and float32 arrays
    that are also saved in bfloat16, because the compiler keeps only one of the two.
    """
    params = jax.eval_shape(network.init)

    def keep(params, batch, keys):
        return jax.vjp(lambda p: network.task.loss(p, batch, keys)[0].mean(), params)[1]

    program = jax.make_jaxpr(keep)(params, batch, keys).jaxpr
    shapes = {x.shape for x in jax.tree.leaves(params)}
    given, saved = set(program.invars), {}
    for var in program.outvars:
        if hasattr(var, "val") or var in given or var.aval.shape in shapes:
            continue
        saved[var] = var.aval
    halves = [a.shape for a in saved.values() if a.dtype == jnp.bfloat16]
    total = 0
    for aval in saved.values():
        if aval.dtype == jnp.float32 and aval.shape in halves:
            halves.remove(aval.shape)
            continue
        total += aval.size * aval.dtype.itemsize
    return total / jax.tree.leaves(batch)[0].shape[0]


def need(run: experiment.Experiment, num_images: int = 0) -> Need:
    """Requirements of `run` on an accelerator.

    num_images: size of the data set to assume; 0 for the size of the set of the run.
    """
    config = copy(run.config, {"model.dtype": "bfloat16"})
    # Settings chosen for a CPU differ from those for an accelerator.
    if flat(config).get("model.attention") in ("auto", "by_image"):
        config.model.attention = "xla"
    classes = len(run.supervision.classes) if run.supervision else 0
    network = networks.build(config, classes)
    first_image = jax.eval_shape(lambda b: jax.tree.map(lambda x: x[0, :8], b), _first(run))
    size = jax.tree.leaves(first_image)[0].shape[0]
    keys = jax.eval_shape(lambda: evaluation_keys(jnp.arange(size)))

    def prepare(arrays, first_image, keys):
        def level(*_):  # an online search assigns a level to each example
            return jnp.ones(size, jnp.int32)

        choose = level if run.choose_level is not None else None
        return network.inputs.train(run.store.gather(arrays, first_image), keys, choose)

    examples = jax.eval_shape(run.store.gather, run.store.arrays, first_image)
    batch = jax.eval_shape(prepare, run.store.arrays, first_image, keys)
    pixels = sum(x.size * max(4, 2 * x.dtype.itemsize) for x in jax.tree.leaves((examples, batch)))
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.store.arrays))
    steps = run.total_steps
    if num_images:
        stored = stored * num_images / len(run.index)
        if not run.config.optim.steps:
            trained = round(run.order.num_images * num_images / len(run.index))  # the same share for training
            per_epoch = Order(trained, run.order.batch_size, 0).steps_per_epoch
            steps = max(1, round(run.config.optim.epochs * per_epoch))
    recomputes = flat(config).get("model.remat", False)
    saved = saved_bytes(network, batch, keys)
    whole = networks.build(copy(config, {"model.remat": False}), classes) if recomputes else network
    return Need(
        parameters=sum(int(np.prod(x.shape)) for x in jax.tree.leaves(jax.eval_shape(network.init))),
        flops_per_image=network.flops_per_image,
        saved_per_image=saved,
        written_per_image=saved_bytes(whole, batch, keys) if recomputes else saved,
        recomputes=recomputes,
        input_per_image=2 * pixels / size,
        images=stored,
        batch=run.config.optim.batch_size,
        accum=run.config.optim.accum_steps,
        steps=steps,
        chooses=run.config.data.store == "auto",
    )


def _first(run: experiment.Experiment) -> Any:
    return next(run.store.batches(0, 1))


def fitting_accum(wanted: Need, chip: chips.Chip) -> int:
    """The fewest accumulation steps with which a step fits 90 % of the memory of the chip; 0 if it never fits."""
    for accum in range(wanted.accum, wanted.batch + 1):
        if wanted.batch % accum == 0 and wanted.memory(accum, chip.dtype) <= (0.9e9 * chip.gigabytes):
            return accum
    return 0


def _timed_batch(run: experiment.Experiment) -> int:
    """Images of a step to time: those of the run, or fewer if they would take minutes or do not fit the memory."""
    devices, whole = jax.device_count(), run.config.optim.batch_size
    if jax.default_backend() == "cpu":
        return min(whole, max(1, int(TIMED_FLOPS / run.network.flops_per_image) // devices) * devices)
    chip, wanted = chips.of_kind(jax.devices()[0].device_kind), need(run)

    def fits(batch: int, accum: int) -> bool:
        on_one = dataclasses.replace(wanted, batch=batch // devices, images=wanted.images / devices)
        return chip is None or on_one.memory(accum, chip.dtype) <= 0.9e9 * chip.gigabytes

    batch = whole
    if not fits(whole, wanted.accum):
        while batch >= 2 * devices and not fits(batch, 1):
            batch = batch // 2 // devices * devices
    return batch


def timed(run: experiment.Experiment, repeats: int = 3) -> tuple[float, int]:
    """Compile and time a few steps. Returns the seconds per image on this machine and the batch size of the test."""
    batch_size = _timed_batch(run)
    if batch_size < run.config.optim.batch_size:
        config = copy(run.config, {"optim.batch_size": batch_size, "optim.accum_steps": 1})
        run = experiment.build(config, source=run.source)
    o = run.config.optim
    state, batch = run.make_state(), _first(run)
    step = compilation.compile_step(run, state, batch).step
    seconds = []
    for _ in range(repeats + 1):
        started = time.monotonic()
        state, out = step(state, run.arrays, batch)
        jax.block_until_ready((state, out))
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds[1:]) / o.batch_size, o.batch_size


def parse_prices(text: str) -> dict[str, float]:
    """Parse prices such as `'H100=2.5,TPU v5e=0.6'`, in dollars per chip and hour."""
    prices = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, _, value = (piece.strip() for piece in item.partition("="))
        if name not in {chip.name for chip in chips.CHIPS}:
            raise unknown("--prices", name, [chip.name for chip in chips.CHIPS])
        try:
            prices[name] = float(value)
        except ValueError:
            raise UserError(f"--prices: '{item}' is not name=dollars per hour") from None
    return prices


def table(planned: Need, prices: dict[str, float]) -> list[str]:
    """Return one line per chip: memory, time, share of peak, hours, cost."""
    lines = [
        f"{'one chip':9s} {'peak':>11s} {'memory':>7s} {'a step needs':>20s} {'img/s':>8s} "
        f"{'of peak':>8s} {'whole run':>14s} {'$/h':>6s} {'money':>10s}"
    ]
    for chip in chips.CHIPS:
        wanted = planned.on(chip)
        accum = fitting_accum(wanted, chip)
        seconds = wanted.seconds(chip)
        share = wanted.flops / seconds / (1e12 * chip.tflops)
        hours = wanted.steps * seconds / 3600
        price = prices.get(chip.name, chip.dollars_per_hour)
        dollars, money = (f"{price:.2f}", f"${hours * price:,.0f}") if price else ("-", "-")
        start = f"{chip.name:9s} {chip.tflops:7.1f} TF/s {chip.gigabytes:4.0f} GB "
        if not accum:
            lines.append(f"{start}{'does not fit':>20s}")
            continue
        fits = f"{wanted.memory(accum, chip.dtype) / 1e9:.1f} GB"
        fits += f" (accum {accum})" if accum > 1 else ""
        origin = "a" if chip.measured_share is None else "m"
        lines.append(
            f"{start}{fits:>20s} {wanted.batch / seconds:8,.0f} {share:7.0%}{origin} "
            f"{duration(3600 * hours):>14s} {dollars:>6s} {money:>10s}"
        )
    return lines


def _images(run: experiment.Experiment, wanted: Need) -> list[str]:
    """How much of the memory the images take, and of which size they are taken to be."""
    if not wanted.images:
        return []
    streamed = (
        f"; streamed where they exceed {stores.RESIDENT_SHARE['accelerator']:.0%} of it" if wanted.chooses else ""
    )
    size = " x ".join(str(side) for side in run.index.canvas)
    return [f"images     {wanted.images / 1e9:.4g} GB of that memory, each on a canvas of {size}{streamed}"]


def run(config: ConfigDict, prices: str = "", num_images: int = 0) -> list[str]:
    """Print the plan of a training run; nothing is written. Raises `UserError`.

    num_images: plan for a data set of this many images, which need not exist; simulated images are timed.
    """
    progress = Progress()
    if config.task.name in PROGRAMS:
        raise UserError(f"--plan is for training; config.task.name={config.task.name} trains nothing")
    own_prices = parse_prices(prices)
    compile_cache.use(config.compilation_cache)
    config, source, _ = inherit.resolve(config, None)
    if num_images < 0:
        raise UserError(f"--plan_images={num_images} must be greater than 0")
    values = flat(config)
    if not num_images and not values.get("data.root", "-") and values["data.name"] == "image_folder":
        raise UserError("--plan: give the number of images, --plan_images=10000, or config.data.root")
    if num_images:
        name = {2: "phantoms", 3: "phantoms3d"}[networks.identify(config).axes]
        config = copy(config, {"data.name": name, "data.num_images": min(num_images, 64)})
    here = experiment.build(config, source=source)
    wanted = need(here, num_images)
    lines = [
        f"{num_images or len(here.index):,} images, batch {wanted.batch:,}, {wanted.steps:,} steps; "
        f"{wanted.parameters:,} parameters",
        f"one image  {wanted.flops / wanted.batch / 1e9:.4g} GFLOP, "
        f"{wanted.traffic_per_image / 1e6:.4g} MB of memory traffic",
        f"one step   {wanted.flops / 1e12:.4g} TFLOP, {wanted.bytes / 1e9:.4g} GB of memory traffic, "
        f"{wanted.memory() / 1e9:.4g} GB of memory",
        *_images(here, wanted),
        f"whole run  {wanted.flops * wanted.steps:.3g} FLOP",
        "",
        *plan_pods.state_lines(here),
        "",
        *table(wanted, own_prices),
        "",
        *plan_pods.scaling_lines(wanted),
        "a: assumed, from the FLOPs at 80 % of peak and the traffic at 90 % of bandwidth; m: measured. "
        "Several chips divide the hours but not the cost. Small networks do not fill a chip and take longer.",
    ]
    for line in lines:
        progress.print(line)
    progress.update("timing this machine", force=progress.live)
    seconds, batch = timed(here)
    kind, devices = jax.devices()[0].device_kind, jax.device_count()
    peak = chips.peak_flops(kind)
    share = f", {wanted.flops_per_image / seconds / peak / devices:.0%} of peak" if peak else ""
    last = (
        f"here       {devices} x {kind}: {1 / seconds:,.1f} img/s, "
        f"{wanted.flops_per_image / seconds / 1e9:,.0f} GFLOP/s{share} (measured at batch {batch}); "
        f"whole run {duration(wanted.steps * wanted.batch * seconds)}"
    )
    progress.print(last)
    return [*lines, last]
