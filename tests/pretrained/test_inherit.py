"""From a pre-trained network to a judged classifier, end to end on phantoms."""

import csv
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import tiny
from flax import traverse_util
from tiny_runs import classifier, fine, go, lines, pretraining

import deblur_mae_jax as dm
from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.commands import predict
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.pretrained import inherit, trained_network, warm_start
from deblur_mae_jax.reports import predictions
from deblur_mae_jax.training import checks, supervision

ROOT = tiny.ROOT


TRANSFER = [
    name
    for name in tiny.CONFIGS
    if tiny.identity(name).axes == 2
    and tiny.identity(name).kind in ("classify", "")
    and tiny.load(name).model.name not in tiny.OTHERS
]


def test_what_a_finished_classifier_leaves():
    folder, result = classifier()
    assert result.finished and np.isfinite(list(lines(folder, "loss").values())).all()
    for name in ("predictions.csv", "metrics.json", "leakage.csv", "blur_search.csv",
                 "report/index.html", "report/figures.png", "pretrained/weights.safetensors"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    page = (folder / "report" / "index.html").read_text()
    assert 'src="http' not in page and "href=" not in page  # opens offline
    for part in (
        "Balanced accuracy",
        "Confusion".lower(),
        "Most confident mistakes",
        "Leakage",
        "found none",
    ):
        assert part in page, part
    record = json.loads((folder / "dataset.json").read_text())
    assert record["class_names"] == ["benign", "malignant"]


def test_every_number_follows_from_the_table():
    folder, _ = classifier()
    numbers = json.loads((folder / "metrics.json").read_text())
    again = predictions.summarise(predictions.read(folder / "predictions.csv"))
    for key, value in again.items():
        assert numbers[key] == json.loads(json.dumps(value)), key
    assert numbers["judged_on"] == "test" and "temperature" in numbers
    table = predictions.read(folder / "predictions.csv")
    assert set(table.split) == {"val", "test"} and (table.level >= 1).all()
    patients = {s: set(part.patients) for s, part in table.of_split.items()}
    assert not patients["val"] & patients["test"]


@pytest.mark.slow
def test_the_degradation_and_the_sizes_are_inherited_and_said():
    folder, _ = classifier()
    config = trained_network.read_config(folder)
    before = trained_network.read_config(pretraining())
    for name in fields.INHERITED_BY_IMAGES:
        assert fields.flat(config)[name] == fields.flat(before)[name], name
    _, _, said = inherit.resolve(tiny.config("finetune", **fine()))
    assert "task.degrade=blur.gaussian_levels" in said[0] and len(said) == 1
    _, _, said = inherit.resolve(tiny.config("finetune", **fine(task__degrade="none")))
    never, _, _ = inherit.resolve(tiny.config("finetune", **fine(data__max_side=0)))
    assert never.data.max_side == 0 and never.data.bits16 == "minmax"
    assert said[1].startswith("overridden: task.degrade=none (the checkpoint has blur.gaussian_levels")


def test_a_probe_applies_what_is_stated_of_a_weight_file_and_changes_no_run(tmp_path):
    """It uses the network as it is, so that a value that it does not apply must not be printed as overridden."""
    with pytest.raises(UserError, match=r"is a run, and its network is used as it was trained: data.mean=\[0.05\]"):
        inherit.resolve(tiny.config("knn_probe", init_from=str(pretraining()), data__mean=(0.05,)))
    file = tmp_path / "weights.safetensors"
    trained_network.save_file(file, trained_network.load(pretraining()))
    config = tiny.config("knn_probe", init_from=str(file), data__mean=(0.05,), task__blur_site="native")
    _, source, _ = inherit.resolve(config)
    assert tuple(source.config.data.mean) == (0.05,) and source.config.task.blur_site == "native"
    assert source.network.inputs.mean == (0.05,)


@pytest.mark.parametrize(
    "wrong", [{"optim__schedule": "cosin"}, {"optim__name": "sgd"}, {"model__pool": "max"}, {"data__store": "disk"}]
)
def test_mistakes_are_found_before_any_image_is_read(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(supervision, "prepare", lambda *_: pytest.fail("images are read"))
    with pytest.raises(UserError, match=r"config\.") as found:
        go(tmp_path, **wrong)
    assert str(next(iter(wrong.values()))) in str(found.value)


def test_weights_of_other_heads_are_refused_and_another_normalisation_is_said():
    source = trained_network.load(pretraining())
    config = fields.copy(source.config, {"model.num_heads": 2 if source.network.model.num_heads != 2 else 4})
    other = networks.build(config)
    shapes = jax.eval_shape(other.init)
    with pytest.raises(UserError, match=r"attention heads, and this network .* Set config.model.num_heads="):
        warm_start.fit(source, shapes, other)
    assert warm_start.fit(source, shapes, other, strict=False).params
    darker = networks.build(fields.copy(source.config, {"data.mean": (0.05,), "data.std": (0.9,)}))
    rows = dict(warm_start.fit(source, shapes, darker).rows)
    assert rows["normalised"].startswith("differently: the weights saw")
    assert "normalised" not in dict(warm_start.fit(source, shapes, source.network).rows)


def test_a_gray_target_can_be_chosen_in_a_run_that_inherits():
    config, _, said = inherit.resolve(tiny.config("finetune", **fine(data__gray_target=True)))
    assert config.data.gray_target is True
    assert any("data.gray_target=True (the checkpoint has False)" in line for line in said), said
    kept_from_before, _, _ = inherit.resolve(tiny.config("finetune", **fine()))
    assert kept_from_before.data.gray_target is False


def test_prediction_of_a_folder_gives_what_the_run_gave(tmp_path):
    from PIL import Image

    from deblur_mae_jax.data.phantoms import Phantoms

    folder, _ = classifier()
    table = predictions.read(folder / "predictions.csv")
    test = table.where(table.split == "test")
    phantoms = Phantoms(45, 1, 40)
    images = tmp_path / "images"
    images.mkdir()
    for name in test.names:
        pixels = phantoms.read(int(name.split("_")[1]))[:, :, 0]
        Image.fromarray(pixels).save(images / f"{name}.png")
    (images / "broken.png").write_bytes(b"junk")
    moved = tmp_path / "moved"  # the classifier needs nothing outside its own folder
    shutil.copytree(folder, moved)
    path = predict.run(moved, str(images), str(tmp_path / "out.csv"))
    new = predictions.read(path)
    assert [n.removesuffix(".png") for n in new.names] == sorted(test.names)
    at = np.argsort(test.names)
    np.testing.assert_allclose(new.probabilities, test.probabilities[at], atol=1e-5)
    np.testing.assert_array_equal(new.level, test.level[at])
    with open(tmp_path / "out_skipped.csv") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["broken.png"]
    with pytest.raises(UserError, match="is not a classifier"):
        predict.run(pretraining(), str(tmp_path))
    with pytest.raises(UserError, match=r"must be a file that ends in \.csv"):
        predict.run(moved, str(tmp_path), str(tmp_path / "out.txt"))


def test_a_resumed_classifier_ends_with_the_same_weights_and_predictions(tmp_path):
    folder, whole = classifier()
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    steps = sorted(int(p.name[5:]) for p in (copy / "checkpoints").glob("step_*"))
    assert len(steps) == 2
    shutil.rmtree(copy / "checkpoints" / f"step_{steps[-1]}")
    for best in copy.glob("best_*"):  # as after a kill: later weights may be there, or none
        shutil.rmtree(best)
    (copy / "result.json").unlink()
    (copy / "predictions.csv").unlink()
    notes = json.loads((copy / "checkpoints" / f"step_{steps[0]}" / "notes" / "metadata").read_text())
    if notes["best"] is not None:  # the best so far was kept when the checkpoint was written
        shutil.copytree(folder / f"best_{notes['best']['step']}", copy / f"best_{notes['best']['step']}")
    again = go(copy)
    assert again.params_fingerprint == whole.params_fingerprint
    assert (copy / "predictions.csv").read_text() == (folder / "predictions.csv").read_text()


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(tmp_path):
    """Also for mixing, whose partners lie on other devices."""
    import subprocess

    folder, _ = classifier()
    config = tiny.config("finetune", **fine())
    flags = [f"--config.{k}={v}" for k, v in tiny.changed("finetune", **fine()).items()]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--config=configs/finetune.py", *flags,
         f"--workdir={tmp_path}"],
        env=tiny.simulated(4), cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, four = lines(folder, "loss"), lines(tmp_path, "loss")
    assert len(one) == len(four) >= 4
    np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=2e-5)
    ours, theirs = (predictions.read(f / "predictions.csv") for f in (folder, tmp_path))
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
    assert config.optim.batch_size == 8


