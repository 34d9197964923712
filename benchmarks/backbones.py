"""Time a training step of the supervised networks against timm's in PyTorch, and the memory of each.

    python -m benchmarks.backbones --networks=resnet50,convnext_t,swin_t,unetpp_resnet50 --side=224 --batch=8

A step is the forward pass, cross-entropy, the backward pass and AdamW in float32, on images that are already in
memory. A segmenter in PyTorch is the file that an export brings, with timm's encoder. Every variant runs in a separate
process, so that its peak memory can be measured; ours and timm's take turns, one step each after an untimed one.
Ratios are medians over rounds. Both have huge pages, as `main.py` asks for them. On a CPU the peak is the resident
memory of the process, and the memory before the step is reported too; on a GPU it is that of the device. Needs the
`pytorch` extra.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import turns
from benchmarks.swin_unetr_step import like_jax

CLASSES, LEARNING_RATE, AUXILIARY = 2, 1e-4, 0.4
NETWORKS = {
    "resnet50": ("resnet", "50", "resnet50"), "resnet101": ("resnet", "101", "resnet101"),
    "convnext_t": ("convnext", "T", "convnext_tiny"), "convnext_l": ("convnext", "L", "convnext_large"),
    "swin_t": ("swin2d", "T", "swin_tiny_patch4_window7_224"),
    "swin_l": ("swin2d", "L", "swin_large_patch4_window7_224"),
    "vit_b": ("vit", "B", "vit_base_patch16_224"), "beit_b": ("beit", "B", "beit_base_patch16_224"),
}  # fmt: skip
# Encoder (ours, its size, timm's), decoder, channels of the maps, and their numbers among timm's.
SEGMENTERS = {
    "unetpp_resnet50": (NETWORKS["resnet50"], "unetpp", [256, 512, 1024, 2048], [1, 2, 3, 4]),
    "upernet_swin_t": (NETWORKS["swin_t"], "upernet", [96, 192, 384, 768], [0, 1, 2, 3]),
    "upernet_vit_b": (NETWORKS["vit_b"], "upernet", [768] * 4, [2, 5, 8, 11]),
}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet50,convnext_t,swin_t,vit_b,beit_b,unetpp_resnet50,upernet_swin_t",
                        help=", ".join([*NETWORKS, *SEGMENTERS]))  # fmt: skip
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


def masks(a):
    """The same masks for both libraries."""
    import numpy as np

    return np.random.default_rng(1).integers(0, CLASSES, (a.batch, a.side, a.side))


def _ours(a, network):
    """(the file of our network, the network, its task)."""
    from deblur_mae_jax import lookup
    from deblur_mae_jax.tasks import classify, segment

    sizes = {"image_size": a.side, "in_chans": 3, "num_classes": CLASSES}
    if network in SEGMENTERS:
        (name, variant, _), decoder, *_ = SEGMENTERS[network]
        module = lookup.module("models", "segmenter", "Model", "network")
        model = module.Model(variant, encoder=name, decoder=decoder, **sizes)
        return module, model, segment.make(model, loss="ce", auxiliary_weight=AUXILIARY * (decoder == "upernet"))
    name, variant, _ = NETWORKS[network]
    module = lookup.module("models", name, "Model", "network")
    model = module.Model(variant, **sizes)
    return module, model, classify.make(model, mixup=0.0, cutmix=0.0, label_smoothing=0.0)


def ours(a, network):
    """(step, peak of the device, facts)."""
    import jax
    import jax.numpy as jnp

    from deblur_mae_jax import sharding
    from deblur_mae_jax.training import optimizer, train_step

    module, model, task = _ours(a, network)
    x, y = images(a)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *x.shape[1:])))["params"]
    schedule = lambda step: LEARNING_RATE
    tx = optimizer.adamw(schedule, b2=0.999, weight_decay=0.05, decay_on="all")
    division = sharding.Division(sharding.make_mesh())
    step = train_step.make_train_step(lambda arrays, part, keys: part, task, tx, schedule, 0, division)
    batch = {"inputs": jnp.asarray(x)[None], "label": jnp.asarray(y, jnp.int32)[None]}
    if network in SEGMENTERS:
        batch["mask"] = jnp.asarray(masks(a), jnp.int32)[None]
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


def _theirs(a, network):
    """(the network in PyTorch, its loss of images and truth)."""
    import timm
    import torch.nn.functional as F

    encoder = SEGMENTERS[network][0] if network in SEGMENTERS else NETWORKS[network]
    arguments = {"img_size": a.side} if encoder[0] in ("swin2d", "vit", "beit") else {}
    if network not in SEGMENTERS:
        model = timm.create_model(encoder[2], num_classes=CLASSES, drop_path_rate=0.0, **arguments)
        return model, lambda x, y: F.cross_entropy(model(x), y)
    from deblur_mae_jax.weight_formats.standalone import modeling_segmenter

    _, decoder, channels, indices = SEGMENTERS[network]
    model = modeling_segmenter.Segmenter({
        "kind": encoder[0], "channels": channels, "indices": indices, "num_classes": CLASSES, "decoder": decoder,
        "decoder_width": 512, "encoder": {"model": encoder[2], "arguments": arguments | {"num_classes": 0}},
    }, Path())  # fmt: skip
    auxiliary = []  # the second head sees the third map, of which the file keeps only the weights
    if decoder == "upernet":
        head = model.decode_head
        head.register_forward_pre_hook(
            lambda module, maps: auxiliary.append(head.auxiliary_out(head.auxiliary(maps[0][2])))
        )

    def loss(x, y):
        auxiliary.clear()
        total = F.cross_entropy(model(x), y)
        for logits in auxiliary:
            total = total + AUXILIARY * F.cross_entropy(modeling_segmenter.resize(logits, x), y)
        return total

    return model, loss


def theirs(a, network):
    """The same in PyTorch."""
    import torch

    like_jax()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, loss_of = _theirs(a, network)
    model = model.to(device).train()
    x, y = images(a)
    y = masks(a) if network in SEGMENTERS else y
    x, y = torch.from_numpy(x).movedim(-1, 1).contiguous().to(device), torch.from_numpy(y).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05, fused=device == "cuda")

    def run():
        loss = loss_of(x, y)
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
