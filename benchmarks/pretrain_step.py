"""Time the pre-training step of a config: ours, ours without the input path, and PyTorch's.

    python -m benchmarks.pretrain_step --config=configs/d2mae_thyroid.py --batch=8 [--rounds=8] [--torch]

One process runs all variants in turn, round by round, and medians are reported, so that a machine that
slows down slows all of them. Variants:

  full        the training step as `main.py` runs it: gather, crop, degrade, resize, forward,
              backward, update
  prepared    the same step on images degraded beforehand and kept in memory
  input       the input path alone: gather, crop, degrade, resize
  torch       a PyTorch ViT-MAE of the same size on such images, eager (with --torch)
  compiled    the same under torch.compile (with --torch --compile)

Each round also times large matrix products, the machine's best rate, of which the step's share is reported.

Images are simulated phantoms of `--side` pixels, resident on the device. Writes JSON under
benchmarks/results/. Runs unchanged on CPU and on one GPU; on an accelerator the step is bfloat16 on
both sides.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from benchmarks.common import load_config, product_speed, simulated, write
from deblur_mae_jax import network as networks
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.performance import chips
from deblur_mae_jax.sharding import Division
from deblur_mae_jax.training import compilation, experiment, optimizer, train_step


def build_variants(config, arguments):
    """Callables by name, each of which runs one step to completion, and facts collected while building them."""
    run = experiment.build(config)
    batch = next(run.store.batches(0, 1))
    # The timed step keeps its state instead of donating it, so that variants share nothing.
    state = {"full": run.make_state(), "prepared": run.make_state()}
    program = compilation.compile_step(run, state["full"], batch)

    B = config.optim.batch_size
    keys = stream_keys(config.seed, 0, jnp.arange(B))
    input_path = jax.jit(
        lambda arrays, b: run.network.inputs.train(
            run.store.gather(arrays["images"], jax.tree.map(lambda x: x.reshape(-1), b)), keys
        )
    )
    ready = input_path(run.arrays, batch)

    tx = run_optimizer(run)
    prepared_step = train_step.make_train_step(
        lambda arrays, part, keys: part,
        run.network.task,
        tx,
        lambda s: 1e-4,
        config.seed,
        Division(run.mesh),
    )
    stacked = jax.tree.map(lambda x: x[None], ready)
    prepared = jax.jit(prepared_step, donate_argnums=0)
    started = time.monotonic()
    prepared = prepared.lower(state["prepared"], {}, stacked).compile()

    def full():
        state["full"], out = program.step(state["full"], run.arrays, batch)
        jax.block_until_ready((state["full"], out))

    def without_input():
        state["prepared"], out = prepared(state["prepared"], {}, stacked)
        jax.block_until_ready((state["prepared"], out))

    def only_input():
        jax.block_until_ready(input_path(run.arrays, batch))

    variants = {"full": full, "prepared": without_input, "input": only_input}
    facts = {
        "compile_s": {"full": program.seconds, "prepared": time.monotonic() - started},
        "parameters": sum(x.size for x in jax.tree.leaves(state["full"].params)),
        "gflop_per_image_formula": run.network.flops_per_image / 1e9,
        "gflop_per_image_compiler": None if program.flops is None else program.flops / B / 1e9,
        "program_gib": program.bytes / 2**30,
        "canvas": run.index.canvas,
        "dtype": str(jnp.dtype(run.network.model.dtype)),
    }
    if config.model.get("attention") in ("cudnn", "triton", "by_image"):
        facts["off_from_xla"] = off_from_xla(run, state["full"].params, ready, keys)
    if arguments.torch:
        from benchmarks.torch_mae import TorchStep, torch

        facts["torch"] = torch.__version__
        facts["torch_threads"] = torch.get_num_threads()
        half = facts["dtype"] == "bfloat16"
        ratio = config.task.mask_ratio
        variants["torch"] = TorchStep(run.network.model, ready, ratio, False, half)
        if arguments.compile:
            variants["compiled"] = TorchStep(run.network.model, ready, ratio, True, half)
    return run, variants, facts


def off_from_xla(run, params, prepared, keys):
    """The relative difference of a kernel's loss and gradient from plain XLA's.

    Uses 64 images, because plain attention on a whole batch may not fit into memory.
    """
    prepared, keys = jax.tree.map(lambda x: x[:64], (prepared, keys))
    plain = run.config.copy_and_resolve_references()
    with plain.unlocked():
        plain.model.attention = "xla"

    def loss_and_gradient(network):
        mean = lambda params: network.task.loss(params, prepared, keys)[0].mean()
        return jax.jit(jax.value_and_grad(mean))(params)

    (loss, grads), (wanted, right) = map(loss_and_gradient, (run.network, networks.build(plain)))
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, grads, right)) / optax.tree.norm(right)
    return {"loss": float(abs(loss - wanted) / wanted), "gradient": float(apart)}


def run_optimizer(run):
    """The optimiser of the config with a constant learning rate."""
    o = run.config.optim
    return optimizer.adamw(lambda _: 1e-4, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)


def torch_peak(variants):
    """Peak GiB of PyTorch's variants on a GPU."""
    peaks = [step.peak_bytes() for step in variants.values() if hasattr(step, "peak_bytes")]
    known = [peak for peak in peaks if peak]
    return max(known) / 2**30 if known else None