@pytest.mark.slow
def test_two_processes_fine_tune_like_one(tmp_path):
    """The copy of the source, the search, and the evaluation are shared work."""
    import socket
    import subprocess

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    values = tiny.changed("finetune", **fine(search__cache=str(tmp_path / "cache")))
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "--config=configs/finetune.py", *flags,
             f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{port}", "--num_processes=2",
             f"--process_id={number}"],
            env=tiny.simulated(2), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    folder, _ = classifier()
    one, two = lines(folder, "loss"), lines(tmp_path / "run", "loss")
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=2e-5)
    ours, theirs = (predictions.read(f / "predictions.csv") for f in (folder, tmp_path / "run"))
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-4)


@pytest.mark.parametrize("kind", ["knn", "logistic"])
def test_probes_of_frozen_features(tmp_path, kind):
    numbers = go(tmp_path, "knn_probe", probe__kind=kind)
    assert numbers["judged_on"] == "test"
    again = predictions.summarise(predictions.read(tmp_path / "predictions.csv"))
    assert again["splits"]["test"] == numbers["splits"]["test"]
    assert (tmp_path / "report" / "index.html").exists()


def test_a_linear_probe_moves_the_head_and_its_statistics_only(tmp_path):
    result = go(tmp_path, "linear_probe", optim__epochs=2.0, optim__warmup_epochs=0.5)
    start = trained_network.load(pretraining()).params
    np.testing.assert_array_equal(
        result.params["blocks_0"]["attn"]["qkv"]["kernel"],
        start["blocks_0"]["attn"]["qkv"]["kernel"],
    )
    assert float(np.abs(result.params["head_0"]["running_mean"]).max()) > 0
    assert float(np.abs(result.params["head_1"]["bias"]).max()) > 0


