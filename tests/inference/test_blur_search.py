"""The optimal blurriness search: what it finds, what it keeps, and its settings."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import ndimage
from tiny_runs import fine, go, pretraining, trained

import deblur_mae_jax as dm
from deblur_mae_jax import network as networks
from deblur_mae_jax.commands import search
from deblur_mae_jax.degradations import blur, parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import blur_search, search_cache
from deblur_mae_jax.input_pipeline import crop_resize
from deblur_mae_jax.pretrained import inherit, trained_network
from deblur_mae_jax.reports import predictions
from deblur_mae_jax.training import supervision


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["online(2)", "oracle"])
def test_settings_that_search_in_the_step(tmp_path, setting):
    result = go(tmp_path, search__setting=setting, optim__epochs=1.0, report__audit="identical")
    assert result.finished
    page = (tmp_path / "report" / "index.html").read_text()
    assert ("upper bound" in page) == (setting == "oracle")
    table = predictions.read(tmp_path / "predictions.csv")
    assert (table.level >= 1).all()


@pytest.mark.slow
def test_the_search_in_the_step_takes_the_level_of_the_smallest_error():
    config = tiny.resolved("d2mae_thyroid")
    net = networks.build(config)
    levels = blur_search.candidates(net.inputs.degradation.num_levels, 3)
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 1)).astype(np.uint8)
    examples = {"image": jnp.asarray(images), "size": jnp.full((5, 2), 24)}
    boxes = jax.vmap(crop_resize.random_resized_crop)(jax.random.split(jax.random.key(0), 5), examples["size"])
    params = jax.jit(net.init)()
    given = (params, examples, boxes, jnp.zeros(5, bool))
    error = np.asarray(blur_search.make_losses(net.model, net.inputs, levels, False)(*given))
    chosen = blur_search.make_choose_level(net.model, net.inputs, levels, False)(params)(*given[1:])
    assert error.std(axis=1).min() > 0  # the levels differ
    np.testing.assert_array_equal(chosen, np.asarray(levels)[error.argmin(axis=1)])


def test_levels_of_the_settings_that_search_nothing():
    degradation = parse.degradation("blur.gaussian_levels(max_sigma=1.1, step=0.1)")

    def levels(text, count=400):
        setting = blur_search.parse(text, degradation)
        return blur_search.assign(setting, degradation, count, 3, None)[0]

    assert set(levels("none")) == {1}
    assert set(levels("fixed(0.5)")) == {5} == set(levels("fixed(sigma=0.5)"))
    assert set(levels("random")) == set(range(1, 12))
    np.testing.assert_array_equal(levels("random"), levels("random"))
    assert levels("oracle") is None and levels("online(2)") is None


@pytest.mark.parametrize("changes", [{"task__norm_pix_loss": True}, {"model__num_heads": 2}])
def test_settings_that_change_the_errors_and_no_weight_have_their_own_cache(changes):
    one, other = trained("d2mae_thyroid"), trained("d2mae_thyroid", **changes)
    assert one.weights_hash == other.weights_hash
    levels = blur_search.candidates(11, 2)
    keys = [search_cache.cache_key(t.weights_hash, blur_search._spec(t, levels, 0.0)) for t in (one, other)]
    assert keys[0] != keys[1]
    again = trained("d2mae_thyroid")
    assert search_cache.cache_key(again.weights_hash, blur_search._spec(again, levels, 0.0)) == keys[0]


def test_a_high_pass_must_be_a_sigma():
    with pytest.raises(UserError, match=r"config\.search\.high_pass=-1 must be 0"):
        blur_search.check_high_pass(-1.0)


@pytest.mark.parametrize(
    ("step", "want"),
    [(1, list(range(1, 12))), (2, [1, 3, 5, 7, 9, 11]), (3, [1, 4, 7, 10]), (4, [1, 5, 9])],
)
def test_candidates(step, want):
    assert blur_search.candidates(11, step).tolist() == want


def test_the_smallest_level_wins_a_tie():
    table = blur_search.Table(
        ["a", "b"],
        np.array([1, 3, 5]),
        np.array([0.1, 0.3, 0.5]),
        np.array([[2, 1, 1], [1, 1, 1.0]]),
    )
    assert table.best.tolist() == [3, 1] and table.best_sigma.tolist() == [0.3, 0.1]


def test_a_search_is_what_the_network_says_and_is_kept(tmp_path):
    """Against the network applied image by image, level by level; and the second time from the cache."""
    from deblur_mae_jax import sharding
    from deblur_mae_jax.data import index as data_index
    from deblur_mae_jax.data import phantoms as source
    from deblur_mae_jax.input_pipeline.keys import stream_keys
    from deblur_mae_jax.models import masking

    trained = trained_network.load(pretraining())
    data = trained.config.data
    with data.ignore_type():
        data.num_images, data.phantom_seed = 7, 5
    index = data_index.build(source.source(data, 1))
    mesh = sharding.make_mesh()

    def search(folder=tmp_path, **kwargs):
        return blur_search.search(trained, index, mesh, step=5, batch_size=9, cache=str(folder), **kwargs)

    table = search()
    assert table.levels.tolist() == [1, 6, 11] and table.searched == 7
    network = trained.network
    kept = set(tmp_path.glob("*.csv"))
    sharp = search(high_pass=1.5)
    assert sharp.searched == 7  # the whole errors in the cache are not taken for these
    others = set(tmp_path.glob("*.csv")) - kept
    programs = dict(trained.programs)
    assert search(tmp_path / "again").searched == 7
    assert len(programs) == 2 and trained.programs == programs  # another search compiles nothing
    radius = blur.gaussian_radius(1.5, "opencv_float")
    apply = jax.jit(lambda x, level: network.model.apply({"params": trained.params}, x, None, 0.0, level)[0])
    for position in range(7):
        image = index.source.read(position)
        example = {"image": image[None], "size": np.array([image.shape[:2]], np.int32)}
        for column, level in enumerate(table.levels):
            batch = network.inputs.evaluate(example, stream_keys(0, 0, np.arange(1)), level=np.array([level], np.int32))
            pred = apply(batch["inputs"], batch["level"])
            goal = masking.patchify(batch["targets"], network.model.patch_size)
            want = float(np.square(pred - goal).mean())
            np.testing.assert_allclose(table.losses[position, column], want, rtol=1e-4)
            off = np.asarray(masking.unpatchify(pred - goal, network.model.patch_size, 1))[0, :, :, 0]
            off = off - ndimage.gaussian_filter(off, 1.5, radius=radius, mode="mirror")
            np.testing.assert_allclose(sharp.losses[position, column], float(np.square(off).mean()), rtol=1e-4)
    images = [index.source.read(i) for i in range(7)]
    found = dm.search_blur(trained, images, step=5, high_pass=1.5)
    np.testing.assert_allclose(found.losses, sharp.losses, rtol=1e-4)
    again = search()
    [file] = set(tmp_path.glob("*.csv")) - others
    assert again.searched == 0
    np.testing.assert_array_equal(again.losses, table.losses)
    rows = [line for line in file.read_text().splitlines() if line]
    assert len(rows) == 7
    file.write_text("\n".join(rows[:3]) + "\n" + rows[3][:40])  # killed in the middle of a line
    resumed = search()
    assert resumed.searched == 4
    np.testing.assert_allclose(resumed.losses, table.losses, rtol=1e-6)
    trained = trained.with_params(trained.params | {"cls_token": trained.params["cls_token"] + 1.0})
    assert search().searched == 7  # other weights


def test_a_hash_changes_with_any_weight_and_no_weight_can_change():
    trained = trained_network.load(pretraining())
    before = trained.weights_hash
    with pytest.raises(ValueError, match="read-only"):
        trained.params["cls_token"][...] = 1.0
    other = trained.params | {"cls_token": trained.params["cls_token"] + 1e-6}
    assert trained.with_params(other).weights_hash != before == trained.weights_hash


@pytest.mark.slow
def test_the_search_run(tmp_path):
    result = go(tmp_path / "a", "blur_search", search__cache=str(tmp_path / "cache"), data__num_images=9)
    assert result.table.searched == 9 and result.report.exists()
    with open(tmp_path / "a" / "blur_search.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and [int(r["level"]) for r in rows] == result.table.best.tolist()
    assert (tmp_path / "a" / "report" / "histogram.png").stat().st_size > 0


def test_a_level_must_mean_the_same_to_the_network_that_searches(tmp_path):
    other = "blur.gaussian_levels(max_sigma=1.1, step=0.1, kernel='opencv_float')"
    with pytest.raises(UserError, match="has other levels than the network"):
        go(tmp_path, task__degrade=other)
    with pytest.raises(UserError, match=r"is a run, and its network is used as it was trained: task.degrade"):
        go(tmp_path, "blur_search", task__degrade=other)


def test_a_network_that_returns_what_it_sees_is_not_searched(tmp_path):
    """A DiffMAE changes only masked patches: without any, every level would have the error 0, and the first be best."""
    levels = "blur.gaussian_levels(max_sigma=1.1, step=0.1)"
    file = tmp_path / "diffmae.safetensors"
    trained_network.save_file(file, trained("diffmae", task__degrade=levels, model__conditioning="token"))
    with pytest.raises(UserError, match="is a DiffMAE, which changes only masked patches"):
        go(tmp_path / "search", "blur_search", init_from=str(file))
    with pytest.raises(UserError, match=r"needs a pre-trained network that reconstructs whole images.*a DiffMAE"):
        go(tmp_path / "run", init_from=str(file), search__setting="search(2)")
    config, source, _ = inherit.resolve(tiny.config("finetune", **fine(init_from=str(file))))
    assert supervision._setting(config, networks.identify(config), source).kind == "none"


def test_a_cache_that_cannot_be_written_does_not_stop_a_search(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = search_cache.Cache(str(tmp_path / "file" / "inside"), "key", 2)
    cache.add(["a"], np.ones((1, 2), np.float32))
    cache.add(["b"], np.ones((1, 2), np.float32))
    assert set(cache.known) == {"a", "b"} and caplog.text.count("is not kept") == 1


@pytest.mark.slow
def test_a_network_without_levels_is_not_searched(tmp_path):
    mae = str(pretraining("mae_thyroid"))
    with pytest.raises(UserError, match="needs a degradation with levels"):
        go(tmp_path, init_from=mae, search__setting="search(2)")
    with pytest.raises(UserError, match="needs a degradation with levels"):
        go(tmp_path, "blur_search", init_from=mae)
    with pytest.raises(UserError, match=r"config\.init_from is not set: a blur search needs"):
        go(tmp_path, "blur_search", init_from="")
    config = tiny.config("finetune", **fine(init_from=mae))
    resolved, _, _ = inherit.resolve(config)
    assert resolved.task.degrade == "none" and resolved.model.conditioning == "none"


def test_an_image_that_vanishes_during_a_search_has_no_level(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.fromarray(rng.integers(0, 255, (20, 24), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    build = search.dataset.build_index

    def then_lost(*arguments, **options):
        index = build(*arguments, **options)
        (tmp_path / "images" / "0.png").unlink()  # the first of those that are drawn, too
        return index

    monkeypatch.setattr(search.dataset, "build_index", then_lost)
    config = tiny.config(
        "blur_search", init_from=str(pretraining()), data__name="image_folder", data__root=str(tmp_path / "images")
    )
    result = search.run(config, tmp_path / "run")
    assert result.table.names == [f"{number}.png" for number in range(1, 5)]
    with open(tmp_path / "run" / "blur_search.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == result.table.names and "nan" not in str(rows)
    assert "0.png,it could not be read any more during the search" in (tmp_path / "run" / "skipped.csv").read_text()
