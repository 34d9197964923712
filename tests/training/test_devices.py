"""Four devices against one: the same losses, and nothing crosses between them that need not."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny


def printed(program, **environment):
    """What `program` prints, as JSON, on four devices."""
    done = subprocess.run(
        [sys.executable, "-c", "import conftest\n" + program],
        env=tiny.simulated(4) | environment,
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


PICTURES = """
import json
import jax, tiny
from deblur_mae_jax.models import attention
from deblur_mae_jax.performance import hlo
from deblur_mae_jax.training import experiment

attention.CACHED_SCORES = 0  # as if the scores were too many to be computed at once
out = {}
for store in ("resident", "streaming"):
    run = experiment.build(tiny.config("d2mae_thyroid", data__store=store, optim__batch_size=16))
    state, batch = run.make_state(), next(run.store.batches(0, 1))
    text = run.train_step.lower(state, run.arrays, batch).compile().as_text()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    out[store] = {"found": hlo.collectives(text), "parameters": parameters, "canvas": run.index.canvas}
print(json.dumps(out))
"""


@pytest.mark.slow
def test_a_step_of_pictures_sums_the_gradients_once():
    found = printed(PICTURES, JAX_DISABLE_MOST_OPTIMIZATIONS="0")
    for store, seen in found.items():
        gradients = 4 * seen["parameters"] + 4  # and the loss
        images = 16 * int(np.prod(seen["canvas"])) if store == "resident" else 0
        number = 2 if store == "resident" else 1
        assert seen["found"].pop("all-reduce") == [number, gradients + images]
        # Of a resident set the numbers and sizes of the images are gathered, nothing larger.
        assert sum(size for _, size in seen["found"].values()) <= 8 * (24 + 16)


OBJECTIVES = """
import json
import jax, numpy as np, tiny
from deblur_mae_jax import sharding
from deblur_mae_jax.training import experiment

out, whole, first = [], sharding.make_mesh, None
for count in (1, 4):
    sharding.make_mesh = lambda **_: whole(jax.devices()[:count])
    run = experiment.build(tiny.config(NAME, optim__warmup_epochs=0.0))
    first = first or jax.device_get(run.make_state())
    state, losses = jax.device_put(first, sharding.replicated(run.mesh)), []
    for batch in run.store.batches(0, 2):
        state, numbers = run.train_step(state, run.arrays, batch)
        losses.append(float(numbers["loss"]))
    out.append(losses)
print(json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["moco_v3:deblur", "simclr", "diffmae", "convmae:levels", "simmim:beit", "simmim_swin:deblur", "dino_v2:deblur"],
)
def test_a_step_of_every_objective_is_the_same_on_four_devices(name):
    """Contrasts see the whole batch, and the statistics of BatchNorm are those of the whole batch."""
    one, four = printed(f"NAME = {name!r}\n{OBJECTIVES}")
    assert len(one) == 2
    # The second step follows an update, in which LARS and Adam enlarge small differences of the gradients.
    np.testing.assert_allclose(four[0], one[0], rtol=2e-6)
    np.testing.assert_allclose(four[1], one[1], rtol=2e-3)


VOLUMES = """
import itertools, json
import jax, numpy as np, tiny_volumes
from deblur_mae_jax import sharding
from deblur_mae_jax.inference import segmenter
from deblur_mae_jax.performance import hlo
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import experiment

make = tiny_volumes.segmentation if NAME == "segment_volumes" else tiny_volumes.config_of
out, whole, first = {"losses": [], "voxels": []}, sharding.make_mesh, None
for count in (1, 4):
    sharding.make_mesh = lambda **_: whole(jax.devices()[:count])
    config, source, _ = inherit.resolve(make(NAME, optim__batch_size=4, **CHANGE))
    run = experiment.build(config, source=source)
    first = first or jax.device_get(run.make_state())
    state, losses = jax.device_put(first, sharding.replicated(run.mesh)), []
    batches = itertools.islice(run.store.batches(0, 2), 2)
    for batch in batches:
        program = program if losses else run.train_step.lower(state, run.arrays, batch).compile()
        state, numbers = program(state, run.arrays, batch)
        losses.append({k: float(v) for k, v in numbers.items()})
    out["losses"].append(losses)
    if NAME == "segment_volumes":
        found = segmenter.Segmenter(run.network, run.mesh, run.config.infer).of_volume(
            [state.params], tiny_volumes.cube(shape=(40, 36, 44), low=0, high=1)[..., None])
        out["voxels"].append(np.bincount(found.ravel(), minlength=3).tolist())
text = program.as_text()
talk = [x for x in hlo.instructions(text).values() if x.kind == "collectives"]
out["bodies"] = sorted({x.body for x in talk})
out["found"] = hlo.collectives(text)
out["parameters"] = sum(x.size for x in jax.tree.leaves(state.params))
print(json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dae_ct_mr", "swin_ssl_ct_mr", "segment_volumes"])
def test_a_step_of_volumes_is_the_same_and_moves_gradients_and_embeddings(name):
    """The contrasts count for much here, so it would show if they did not see the whole batch."""
    # To rebuild a cube of 32 voxels from a single token, constants are normalised: their rounding is blown up.
    change = {"task__reconstruction_weight": 0.0} if name == "swin_ssl_ct_mr" else {}
    if name == "dae_ct_mr":
        change = {"task__contrast_weight": 1.0, "task__temperature": 1.0}
    seen = printed(f"NAME, CHANGE = {name!r}, {change!r}\n{VOLUMES}")
    one, four = seen["losses"]
    assert len(one) == len(four) == 2
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
    # Of each class, from windows that are divided over the devices.
    assert len(seen["voxels"]) == (2 if name == "segment_volumes" else 0)
    for a, b in itertools.pairwise(seen["voxels"]):
        assert sum(a) == 40 * 36 * 44 and min(a) > 0
        np.testing.assert_allclose(a, b, atol=40)
    # What crosses is gradients and embeddings, not the windows of a volume, nor its cubes; and nothing
    # does in a loop, which every device would have to go through in step.
    assert len(seen["bodies"]) == 1
    gradients, cube = 4 * seen["parameters"], 4 * 32**3
    _, summed = seen["found"].pop("all-reduce")
    # The biases between the tokens of a window are summed before they are folded into their table; two blocks each.
    biases = 2 * 4 * sum(heads * tokens**2 for heads, tokens in ((3, 343), (6, 343), (12, 64)))
    assert gradients <= summed <= gradients + biases + cube
    # A contrast needs the embeddings of the whole batch. The cut-outs are filled from the neighbour in the batch:
    # one cube per view crosses.
    embeddings = {"dae_ct_mr": 4 * 4 * 192, "swin_ssl_ct_mr": 4 * 8 * 512}.get(name, 0)
    cubes = 2 * cube if name == "swin_ssl_ct_mr" else 0
    crossing = sum(size for _, size in seen["found"].values())
    assert cubes + embeddings <= crossing <= 1.25 * cubes + 4 * embeddings + 1000