@pytest.mark.parametrize("store", tiny.others_slow(["resident", "streaming"], "resident"))
def test_a_linear_probe_on_cached_features_is_that_of_the_network(tmp_path, store):
    """The whole network, with the trained head, predicts from the images what the run predicted from the features."""
    result = go(
        tmp_path, "linear_probe", task__cache_features=True, data__store=store, optim__epochs=4.0,
        optim__warmup_epochs=0.5,
    )  # fmt: skip
    start = trained_network.load(pretraining()).params
    np.testing.assert_array_equal(
        result.params["blocks_0"]["attn"]["qkv"]["kernel"], start["blocks_0"]["attn"]["qkv"]["kernel"]
    )
    assert float(np.abs(result.params["head_0"]["running_mean"]).max()) > 0
    assert float(np.abs(result.params["head_1"]["bias"]).max()) > 0
    table = predictions.read(tmp_path / "predictions.csv")
    trained = dm.load(tmp_path)
    config = trained.info.config
    index, _ = supervision.divided(config, networks.identify(config))
    numbers = [index.source.names.index(name) for name in table.names]
    levels = None if (table.level == 0).all() else table.level.astype(int)
    p = dm.predict(trained, [index.source.read(i)[..., 0] for i in numbers], level=levels)
    np.testing.assert_allclose(np.asarray(p), table.probabilities, atol=2e-5)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Most confident mistakes" in page or "mistake" in page


@pytest.mark.parametrize("network", tiny.others_slow(fields.PROBED, "vit"))
def test_features_given_to_any_network_are_those_it_would_compute(network):
    net = networks.build(inherit.resolve(tiny.config(f"linear_probe:{network}"))[0], 2)
    params = jax.jit(net.init)()
    images = np.random.default_rng(0).standard_normal((2, *net.inputs.out, 1)).astype(np.float32)
    features = net.model.apply({"params": params}, images, method=net.model.features)
    want, _ = net.model.apply({"params": params}, images)
    got, _ = net.model.apply({"params": params}, images, encoded=features)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    "network", tiny.others_slow([name for name in fields.PROBED if name != "vit"], "resnet", "swin")
)
def test_a_linear_probe_of_any_network_moves_the_head_only(network):
    config = tiny.config(f"linear_probe:{network}")
    net = networks.build(inherit.resolve(config)[0], 2)
    params = jax.jit(net.init)()
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.standard_normal((2, *net.inputs.out, 1)).astype(np.float32), "label": np.array([0, 1])}
    keys = stream_keys(0, 0, np.arange(2))
    loss = lambda params: net.task.loss(params, batch, keys)[0].mean()
    grads = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    moved = {name for name, grad in grads.items() if np.abs(grad).max() > 0}
    assert moved and all(net.task.trains(name) and name.startswith(net.rules.heads) for name in moved)


@pytest.mark.parametrize("name", TRANSFER)
def test_every_transfer_config_can_be_built(name):
    config = tiny.config(name, init_from=str(pretraining()))
    resolved, source, _ = inherit.resolve(config)
    assert source is not None
    if config.task.name == "classify":
        checks.check(resolved)
        network = networks.build(resolved, 2)
        shapes = jax.eval_shape(network.init)
        found = warm_start.fit(source, shapes, network)
        taken, new = found.params, found.new
        assert set(new) <= {"head", "head_0", "head_1", "fc_norm"} and taken["blocks_0"]


