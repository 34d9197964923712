"""What must not grow, counted rather than timed: programs, transfers, collectives, what is kept, imports."""

import collections
import dataclasses
import logging
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.commands import plan, plan_pods
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.performance import chips, hlo, profiling, tuning
from deblur_mae_jax.training import experiment

ROOT = tiny.ROOT


class Log(logging.Handler):
    """Names of the programs that JAX compiles."""

    def __init__(self):
        super().__init__()
        self.compiled = collections.Counter()

    def emit(self, record):
        found = re.match(r"Compiling (?:jit\()?([\w<>.]+)", record.getMessage())
        if found:
            self.compiled[found.group(1)] += 1


def compiled_while(function):
    """How often each program was compiled (or read from the cache) while `function` ran."""
    jax.clear_caches()  # of this process: what another test compiled would not be compiled again
    handler, logger = Log(), logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            function()
    finally:
        logger.removeHandler(handler)
    return handler.compiled


@pytest.mark.slow
def test_a_run_compiles_each_program_once(tmp_path):
    config = tiny.config(optim__steps=9, checkpoint__every_epochs=1.0, report__every_epochs=1.0)
    count = compiled_while(lambda: train.train_and_evaluate(config, tmp_path))
    ours = {"initial_state", "train_step", "evaluate", "fingerprint", "_copied"}
    assert {name for name in count if not hasattr(jax.lax, name)} >= ours, count
    # Single operations outside any program of ours have JAX's names, and a program for every shape.
    again = {k: number for k, number in count.items() if number > 1 and not hasattr(jax.lax, k)}
    assert not again, f"compiled more than once: {again}"


def test_a_step_moves_numbers_in_and_metrics_out_and_nothing_else(tmp_path, monkeypatch):
    """In the hot loop the guard forbids every transfer that is not asked for; these are."""
    sent, fetched = [], []
    put, get = jax.make_array_from_process_local_data, jax.device_get

    def counting_put(sharding, data, *rest, **named):
        sent.append(np.asarray(data).nbytes)
        return put(sharding, data, *rest, **named)

    def counting_get(values):
        if isinstance(values, dict) and "loss" in values:  # not what a checkpoint takes
            fetched.append(len(values))
        return get(values)

    monkeypatch.setattr(jax, "make_array_from_process_local_data", counting_put)
    monkeypatch.setattr(jax, "device_get", counting_get)
    steps, batch = 7, 8
    train.train_and_evaluate(tiny.config(optim__steps=steps, optim__batch_size=batch), tmp_path)
    assert sent == [4 * batch] * steps  # image numbers, int32
    assert fetched == [4] * steps  # loss, gradient norm, learning rate, health


def test_the_loop_forbids_unasked_transfers(tmp_path, monkeypatch):
    real = train.compilation.compile_step

    def from_host(*arguments):
        program = real(*arguments)
        step = program.step

        def careless(state, arrays, batch):
            jnp.sin(np.ones(3))  # an array of the host, handed to the device without saying so
            return step(state, arrays, batch)

        program.step = careless
        return program

    monkeypatch.setattr(train.compilation, "compile_step", from_host)
    with pytest.raises(Exception, match=r"Disallowed host-to-device transfer"):
        train.train_and_evaluate(tiny.config(optim__steps=2), tmp_path)


def kept(config):
    """Bytes per image that the backward pass of a config's loss keeps."""
    network, B = networks.build(config), 4
    side = config.image_size
    pixels = jax.ShapeDtypeStruct((B, side, side, config.model.in_chans), jnp.float32)
    batch = {"inputs": pixels, "targets": pixels, "level": jax.ShapeDtypeStruct((B,), jnp.int32)}
    keys = jax.eval_shape(lambda: stream_keys(0, 0, jnp.arange(B)))
    return plan.saved_bytes(network, batch, keys)


def test_saved_activations_of_a_block():
    """What one more block keeps: 16 rows of its width per token, the scores, and sums per row."""

    def more(**change):
        sizes = {"model__dtype": "bfloat16", "model__attention": "xla", "model__mlp_ratio": 4.0}
        deep, shallow = (kept(tiny.config(**sizes, **{k: v * n for k, v in change.items()})) for n in (2, 1))
        return deep - shallow

    for part, width, heads, tokens in (("depth", 32, 4, 5), ("decoder_depth", 16, 2, 17)):
        rows = 2 * 16 * tokens * width
        scores = 2 * heads * tokens**2
        assert rows < more(**{f"model__{part}": 1}) < 1.35 * (rows + scores)


