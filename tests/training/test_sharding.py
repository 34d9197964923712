"""Parameters and optimiser that are divided among devices: the rule, and steps and runs on eight devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, PartitionSpec
from tiny_runs import launch, lines

from deblur_mae_jax import sharding
from deblur_mae_jax.errors import UserError


def division(count, params="fsdp", replica=1, min_bytes=0):
    return sharding.Division(AbstractMesh((replica, count), sharding.AXES), params, min_bytes)


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_the_largest_side_that_divides_is_divided():
    eight = division(8)
    assert eight.of(array(768, 3072)).spec == PartitionSpec(None, "fsdp")
    assert eight.of(array(3072, 768)).spec == PartitionSpec("fsdp")
    assert eight.of(array(64, 64)).spec == PartitionSpec("fsdp")  # the first of equal sides
    assert eight.of(array(1001, 16)).spec == PartitionSpec(None, "fsdp")  # the largest side does not divide
    assert eight.of(array(1001, 7)).is_fully_replicated
    assert eight.of(array()).is_fully_replicated
    assert division(8, min_bytes=2**20).of(array(512, 511)).is_fully_replicated
    assert not division(8, min_bytes=2**20).of(array(512, 512)).is_fully_replicated  # exactly 1 MiB
    assert division(1).of(array(768, 3072)).is_fully_replicated


def test_what_each_choice_divides():
    tree = {"kernel": array(64, 32), "bias": array(3)}
    whole = lambda shardings: [s.is_fully_replicated for s in jax.tree.leaves(shardings)]
    assert whole(division(4, "replicate").of_params(tree)) == whole(division(4, "replicate").of_optimizer(tree))
    assert whole(division(4, "zero1").of_params(tree)) == [True, True]
    assert whole(division(4, "zero1").of_optimizer(tree)) == [True, False]
    assert whole(division(4, "fsdp").of_params(tree)) == [True, False]
    with pytest.raises(UserError, match="unknown name 'zero3'"):
        division(4, "zero3")


@given(st.lists(st.integers(1, 40), max_size=4), st.sampled_from([1, 2, 4, 8, 256]))
def test_each_device_holds_its_share(shape, count):
    one = division(count)
    where = one.of(array(*shape))
    held = sharding.bytes_per_device(array(*shape), where)
    total = int(np.prod(shape)) * 4
    assert held == (total if where.is_fully_replicated else total // count)
    assert where.is_fully_replicated == (count == 1 or not any(side % count == 0 for side in shape))


def test_a_number_of_copies_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"config\.sharding\.replica=3 must divide the number of devices, 1"):
        sharding.make_mesh(replica=3)


def test_the_line_for_the_user_names_what_cannot_be_divided():
    tree = {"a": array(512, 1024), "b": array(1001, 301)}
    text = division(8, min_bytes=2**20, replica=2).line(tree)
    assert "fsdp: parameters and optimiser are divided among 8 devices, 2 copies; 64% of 3.1 MiB" in text
    assert "1 large arrays have no side that 8 divides" in text


STEPS = """
import itertools, json
import jax, tiny, tiny_volumes
from deblur_mae_jax import sharding
from deblur_mae_jax.performance import hlo
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import experiment

first, out = None, {}
for params, replica in MODES:
    change = {"sharding__params": params, "sharding__replica": replica, "sharding__min_mib": 0.002}
    config, source, _ = inherit.resolve(MAKE(change))
    run = experiment.build(config, source=source)
    state = run.make_state()
    where = jax.tree.map(lambda x: x.sharding, state)
    held = sharding.bytes_per_device(state, where)
    first = first or jax.device_get(state)
    state, losses, program = jax.device_put(first, where), [], None
    for batch in itertools.islice(run.store.batches(0, 2), 2):
        program = program or run.train_step.lower(state, run.arrays, batch).compile()
        state, numbers = program(state, run.arrays, batch)
        losses.append(float(numbers["loss"]))
    text = program.as_text()
    kept = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, where)
    other = sum(x.nbytes // 8 for x in jax.tree.leaves((run.arrays, batch)))
    out[f"{params}_{replica}"] = {
        "losses": losses, "held": held, "kept": all(jax.tree.leaves(kept)), "found": hlo.collectives(text),
        "arguments": program.memory_analysis().argument_size_in_bytes - other,
        "bodies": sorted({x.body for x in hlo.instructions(text).values() if x.kind == "collectives"}),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "divided": sum(x.size for x in jax.tree.leaves(state.params)
                       if not sharding.Division(run.mesh, "fsdp", 0.002 * 2**20).of(x).is_fully_replicated),
    }
print(json.dumps(out))
"""
NETWORKS = {
    "pictures": 'lambda change: tiny.config("d2mae_thyroid", data__store="streaming", optim__batch_size=16, **change)',
    "volumes": 'lambda change: tiny_volumes.config_of("mae3d_ct_mr", optim__batch_size=8, **change)',
    "segmentation": "lambda change: tiny_volumes.segmentation(optim__batch_size=8, **change)",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", NETWORKS)
def test_divided_steps_give_the_losses_of_whole_ones(kind):
    """Each device gathers every divided parameter and sums every gradient once, outside of any loop."""
    if kind != "pictures" and not os.environ.get("DEBLUR_MAE_LONG"):
        pytest.skip("the networks for volumes take minutes to compile: set DEBLUR_MAE_LONG=1")
    modes = [("replicate", 1), ("fsdp", 1)]
    if kind == "pictures":  # a network for volumes takes a minute to compile
        modes += [("zero1", 1), ("fsdp", 2)]
    program = "import conftest\n" + STEPS.replace("MAKE(", f"({NETWORKS[kind]})(").replace("MODES", repr(modes))
    done = subprocess.run(
        [sys.executable, "-c", program], env=tiny.simulated(8) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=560, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    whole = found["replicate_1"]
    for name, seen in found.items():
        np.testing.assert_allclose(seen["losses"], whole["losses"], rtol=1e-6, err_msg=name)
        assert seen["kept"], name
        assert abs(seen["arguments"] - seen["held"]) < 0.1 * seen["held"], name
        assert all("main" in body for body in seen["bodies"]), name
        if name == "replicate_1":
            continue
        assert seen["divided"] > 0.8 * seen["parameters"]
        gathered = seen["found"]["all-gather"][1]
        assert 4 * seen["divided"] <= gathered < 1.05 * 4 * seen["parameters"], name
    assert found["fsdp_1"]["held"] < 0.3 * whole["held"]


@pytest.mark.slow
def test_a_divided_run_goes_on_with_any_number_of_devices_and_copies(tmp_path):
    settings = {
        "optim__steps": 6,
        "sharding__min_mib": 0.002,
        "checkpoint__every_epochs": 0.1,
        "checkpoint__keep_last": 9,
    }
    code, output = launch(tmp_path / "whole", **settings)
    assert code == 0, output
    run = tmp_path / "divided"
    for devices, params, replica, last in ((8, "fsdp", 1, 2), (8, "fsdp", 2, 4), (1, "zero1", 1, 6)):
        code, output = launch(run, devices=devices, sharding__params=params, sharding__replica=replica, **settings)
        assert code == 0 and f"sharding    {params}" in output, output
        for step in range(last + 1, 7):  # as if it had been killed here
            subprocess.run(["rm", "-r", str(run / "checkpoints" / f"step_{step}")], check=True)
    np.testing.assert_allclose(list(lines(run).values()), list(lines(tmp_path / "whole").values()), rtol=1e-5)