@pytest.mark.slow
def test_from_scratch_and_best_weights_with_patience(tmp_path):
    config = tiny.config(
        "from_scratch", data__phantom_seed=1, optim__epochs=30.0, select__patience_epochs=2.0,
        optim__base_lr=1e-9, optim__min_lr=0.0, select__metric="accuracy",
    )  # fmt: skip
    result = train.train_and_evaluate(config, tmp_path)
    assert result.finished and result.step < 30  # nothing is learnt, so it stops early
    [best] = tmp_path.glob("best_*")
    assert best.name == f"best_{json.loads((tmp_path / 'metrics.json').read_text())['best_step']}"
    again = train.train_and_evaluate(config, tmp_path)
    assert again.step == result.step and again.params_fingerprint == result.params_fingerprint


@pytest.mark.slow
def test_a_classifier_that_is_trained_on_may_be_best_as_it_was(tmp_path):
    go(tmp_path, init_from=str(classifier()[0]), optim__base_lr=1e-12, optim__min_lr=0.0)
    assert json.loads((tmp_path / "metrics.json").read_text())["best_step"] == 0


@pytest.mark.slow
def test_what_failed_before_it_began_does_not_hold_its_workdir(tmp_path):
    with pytest.raises(UserError, match="patch_size=3"):
        go(tmp_path, model__patch_size=3)
    with pytest.raises(UserError, match="the weights do not fit"):
        go(tmp_path, model__depth=2)
    assert go(tmp_path, optim__epochs=1.0).finished
    with pytest.raises(UserError, match="belongs to a run with another config"):
        go(tmp_path, optim__epochs=2.0)


def test_without_a_source_it_says_that_it_starts_from_scratch():
    _, source, said = inherit.resolve(tiny.config("finetune"))
    assert (
        source is None and "config.init_from is not set, so this starts without pre-training: vit (variant=B" in said[0]
    )


def test_a_frozen_network_without_a_source_is_said_to_be_random():
    assert "the features of a random network" in inherit.resolve(tiny.config("linear_probe"))[2][0]


def test_the_published_recipe_is_a_config():
    repo = fields.finetuning("repo")
    assert repo.optim.schedule == "constant" and repo.optim.weight_decay == 0.01
    assert repo.task.mixup == 0 and repo.optim.layer_decay == 1.0
    with pytest.raises(UserError, match=r"'mine'.*Choices: paper, upstream"):
        fields.finetuning("mine")


@pytest.mark.slow
def test_a_classifier_from_a_classifier(tmp_path):
    """It has no network to search with, says so, keeps no head of other classes, and predicts."""
    import deblur_mae_jax as dm
    from deblur_mae_jax.data.phantoms import Phantoms

    folder, _ = classifier()
    go(tmp_path, init_from=str(folder), optim__epochs=1.0)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "the network of config.init_from cannot search" in page
    assert dm.predict(dm.load(tmp_path), Phantoms(2, 1, 40).read(0)).shape == (1, 2)
    source = trained_network.load(folder)
    network = source.network
    shapes = jax.eval_shape(network.init)
    same = warm_start.fit(source, shapes, network, True, ["benign", "malignant"]).new
    other = warm_start.fit(source, shapes, network, True, ["no", "yes"]).new
    assert same == [] and other == ["head"]


def test_features_of_a_classifier_follow_its_setting(tmp_path):
    import deblur_mae_jax as dm

    folder, _ = classifier()
    trained = dm.load(folder)
    with trained.info.config.unlocked():
        trained.info.config.search.setting = "fixed(0.6)"
    pictures = [np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8) for i in range(4)]
    np.testing.assert_array_equal(dm.encode(trained, pictures), dm.encode(trained, pictures, level=3))