def test_remat_keeps_less():
    usual, less = (kept(tiny.config(model__depth=4, model__remat=on)) for on in (False, True))
    assert less < 0.6 * usual


def test_the_plan_of_remat_needs_less_memory_and_more_time():
    usual, less = (plan.need(experiment.build(tiny.config(model__depth=4, model__remat=on))) for on in (False, True))
    assert (
        less.memory() < usual.memory() and less.bytes > usual.bytes and less.flops == pytest.approx(usual.flops * 4 / 3)
    )
    assert all(less.seconds(chip) > usual.seconds(chip) for chip in chips.CHIPS)


@pytest.mark.parametrize("variant", tiny.others_slow("BLH", "B", "L"))
def test_flops_in_closed_form_are_the_compilers(variant):
    """Within 5 %, at full size, on the program as JAX hands it to the compiler."""
    config = tiny.load("d2mae_thyroid")
    config.model.variant, config.model.attention = variant, "xla"
    config.model.patch_size = 14 if variant == "H" else 16
    network, B = networks.build(config), 2
    pixels = jax.ShapeDtypeStruct((B, 224, 224, 1), jnp.float32)
    batch = {"inputs": pixels, "targets": pixels, "level": jax.ShapeDtypeStruct((B,), jnp.int32)}

    def gradient(params, batch):
        keys = stream_keys(0, 0, jnp.arange(B))
        return jax.grad(lambda p: network.task.loss(p, batch, keys)[0].mean())(params)

    lowered = jax.jit(gradient).lower(jax.eval_shape(network.init), batch)
    assert lowered.cost_analysis()["flops"] / B == pytest.approx(network.flops_per_image, rel=0.05)


@pytest.fixture(scope="module")
def need():
    return plan.need(experiment.build(tiny.config("d2mae_thyroid")))


def test_a_plan_adds_up(need):
    assert need.flops == need.flops_per_image * 8 and need.steps == 4
    slow, fast = (next(c for c in chips.CHIPS if c.name == name) for name in ("A100", "H100"))
    assert need.seconds(slow) > need.seconds(fast) > need.flops / (1e12 * fast.tflops)
    assert need.memory(2) < need.memory(1)
    assert need.memory() > 18 * need.parameters + need.images


def test_a_plan_of_more_images_takes_more_steps():
    run = experiment.build(
        tiny.config("d2mae_thyroid", optim__steps=0, optim__epochs=10.0, optim__warmup_epochs=1.0),
        None,
    )
    small, large = plan.need(run), plan.need(run, 240)
    assert large.steps == 10 * small.steps == 300
    assert large.images == pytest.approx(10 * small.images)


def test_a_step_that_does_not_fit_is_accumulated_or_said_not_to(need):
    tiny_chip = chips.Chip("toy", 1, 1e-9, 1, (1, 1), 1, ())
    assert plan.fitting_accum(need, tiny_chip) == 0
    enough = chips.Chip("toy", 1, need.memory(2) / 0.9e9, 1, (1, 1), 1, ())
    assert plan.fitting_accum(need, enough) == 2
    many, few = (dataclasses.replace(need, images=size, chooses=False) for size in (1e15, 0.0))
    assert plan.fitting_accum(many.on(enough), enough) == 0
    streamed = dataclasses.replace(many, chooses=True)
    assert plan.fitting_accum(streamed.on(enough), enough) == plan.fitting_accum(few, enough) > 0


def test_weak_scaling_follows_from_links_and_parameters():
    class Step:
        parameters = 100_000_000

        def seconds(self, chip):
            return 0.004

    chip = chips.Chip("fast", 100, 16, 1.0, (200.0, 20.0), 1.0, ("fast",))
    assert plan_pods.exchange_seconds(Step(), chip, 1) == 0
    # 8 bytes for each parameter, of which each of 8 chips sends 7/8, at 200e9 bytes per second.
    assert plan_pods.exchange_seconds(Step(), chip, 8) == pytest.approx(0.0035)
    low, high = plan_pods.efficiency(Step(), chip, 8)
    assert low == pytest.approx(0.004 / 0.0075) and high == 1.0
    slow, hidden = plan_pods.efficiency(Step(), chip, 64)  # beyond a node the links are slower
    assert slow < hidden == pytest.approx(0.004 / (0.04 * 63 / 64))


