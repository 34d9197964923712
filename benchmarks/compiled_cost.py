"""Compilers' estimates of a training step on absent chips: FLOPs, memory, collectives.

    pip install libtpu            # for the TPUs; jax-cuda12-plugin, jax-cuda12-pjrt, nvidia-cuda-nvcc-cu12 for the H100
    python -m benchmarks.compiled_cost --config=configs/d2mae_thyroid.py --chips=h100,v5p --batch=1024

The step is compiled ahead of time for a described chip. This needs the chip maker's compiler but no chip. Nothing is
run, so there are no times. On the H100 matrix products use untuned cuBLAS, and its compiler does not count FLOPs.
cuDNN's kernels cannot be compiled this way; Tokamax's can (--attention=triton, pip install tokamax).
"""

import argparse
import dataclasses
import math
import os
import re

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.common import load_config, simulated, write
from deblur_mae_jax import sharding
from deblur_mae_jax.commands import plan
from deblur_mae_jax.performance import hlo
from deblur_mae_jax.training import experiment

# The smallest topology of each chip, and of pods by `chip-number`.
TPUS = {
    "v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2",
    "v5e-256": "v5e:16x16", "v6e-256": "v6e:16x16", "v5p-128": "v5p:4x4x8",
}  # fmt: skip
# The numbers of NVIDIA's data sheet and CUDA's device query, in XLA's form.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def topology(chip, devices):
    """The described chips. H100: nodes of 8, connected by NVLink within a node only."""
    if chip == "h100":
        node = min(devices, 8)
        described = topologies.get_topology_desc(
            "h100", "cuda", target_config=H100, topology=f"{-(-devices // node)}x1x{node}"
        )
    else:
        described = topologies.get_topology_desc(TPUS[chip], "tpu")
    return described.devices[:devices]


def with_triton():
    """Make Tokamax and the model use the Triton kernel without checking the chip of this machine."""
    import tokamax  # noqa: F401
    from tokamax._src.ops.attention import pallas_triton, pallas_triton_vjp

    from deblur_mae_jax.models import attention

    for kernel in (
        pallas_triton.PallasTritonFlashAttention,
        pallas_triton_vjp.PallasTritonFlashAttentionVjp,
    ):
        kernel.supported_on = lambda self, device: True
    attention.attend = lambda q, k, v, implementation: attention.attend_by_triton(q, k, v)


def compiled(run, devices, num_images):
    """The training step of `run` for `devices`, with `num_images` kept on them."""
    settings = run.config.sharding
    mesh = Mesh(np.array(devices).reshape(settings.replica, -1), sharding.AXES)
    sharding.make_mesh = lambda **_: mesh  # a kernel is divided over it by hand
    division = sharding.Division(mesh, settings.params, settings.min_mib * 2**20)

    def placed(tree, where):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)

    def described(tree, axis):
        return placed(tree, jax.tree.map(lambda _: sharding.along(mesh, axis), tree))

    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.state_shapes)
    state = placed(state, division.of_state(state))
    rows = num_images // len(devices) * len(devices)
    images = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), run.store.arrays)
    number = jax.ShapeDtypeStruct((1, run.config.optim.batch_size), np.int32)
    batch = described({"number": number}, 1)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # kernels ask it for the chip
        return run.step_for(division).lower(state, {"images": described(images, 0)}, batch).compile()


BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
MOVES_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")


def traffic(text):
    """Bytes that the kernels of a GPU's program read and write: every operand and result of its instructions, once.

    What is inside a fusion or a library's kernel stays on the chip. Loops count as one round.
    """
    sizes, total = {}, 0
    for line in text[text.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)", line)
        if not found:
            continue
        name, shape, opcode, rest = found.groups()
        sides = [[int(side) for side in dims.split(",") if side] for _, dims in ARRAY.findall(shape)]
        kinds = [BYTES[kind] for kind, _ in ARRAY.findall(shape)]
        sizes[name] = sum(kind * math.prod(side) for kind, side in zip(kinds, sides, strict=True))
        if opcode not in MOVES_NOTHING:
            total += sizes[name] + sum(sizes.get(of, 0) for of in re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
    return total


def main():
    """Compile, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--chips", default="h100,v5p", help="h100, v4, v5e, v5p, v6e")
    parser.add_argument("--batch", type=int, default=1024, help="per chip")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--images", type=int, default=10675)
    parser.add_argument("--attention", default="xla")
    parser.add_argument("--set", action="append", default=[], help="field=value of the config")
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    config = load_config(a.config, *a.set)
    simulated(config, 32, 300, a.batch * a.devices)
    config.sharding.replica, replica = 1, config.sharding.replica  # the one of this machine, and of the chips
    config.model.dtype, config.model.attention = "bfloat16", a.attention
    if a.attention == "triton":
        with_triton()
        config.model.attention = "xla"
    run = experiment.build(config)
    run.config.sharding.replica = replica
    wanted = plan.need(run, a.images)
    on_one = dataclasses.replace(wanted, batch=a.batch, images=wanted.images / a.devices)
    rows = {}
    for chip in a.chips.split(","):
        program = compiled(run, topology(chip, a.devices), a.images)
        memory, count = program.memory_analysis(), program.cost_analysis() or {}
        text = program.as_text()
        total = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        flops = count.get("flops", 0.0) * a.devices / config.optim.batch_size
        rows[chip] = {
            "gflop_per_image": flops / 1e9 or None,
            "gb_accessed_per_image": count.get("bytes accessed", 0) / a.batch / 1e9 or None,
            "gb_of_kernels_per_image": traffic(text) / a.batch / 1e9 if chip == "h100" else None,
            "memory_gb": total / 1e9,
            "arguments_gb": memory.argument_size_in_bytes / 1e9,
            "temporary_gb": memory.temp_size_in_bytes / 1e9,
            "collectives": {kind: {"count": n, "mb": size / 1e6} for kind, (n, size) in hlo.collectives(text).items()},
            "fusions": text.count(" fusion("),
            "library_products": text.count('custom_call_target="__cublas'),
        }
        print(chip, rows[chip], flush=True)
    out = {
        "config": a.config,
        "batch_per_chip": a.batch,
        "devices": a.devices,
        "attention": a.attention,
        "changes": a.set,
        "parameters": wanted.parameters,
        "gflop_per_image_formula": wanted.flops_per_image / 1e9,
        "plan_memory_gb": on_one.memory() / 1e9,
        "gradient_mb": 4 * wanted.parameters / 1e6,
        "chips": rows,
    }
    write(a.output, f"compiled_cost_{a.devices}", "the compilers' account of a training step", out)


if __name__ == "__main__":
    main()