def test_a_probe_gives_classes_that_it_has_not_seen_no_chance():
    from sklearn.linear_model import LogisticRegression

    from deblur_mae_jax.metrics import probes

    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.array([0, 2] * 15)
    p = probes.probabilities(LogisticRegression().fit(x, y), x, 4)
    assert p.shape == (30, 4) and (p[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_crops_of_a_linear_probe_are_cut_not_drawn_again():
    from deblur_mae_jax.input_pipeline import crop_resize

    keys = jax.random.split(jax.random.key(0), 500)
    size = np.array([30, 200], np.int32)

    def crop(rejection):
        return jax.vmap(lambda k: crop_resize.random_resized_crop(k, size, (0.08, 1.0), rejection=rejection))(keys)

    cut, drawn = crop(False), crop(True)
    for box in (cut, drawn):
        assert (box.height <= 30).all() and (box.width <= 200).all() and (box.top >= 0).all()
    assert (cut.height == 30).mean() > (drawn.height == 30).mean() + 0.1


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"init_from": "/no/such/run"}, ["config.init_from: '/no/such/run' does not exist"]),
        ({"search__setting": "always"}, ["search.setting='always'", "search(step)"]),
        ({"search__setting": "search(0)"}, ["search(0)", "1 to 11"]),
        ({"search__setting": "fixed(0.33)"}, ["no level has sigma 0.33", "0.2, 0.4"]),
        ({"data__balance": "magic"}, ["data.balance", "sampling"]),
        ({"select__metric": "goodness"}, ["select.metric", "f1_macro"]),
        ({"model__pool": "max"}, ["model.pool", "mean"]),
        ({"task__cache_features": True}, ["task.cache_features=True", "task.frozen=True", "linear_probe.py"]),
        ({"task__cache_features": True, "task__frozen": True, "task__mixup": 0.8}, ["task.mixup=0.8", "Choices: 0"]),
        (
            {
                "task__cache_features": True,
                "task__frozen": True,
                "task__mixup": 0.0,
                "task__cutmix": 0.0,
                "search__setting": "oracle",
            },
            ["search.setting=oracle", "fixed(sigma)"],
        ),
        (
            {
                "task__cache_features": True,
                "task__frozen": True,
                "task__mixup": 0.0,
                "task__cutmix": 0.0,
                "augment__rand_augment": "",
                "augment__erase_probability": 0.25,
            },
            ["augment.erase_probability=0.25", "Use 0"],
        ),
        (
            {
                "task__cache_features": True,
                "task__frozen": True,
                "task__mixup": 0.0,
                "task__cutmix": 0.0,
                "augment__rand_augment": "",
                "augment__erase_probability": 0.0,
                "init_from": "denoising_mae_thyroid",
            },
            ["task.degrade=noise.gaussian_noise", "draws another degradation"],
        ),
        ({"model__embed_dim": 64}, ["do not fit the network", "other shape", "None of the weights fits"]),
        ({"model__depth": 2}, ["missing blocks_1", "init_strict=False"]),
        ({"task__mixup": -1.0}, ["task.mixup=-1.0"]),
        ({"augment__rand_augment": "rand-q1"}, ["augment.rand_augment='rand-q1'"]),
        ({"optim__name": "sgd"}, ["optim.name", "adamw", "lars"]),
    ],
)
def test_bad_transfer_settings_are_one_clear_line(tmp_path, overrides, parts):
    if overrides.get("init_from") in tiny.CONFIGS:
        overrides = overrides | {"init_from": str(pretraining(overrides["init_from"]))}
    with pytest.raises(UserError) as caught:
        go(tmp_path, **overrides)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_what_does_not_fit_can_be_left_out():
    source = trained_network.load(pretraining())
    config, _, _ = inherit.resolve(tiny.config("finetune", **fine(model__depth=2)))
    network = networks.build(config, 2)
    found = warm_start.fit(source, jax.eval_shape(network.init), network, strict=False)
    taken, new = found.params, found.new
    assert "blocks_0" in taken and "blocks_1" in new


def test_another_image_size_resizes_the_positions():
    from deblur_mae_jax.models import position

    source = trained_network.load(pretraining())
    config, _, lines = inherit.resolve(tiny.config("finetune", **fine(image_size=24)))
    assert "image_size=24 (the checkpoint has 16)" in lines[1]
    network = networks.build(config, 2)
    taken = warm_start.fit(source, jax.eval_shape(network.init), network).params
    want = position.resize_table(position.sincos_2d(32, 4, 2)[None], 4, 6, 2)
    np.testing.assert_array_equal(taken["pos_embed"], want)


def test_weights_travel_in_one_file(tmp_path):
    source = trained_network.load(pretraining())
    trained_network.save_file(tmp_path / "weights.safetensors", source)
    again = trained_network.load(tmp_path / "weights.safetensors")
    assert again.weights_hash == source.weights_hash
    assert again.config.task.degrade == source.config.task.degrade
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read"):
        trained_network.load(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        trained_network.load(tmp_path)


def test_a_network_of_which_nothing_fits_is_refused_also_without_strictness(tmp_path):
    with pytest.raises(UserError, match=r"no weight of .*, a vit_mae, fits this network .*it would start from scratch"):
        go(tmp_path, "resnet:50", init_from=str(pretraining("mae_thyroid")), init_strict=False)