def test_the_plan_a_user_sees(capfd):
    lines = plan.run(tiny.config("d2mae_thyroid"), "H100=2.5", num_images=1000)
    text = "\n".join(lines)
    assert all(chip.name in text for chip in chips.CHIPS)
    assert "1,000 images" in text and "here" in lines[-1]
    assert re.search(r"H100 .* 2\.50", text) and "GFLOP/s" in lines[-1]
    said = capfd.readouterr().err
    assert all(line in said for line in lines)


@pytest.mark.parametrize(
    "change,prices,words",
    [
        ({"name": "blur_search"}, "", "--plan is for training"),
        ({}, "H300=1", r"--prices.*H300.*H100"),
        ({}, "H100=cheap", "dollars per hour"),
    ],
)
def test_a_plan_says_what_is_wrong(change, prices, words):
    name = change.get("name", "quickstart")
    config = tiny.load(name)
    with pytest.raises((UserError, KeyError), match=words):
        plan.run(config, prices)


@pytest.mark.slow
def test_profile_says_where_the_time_goes(tmp_path, capfd):
    result = train.train_and_evaluate(tiny.config(optim__steps=12), tmp_path, profile=True)
    assert result.finished
    text = (tmp_path / "profile" / "summary.txt").read_text()
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    for part in ("encoder attention", "decoder MLP", "optimiser", "input and degradation"):
        assert part in text
    shares = [float(x) for x in re.findall(r"([\d.]+)%", text.split("by kind of work")[0])]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert text.splitlines()[0] in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 5])
def test_a_run_too_short_for_a_profile_says_so(tmp_path, capfd, steps):
    train.train_and_evaluate(tiny.config(optim__steps=steps), tmp_path, profile=True)
    assert "ended before --profile" in capfd.readouterr().err
    assert not (tmp_path / "profile" / "summary.txt").exists()


def test_flops_are_read_from_a_compiled_program():
    def two(a, b):
        return jnp.tanh(a @ b) @ b.T

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((24, 40), (40, 16))]
    text = jax.jit(two).lower(*shapes).compile().as_text()
    found = hlo.instructions(text).values()
    assert sum(i.flops for i in found) == 2 * (2 * 24 * 40 * 16)
    assert {i.kind for i in found if i.flops} == {"matrix products"}


@pytest.mark.parametrize(
    "scope,part",
    [
        ("jit(train_step)/jvp(input)/vmap()/dot", "input and degradation"),
        ("jit(train_step)/update/mul", "optimiser"),
        ("jit(train_step)/jvp(ViTMAE)/ViTMAE.encode/blocks_3/attn/qkv/dot", "encoder attention"),
        ("transpose(jvp(ViTMAE))/ViTMAE.decode/decoder_blocks_1/mlp/fc1/dot", "decoder MLP"),
        ("jvp(ViTMAE)/ViTMAE.decode/decoder_pred/dot", "embedding, gathers, prediction"),
        ("jit(train_step)/convert_element_type", "the rest"),
    ],
)
def test_parts_of_a_step(scope, part):
    assert profiling.part_of(hlo.Instruction("fusion", scope, set(), 0.0)) == part


def test_flops_of_the_products_of_a_library_are_read_too():
    """What XLA writes for a product that cuBLAS computes, here of 24 x 40 and 40 x 16."""
    dimensions = '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}'
    text = (
        "ENTRY %main.1 (a: bf16[24,40], b: bf16[40,16]) -> bf16[24,16] {\n"
        "  %a = bf16[24,40]{1,0} parameter(0)\n"
        "  %b = bf16[40,16]{1,0} parameter(1)\n"
        "  %product = (bf16[24,16]{1,0}, s8[64]{0}) custom-call(%a, %b), "
        'custom_call_target="__cublas$lt$matmul", metadata={op_name="mlp/fc1/dot_general"}, '
        f'backend_config={{"gemm_backend_config":{{{dimensions}}}}}\n'
        "}\n"
    )
    found = hlo.instructions(text)["product"]
    assert found.flops == 2 * 24 * 40 * 16 and found.kind == "matrix products"


