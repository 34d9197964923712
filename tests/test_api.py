"""The Python interface: arrays in, arrays out."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tiny_volumes
from PIL import Image
from tiny_runs import classifier, pretraining, stirred

import deblur_mae_jax as dm
from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.data import decode
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit, trained_network
from deblur_mae_jax.reports import predictions

PHANTOMS = Phantoms(45, 1, 40)


def images(count=5):
    return [PHANTOMS.read(i)[:, :, 0] for i in range(count)]


def test_names():
    assert set(dm.__all__) <= set(dir(dm)) and all(callable(getattr(dm, name)) for name in dm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = dm.lode


def test_load_gives_model_parameters_and_info():
    model, params, info = dm.load(pretraining())
    assert model.embed_dim == 32 and params["cls_token"].shape == (1, 1, 32)
    assert info.config.task.degrade.startswith("blur.gaussian_levels") and info.classes == []
    trained = dm.load(classifier()[0])
    assert trained.info.classes == ["benign", "malignant"]
    assert trained.info.searcher is not None
    # On the device: an accelerator would otherwise get them again with every batch.
    assert all(isinstance(value, jax.Array) for value in jax.tree.leaves(trained.info.searcher.params))
    with pytest.raises(UserError, match="does not exist"):
        dm.load("/no/such/run")


def test_a_run_that_a_kill_left_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError):
        train.train_and_evaluate(tiny.config(data__store="disk"), tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        dm.load(tmp_path)


def test_every_form_of_image_gives_the_same():
    trained = dm.load(pretraining())
    gray = images(1)[0]
    forms = [
        gray, gray[None], gray[:, :, None], [gray], gray.astype(np.float32) / 255,
        np.repeat(gray[:, :, None], 3, axis=2), gray.astype(np.float64)[None, :, :, None] / 255,
    ]  # fmt: skip
    features = [dm.encode(trained, form, level=4) for form in forms]
    for found in features:
        assert found.shape == (1, 32)
        np.testing.assert_allclose(found, features[0], atol=1e-4)


def test_images_of_several_sizes_and_any_number():
    trained = dm.load(pretraining())
    mixed = [images(1)[0], images(2)[1][:30, :44], images(3)[2][:50]]
    together = dm.encode(trained, mixed, level=2, batch=2)
    alone = np.concatenate([dm.encode(trained, [x], level=2) for x in mixed])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    tokens = dm.encode(trained, mixed, level=[1, 2, 3], pool="none")
    assert tokens.shape == (3, 18, 32)
    cls = dm.encode(trained, mixed, level=[1, 2, 3], pool="cls")
    np.testing.assert_allclose(cls, tokens[:, 0], atol=1e-5)


def test_reconstruct():
    trained = dm.load(pretraining())
    out = dm.reconstruct(trained, images(3), mask_ratio=0.5, level=11)
    assert out["reconstructed"].shape == (3, 16, 16, 1) and out["mask"].sum(axis=1).tolist() == [
        8,
        8,
        8,
    ]
    assert (np.abs(out["clean"] - out["degraded"]).mean()) > 1
    weak = dm.reconstruct(trained, images(3), mask_ratio=0.0, level=1)
    assert np.abs(weak["clean"] - weak["degraded"]).mean() < 1 and not weak["mask"].any()


def test_search_is_the_smallest_error():
    trained = dm.load(pretraining())
    table = dm.search_blur(trained, images(4), step=5)
    assert table.losses.shape == (4, 3) and set(table.best) <= {1, 6, 11}
    np.testing.assert_array_equal(table.best, table.levels[table.losses.argmin(axis=1)])
    given = dm.encode(trained, images(4), level=dm.search_blur(trained, images(4)).best)
    np.testing.assert_allclose(dm.encode(trained, images(4)), given, atol=1e-6)


def test_predict_is_the_run():
    folder, _ = classifier()
    table = predictions.read(folder / "predictions.csv")
    pictures = [PHANTOMS.read(int(name.split("_")[1])) for name in table.names]
    got = dm.predict(dm.load(folder), pictures, batch=7)
    np.testing.assert_allclose(got, table.probabilities, atol=1e-5)


def test_degrade():
    pictures = np.stack([images(1)[0]] * 2)
    blurred = dm.degrade("blur.gaussian(sigma=1.1)")(pictures)
    direct = parse.degradation("blur.gaussian(sigma=1.1)")
    want = direct.apply(pictures[0].astype(np.float32)[:, :, None], direct.draw(None), None)
    np.testing.assert_allclose(blurred[0], want, atol=1e-4)
    levels = dm.degrade("blur.gaussian_levels(max_sigma=1.1)")
    assert np.abs(levels(pictures, level=11) - levels(pictures, level=1)).mean() > 1
    several = levels([pictures[0], pictures[0][:30]], level=[11, 1])
    np.testing.assert_allclose(several[0], levels(pictures[0], level=11)[0])
    assert several[1].shape == (30, pictures.shape[2], 1)
    noise = dm.degrade("noise.gaussian_noise(0.1)")
    mixed = [pictures[0][:30], pictures[1], pictures[1]]  # the draw belongs to the seed and the place
    np.testing.assert_array_equal(noise(mixed)[1], noise(np.stack([pictures[0]] * 3))[1])
    assert not np.array_equal(noise(mixed, seed=1)[1], noise(mixed)[2])
    np.testing.assert_array_equal(noise(pictures, seed=1), noise(pictures, seed=1))
    assert not np.array_equal(noise(pictures, seed=1), noise(pictures, seed=2))


def test_volumes_in_hounsfield_units_are_not_segmented():
    """They would be, wrongly: the network was trained on a window mapped to 0..1."""
    config = inherit.resolve(tiny_volumes.segmentation())[0]
    network = networks.build(config, 3)
    trained = trained_network.TrainedNetwork(Path("run"), config, network, {}, ["background", "a", "b"])
    for wrong, message in (
        ([np.full((40, 40, 40), -900.0)], "volume 0 holds values from -900 to -900; scale it as in training"),
        ([np.zeros((40, 40, 40), np.uint8)], "volume 0 is uint8; scale it"),
        (np.zeros((36, 33)), "have 3 axes|neither a volume"),
        ([], "there are none"),
        ("volume.nii.gz", "str is neither a volume"),
        (["volume.nii.gz"], "volume 0 is a str; expected an array"),
    ):
        with pytest.raises(UserError, match=message):
            dm.segment(trained, wrong)
    with pytest.raises(UserError, match="level=7, but networks for volumes have no levels"):
        dm.segment(trained, [np.zeros((40, 40, 40))], level=7)


class Given:
    """A segmenter that returns a label map of zeros for everything that it is given."""

    batch_size = 2

    def of_volume(self, members, volume):
        return np.zeros(volume.shape[:-1], np.uint8)

    def of_images(self, members, examples):
        return [np.zeros(tuple(example["size"]), np.uint8) for example in examples]


def segmenter(config):
    """A trained network whose segmenter is `Given`."""
    config = inherit.resolve(config)[0]
    trained = trained_network.TrainedNetwork(Path("run"), config, networks.build(config, 2), {}, ["background", "a"])
    trained.programs[f"segmenter {sorted(config.infer.to_dict().items())}"] = Given()
    return trained


def test_a_volume_with_an_axis_of_one_channel_is_one_volume():
    trained = segmenter(tiny_volumes.segmentation())
    assert [out.shape for out in dm.segment(trained, np.zeros((9, 8, 7, 1), np.float16))] == [(9, 8, 7)]


def test_images_to_segment_may_come_from_a_generator():
    trained = segmenter(tiny.load("segment_images"))
    pictures = (np.zeros((20 + i, 30), np.uint8) for i in range(3))
    assert [out.shape for out in dm.segment(trained, pictures)] == [(20, 30), (21, 30), (22, 30)]


def test_a_segmenter_is_prepared_for_the_whole_image():
    trained = dataclasses.replace(stirred("segment_images"), mask_values=[0, 255])
    picture = np.zeros((20, 60), np.uint8)
    picture[:, :6] = 255  # a central view of a wide image does not show its left border
    assert dm.prepare(trained, picture).max() > 1


def test_arrays_are_shrunk_as_files_are(tmp_path):
    trained = stirred("mae_thyroid", data__max_side=32)
    picture = np.random.default_rng(0).integers(0, 255, (60, 50), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    read = decode.Decoder(1, max_side=32)(tmp_path / "a.png")
    assert read.shape[0] == 32
    np.testing.assert_array_equal(dm.prepare(trained, picture), dm.prepare(trained, read))
    np.testing.assert_allclose(dm.prepare(trained, picture / 255.0), dm.prepare(trained, read), atol=0.02)


def test_what_a_file_of_others_does_not_record_can_be_said():
    path = tiny.ROOT / "tests" / "golden" / "mae_p8c1.safetensors"
    heads = dm.load(path).config.model.num_heads
    trained = dm.load(path, num_heads=2 * heads, degrade="blur.gaussian(sigma=1.1)")
    assert trained.model.num_heads == 2 * heads and trained.config.task.degrade == "blur.gaussian(sigma=1.1)"
    with pytest.raises(UserError, match=r"unknown name 'num_head'. Did you mean 'num_heads'"):
        dm.load(path, num_head=2)
    with pytest.raises(UserError, match="is a run, which records num_heads"):
        dm.load(pretraining(), num_heads=2)


def test_what_is_assumed_of_a_file_of_others_is_said(caplog):
    trained = dm.load(tiny.ROOT / "tests" / "golden" / "mae_p8c1.safetensors")
    assert trained.notes and all(note in caplog.text for note in trained.notes)


class OnAnotherDevice:
    """A tensor that does not become an array, as one of PyTorch on a GPU."""

    def __array__(self, *_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_a_picture_of_pillow_is_turned_as_its_file_is(tmp_path):
    from deblur_mae_jax.data.decode import Decoder
    from deblur_mae_jax.inference import arrays

    picture = Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "clear.png", transparency=7)
    for name in ("turned", "clear"):
        path = tmp_path / f"{name}.png"
        np.testing.assert_array_equal(arrays.as_list(Image.open(path))[0], Decoder()(path))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, c: dm.encode(t, np.zeros((2, 9, 9, 2))), r"image 0 has shape \(9, 9, 2\)"),
        (lambda t, c: dm.encode(t, []), "there are none"),
        (lambda t, c: dm.encode(t, np.full((9, 9), 300.0)), "float images must be in 0..1"),
        (lambda t, c: dm.encode(t, np.full((9, 9), np.nan)), "float images must be in 0..1"),
        (lambda t, c: dm.encode(t, np.zeros((9, 9), np.int64)), "expected uint8"),
        (lambda t, c: dm.encode(t, np.zeros((9, 9), np.uint16)), "stretches deep images to their own range"),
        (lambda t, c: dm.encode(t, np.full((9, 9), 1.001)), r"values from 1\.001 to 1\.001"),
        (lambda t, c: dm.encode(t, ["a.png"]), "image 0 is the path 'a.png'"),
        (lambda t, c: dm.encode(t, images(1), level=12), "level=12 must be in 1..11"),
        (lambda t, c: dm.encode(t, images(1), pool="max"), "Choices: mean, cls, none"),
        (lambda t, c: dm.reconstruct(t, images(1), mask_ratio=1.0), "mask_ratio=1.0"),
        (lambda t, c: dm.reconstruct(c, images(1)), "has no decoder; load a pre-training run"),
        (lambda t, c: dm.predict(t, images(1)), "is not a classifier"),
        (lambda t, c: dm.search_blur(t, images(1), step=40), "step=40 must be a whole number in 1..11"),
        (lambda t, c: dm.search_blur(t, images(1), step=2.5), "step=2.5 must be a whole number"),
        (lambda t, c: dm.encode(t, np.zeros((9, 8, 4), np.uint8)), r"\(9, 8, 4\) looks like one image with 4 channels"),
        (lambda t, c: dm.encode(t, Image.new("P", (9, 9))), "image 0 has Pillow's mode P; convert it"),
        (lambda t, c: dm.encode(t, Image.new("I;16", (9, 9))), "mode I;16, which 'L' would cut off at 255; pass x ="),
        (lambda t, c: dm.encode(t, "images/a.png"), "a str is no image; expected an array"),
        (lambda t, c: dm.encode(t, {"a": images(1)}), "a dict is no image"),
        (lambda t, c: dm.encode(t, np.float32(5)), r"an array of shape \(\) is no image"),
        (lambda t, c: dm.encode(t, np.zeros((9, 9), bool)), "Black and white: image.astype"),
        (lambda t, c: dm.encode(t, OnAnotherDevice()), r"cannot be an array .*image.detach\(\).cpu\(\).numpy\(\)"),
        (lambda t, c: dm.encode(t, [*images(1), Image.new("RGBA", (9, 9))]), "image 1 has Pillow's mode RGBA"),
        (lambda t, c: dm.encode(t, images(3), level=[1, 2]), r"level has shape \(2,\); .*each of the 3 images"),
        (lambda t, c: dm.encode(t, images(1), level=2.7), "level=2.7 must be whole numbers"),
        (lambda t, c: dm.encode(t, images(1), batch=0), "batch=0 must be a whole number"),
        (lambda t, c: dm.degrade("blur.gaussian_levels()")(images(1), level=0), "level=0 must be in 1..11"),
        (lambda t, c: dm.reconstruct(stirred("mae_thyroid"), images(1), level=7), "level=7: the network was trained"),
        (lambda t, c: dm.encode(stirred("convmae"), images(1), pool="cls"), "no class token. Choices: mean, none"),
        (lambda t, c: dm.degrade("blur.gausian(1.1)"), "blur.gaussian"),
        (lambda t, c: dm.degrade("none")(images(1), level=2), "has no levels"),
    ],
)  # fmt: skip
def test_bad_calls_are_one_clear_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(dm.load(pretraining()), dm.load(classifier()[0]))
    assert "\n" not in str(caught.value)
