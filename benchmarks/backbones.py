"""Time a training step of the supervised networks against timm's in PyTorch, and the memory of each.

    python -m benchmarks.backbones --networks=resnet50,convnext_t,swin_t --side=224 --batch=8

A step is the forward pass, cross-entropy, the backward pass and AdamW in float32, on images that are already in
memory. Every variant runs in a separate process, so that its peak memory can be measured; ours and timm's take turns,
one step each. Ratios are medians over rounds. On a CPU the peak is the resident memory of the process, and the memory
before the step is reported too; on a GPU it is that of the device. Needs the `pytorch` extra.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import turns

CLASSES, LEARNING_RATE = 2, 1e-4
NETWORKS = {
    "resnet50": ("resnet", "50", "resnet50"), "resnet101": ("resnet", "101", "resnet101"),
    "convnext_t": ("convnext", "T", "convnext_tiny"), "convnext_l": ("convnext", "L", "convnext_large"),
    "swin_t": ("swin2d", "T", "swin_tiny_patch4_window7_224"),
    "swin_l": ("swin2d", "L", "swin_large_patch4_window7_224"),
}  # fmt: skip


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet50,convnext_t,swin_t", help=", ".join(NETWORKS))
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def images(a):
    """The same images and labels for both libraries."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.standard_normal((a.batch, a.side, a.side, 3), np.float32), rng.integers(0, CLASSES, a.batch)


def ours(a, network):
    """(step, peak of the device, facts)."""
    import jax
    import jax.numpy as jnp

    from deblur_mae_jax import lookup, sharding
    from deblur_mae_jax.tasks import classify
    from deblur_mae_jax.training import optimizer, train_step

    name, variant, _ = NETWORKS[network]
    module = lookup.module("models", name, "Model", "network")
    model = module.Model(variant, image_size=a.side, in_chans=3, num_classes=CLASSES)
    x, y = images(a)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *x.shape[1:])))["params"]
    schedule = lambda step: LEARNING_RATE
    tx = optimizer.adamw(schedule, b2=0.999, weight_decay=0.05, decay_on="all")
    task = classify.make(model, mixup=0.0, cutmix=0.0, label_smoothing=0.0)
    division = sharding.Division(sharding.make_mesh())
    step = train_step.make_train_step(lambda arrays, part, keys: part, task.loss, tx, schedule, 0, division)
    batch = {"inputs": jnp.asarray(x)[None], "label": jnp.asarray(y, jnp.int32)[None]}
    state = train_step.create_state(params, tx)
    started = time.monotonic()
    program = jax.jit(step, donate_argnums=0).lower(state, {}, batch).compile()
    facts = {"compile_s": time.monotonic() - started, "gflop_per_image": module.flops_per_image(model) / 1e9}
    kept = [state]

    def run():
        kept[0], out = program(kept[0], {}, batch)
        jax.block_until_ready((kept[0], out))

    def peak():
        found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return found / 2**20 if found else None

    return run, peak, facts


def theirs(a, network):
    """The same in PyTorch with timm's network."""
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    extra = {"img_size": a.side} if network.startswith("swin") else {}
    model = timm.create_model(NETWORKS[network][2], num_classes=CLASSES, drop_path_rate=0.0, **extra).to(device).train()
    x, y = images(a)
    x, y = torch.from_numpy(x).movedim(-1, 1).contiguous().to(device), torch.from_numpy(y).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05, fused=device == "cuda")

    def run():
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    peak = lambda: torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return run, peak, {"threads": torch.get_num_threads()}


def main():
    """Measure, print, write JSON."""
    a = parse()
    if a.worker:
        library, network = a.worker.split(":")
        turns.work(library, lambda: (ours if library == "jax" else theirs)(a, network))
        return
    from benchmarks import common

    rows, options = {}, [f"--side={a.side}", f"--batch={a.batch}"]
    for network in a.networks.split(","):
        rows[network] = turns.measured(__file__, options, network, "timm", a.rounds)
        print(turns.shown(network, rows[network], "timm"), flush=True)
    content = {"side": a.side, "batch": a.batch, "rounds": a.rounds, "networks": rows}
    common.write(a.output, "backbones", __doc__.splitlines()[0], content)


if __name__ == "__main__":
    main()