def test_a_profile_of_a_gpu_launches_kernel_by_kernel():
    settings = {}
    tuning.profile_well(settings)
    assert settings == {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}
    for given in ("--a=b", "--xla_gpu_enable_command_buffer=FUSION"):
        settings = {"XLA_FLAGS": given}
        tuning.profile_well(settings)
        assert settings["XLA_FLAGS"].startswith(given) and settings["XLA_FLAGS"].count("command_buffer") == 1


@pytest.mark.parametrize("images", [12, 120])
def test_the_steps_of_a_plan_are_those_of_the_run(images):
    fields = {"optim__steps": 0, "optim__epochs": 2.5, "optim__warmup_epochs": 1.0, "optim__batch_size": 8}
    few = experiment.build(tiny.config(data__num_images=12, **fields))
    asked = experiment.build(tiny.config(data__num_images=images, **fields))
    assert plan.need(few, images).steps == pytest.approx(asked.total_steps, abs=1)


@pytest.mark.parametrize("gigabytes,timed", [(80.0, 8), (0.0007, 4), (0.0, 1)])
def test_a_batch_that_does_not_fit_a_chip_is_timed_in_part(monkeypatch, gigabytes, timed):
    run = experiment.build(tiny.config(optim__batch_size=8))
    chip = dataclasses.replace(chips.of_kind("NVIDIA H100"), gigabytes=gigabytes)
    monkeypatch.setattr(plan.chips, "of_kind", lambda _: chip)
    monkeypatch.setattr(plan.jax, "default_backend", lambda: "gpu")
    assert plan._timed_batch(run) == timed


def test_training_starts_without_what_it_does_not_need():
    heavy = [
        "sklearn",
        "pandas",
        "scipy.stats",
        "scipy.signal",
        "scipy.interpolate",
        "matplotlib",
        "statsmodels",
        "tensorflow",
        "torch",
    ]
    code = (
        "import sys, deblur_mae_jax.train, deblur_mae_jax.commands.run, deblur_mae_jax.data.phantoms\n"
        "from deblur_mae_jax import lookup\n"
        "lookup.modules_with('models', 'Model'), lookup.modules_with('tasks', 'KIND')\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tuning_leaves_the_users_settings_alone(monkeypatch):
    monkeypatch.setattr(tuning, "_has_huge_pages", lambda: True)
    assert set(tuning.environment({})) == {"GLIBC_TUNABLES", "XLA_PYTHON_CLIENT_MEM_FRACTION"}
    assert tuning.environment({"GLIBC_TUNABLES": "", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}) == {}


def test_tuning_starts_the_program_again_once(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys\n"
        "print('begins', os.getpid(), flush=True)\n"
        "from deblur_mae_jax.performance import tuning\n"
        "tuning.start_well()\n"
        "print('runs', os.getpid(), os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'], sys.argv[1:])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), "--flag", "a b"],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *begins, runs = done.stdout.splitlines()
    assert len(begins) == 1 + tuning._has_huge_pages()
    numbers = {line.split()[1] for line in [*begins, runs]}
    assert len(numbers) == 1 and runs.endswith("0.9 ['--flag', 'a b']")


def test_reading_an_image_does_not_look_at_the_whole_set():
    class Sizes(np.ndarray):
        looked = 0

        def max(self, *rest, **named):
            Sizes.looked += 1
            return super().max(*rest, **named)

    run = experiment.build(tiny.config())
    index = dataclasses.replace(run.index, sizes=run.index.sizes.view(Sizes))
    loader = Loader(index, 1)
    for number in range(12):
        loader.example(number)
    assert Sizes.looked == 1


def test_freed_memory_is_given_back_where_the_system_can(monkeypatch):
    asked = []
    monkeypatch.setattr(tuning.ctypes, "CDLL", lambda name: types.SimpleNamespace(malloc_trim=asked.append))
    tuning.give_back_memory()
    assert asked == [0]
    monkeypatch.setattr(tuning.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    tuning.give_back_memory()
    monkeypatch.undo()
    tuning.give_back_memory()