def best_product(dtype):
    """FLOP/s of the fastest of three square matrix products."""
    sizes = ((1024, 32), (2048, 8), (4096, 2))
    if jax.default_backend() != "cpu":
        sizes = ((4096, 32), (8192, 16), (16384, 4))
    return max(product_speed(dtype, size, repeats) for size, repeats in sizes)


def measure(variants, rounds, repeats, dtype):
    """Seconds per step of each variant, and FLOP/s of the best product, interleaved.

    The first round warms up and is dropped.

    Each timing follows an untimed step of the same variant: the step right after another library's
    pays for its threads and memory (a quarter more was seen on a CPU).
    """
    times, products = {name: [] for name in variants}, []
    for number in range(rounds + 1):
        for name, step in variants.items():
            step()
            started = time.perf_counter()
            for _ in range(repeats):
                step()
            if number:
                times[name].append((time.perf_counter() - started) / repeats)
        if number:
            products.append(best_product(dtype))
    return times, products


def main():
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1, help="steps per timing")
    parser.add_argument("--side", type=int, default=300, help="height of the images, pixels")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--variant", default="", help="Ti, S, B, L or H instead of the config's")
    parser.add_argument("--degrade", default="", help="another degradation")
    parser.add_argument("--set", action="append", default=[], help="field=value of the config")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", default="", help="JSON file; default: a name from the config and the device")
    arguments = parser.parse_args()

    config = load_config(arguments.config, *arguments.set)
    simulated(config, arguments.images, arguments.side, arguments.batch)
    if arguments.variant:
        config.model.variant = arguments.variant
    if arguments.degrade:
        config.task.degrade = arguments.degrade
        if "levels" not in arguments.degrade:
            config.model.conditioning = "none"
    run, variants, facts = build_variants(config, arguments)
    times, products = measure(variants, arguments.rounds, arguments.repeats, run.network.model.dtype)

    device = jax.devices()[0]
    peak = chips.peak_flops(device.device_kind)
    flops = run.network.flops_per_image * arguments.batch
    median = {name: statistics.median(values) for name, values in times.items()}
    table = {
        name: {
            "median_ms": 1e3 * median[name],
            "min_ms": 1e3 * min(values),
            "max_ms": 1e3 * max(values),
            "images_per_second": arguments.batch / median[name],
            "gflops_per_second": flops / median[name] / 1e9,
            "mfu": flops / median[name] / peak if peak else None,
        }
        for name, values in times.items()
    }
    paired = [1 - p / f for p, f in zip(times["prepared"], times["full"], strict=True)]
    share = {
        name: statistics.median(flops / t / p for t, p in zip(times[name], products, strict=True))
        for name in ("full", "prepared")
    }
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    result = {
        "config": arguments.config,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        **facts,
        "peak_device_gib": memory / 2**30 if memory else None,
        "peak_device_gib_torch": torch_peak(variants),
        "variants": table,
        "best_product_gflops_per_second": statistics.median(products) / 1e9,
        "share_of_the_best_product": share,
        "input_share": median["input"] / median["full"],
        "input_share_by_leaving_it_out": statistics.median(paired),
        "speed_against": {
            name: statistics.median([o / f for o, f in zip(times[name], times["full"], strict=True)])
            for name in variants
            if name not in ("full", "prepared", "input")
        },
    }
    for name, row in table.items():
        mfu = f"  MFU {row['mfu']:.1%}" if row["mfu"] else ""
        print(
            f"{name:10s} {row['median_ms']:10.1f} ms  {row['images_per_second']:9.1f} img/s  "
            f"{row['gflops_per_second']:9.1f} GFLOP/s{mfu}"
        )
    print(
        f"share of the best product's {result['best_product_gflops_per_second']:.0f} GFLOP/s: {share['full']:.1%}, "
        f"without input {share['prepared']:.1%}"
    )
    print(
        f"input and degradation: {result['input_share']:.1%} of the step timed alone, "
        f"{result['input_share_by_leaving_it_out']:.1%} by leaving it out"
    )
    if "off_from_xla" in facts:
        print(f"off from plain attention: {facts['off_from_xla']}")
    for name, ratio in result["speed_against"].items():
        print(f"speed against {name}: {ratio:.2f}x")
    stem = Path(arguments.config).stem + (f"_{arguments.variant}" if arguments.variant else "")
    write(arguments.output, f"pretrain_step_{stem}", "pre-training step", result)


if __name__ == "__main__":
    main()
