"""Swin-UNETRs through the PyTorch bridge: exports opened by MONAI, imports of its layouts, losses and measures."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_volumes
from tiny_volumes import config_of, cube, save

from deblur_mae_jax import network
from deblur_mae_jax.commands import predict
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.export import export
from deblur_mae_jax.pretrained import inherit, trained_network
from deblur_mae_jax.weight_formats import names
from deblur_mae_jax.weight_formats.torch_calls import modeling

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai", reason="pip install deblur_mae_jax[pytorch] (make test-pytorch)")
STOCK = {"model__patch_embed": "conv", "model__normalize": True}


def random_run(**overrides):
    config = config_of(**overrides)
    net = network.build(config)
    params = jax.tree.map(np.asarray, jax.jit(net.init)())
    return trained_network.TrainedNetwork(Path("somewhere"), config, net, params, [])


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    ("format", "overrides"),
    [
        ("dae", {}),
        ("monai", STOCK | {"model__merge_order": "monai15"}),
        ("monai", STOCK | {"model__merge_order": "legacy"}),
        ("monai", STOCK | {"model__normalize": False, "model__merge_order": "v2"}),
    ],
)
def test_an_export_agrees_with_monai_and_comes_back(tmp_path, format, overrides):
    trained = random_run(**overrides)
    folder = export.export(trained, format, tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    outputs = certificate["agreement"]["outputs"]
    assert len(outputs) == 6 and all(o["max_difference"] < 1e-5 for o in outputs.values()), outputs
    card = (folder / "README.md").read_text()
    assert "largest difference" in card and trained.config.model.merge_order in card
    assert str(tmp_path) not in json.dumps(certificate)
    back = trained_network.load(folder / certificate["file"]["name"])
    assert equal(back.params, trained.params)
    assert back.config.model.merge_order == trained.config.model.merge_order
    module = modeling(folder / "modeling_swin.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert module.load(folder)(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 1, 64, 64, 64)


@pytest.mark.parametrize("format", ["dae", "monai"])
def test_a_trained_segmentation_of_volumes_is_exported(tmp_path, format):
    config = inherit.resolve(tiny_volumes.segmentation(**(STOCK if format == "monai" else {})))[0]
    config.infer.overlap, config.infer.flips = 0.7, True
    net = network.build(config, 2)
    params = jax.tree.map(np.asarray, jax.jit(net.init)())
    trained = trained_network.TrainedNetwork(Path("somewhere"), config, net, params, ["background", "organ"], [0, 1])
    folder = export.export(trained, format, tmp_path / "out")
    certificate = json.loads((folder / "certificate.json").read_text())
    assert not certificate["searcher"] and certificate["network"]["classes"] == ["background", "organ"]
    assert certificate["preprocessing"]["infer"]["overlap"] == 0.7
    card = (folder / "README.md").read_text()
    assert "sliding window, overlap 0.7, weights gaussian" in card and "8 flipped views" in card


def test_the_snippet_of_the_card_runs(tmp_path, monkeypatch):
    folder = export.export(random_run(**STOCK, model__merge_order="legacy"), "monai", tmp_path / "out")
    text = (folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, scope)
    assert type(scope["model"]).__name__ == "SwinUNETR"


def test_foreign_files_are_recognised(tmp_path):
    """MONAI's whole network, a self-supervised encoder as MONAI saves it, and DAE's checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import SwinUNETR

        model = SwinUNETR(1, 14, feature_size=12)
    state = model.state_dict()
    torch.save({"state_dict": state}, tmp_path / "monai.pt")
    found = trained_network.load(tmp_path / "monai.pt")
    assert len(found.classes) == 14 and found.config.model.variant == "12"
    assert any("merge_order=monai15" in note for note in found.notes)
    save(tmp_path / "in" / "a.nii.gz", np.abs(cube(shape=(12, 14, 10))))
    out = predict.run(tmp_path / "monai.pt", f"{tmp_path / 'in'}=mr", tmp_path / "out", "batch_size=1")
    assert (out / "in" / "a.nii.gz").exists()
    ssl = {
        "module." + k.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc"): v
        for k, v in state.items() if k.startswith("swinViT.")
    }  # fmt: skip
    ssl["module.rotation_head.weight"] = torch.zeros(4, 192)
    torch.save({"state_dict": ssl}, tmp_path / "ssl.pt")
    encoder = trained_network.load(tmp_path / "ssl.pt")
    assert set(encoder.params) == {"swinViT"} and equal(encoder.params["swinViT"], found.params["swinViT"])
    dae = random_run()
    file = export.export(dae, "dae", tmp_path / "dae" / "dae.pth") / "dae.pth"
    own = trained_network.load(file)  # certificate.json beside it has the whole config
    assert own.format == "" and own.model == dae.model and equal(own.params, dae.params)
    (file.parent / "certificate.json").unlink()
    back = trained_network.load(file)
    assert back.format == "dae" and not back.notes and equal(back.params, dae.params)
    assert back.config.model.merge_order == "legacy" and not back.config.model.normalize


@pytest.mark.parametrize(
    ("format", "overrides", "parts"),
    [
        ("monai", {}, ["patch_embed=unet_basic", "Choices: dae"]),
        ("timm", {}, ["for volumes", "dae, monai"]),
        ("dae", {"model__skip_input": "none"}, ["skip_input=none"]),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, format, overrides, parts):
    with pytest.raises(UserError) as caught:
        export.export(random_run(**overrides), format, tmp_path / "out")
    assert all(part in str(caught.value) for part in parts), caught.value


def test_the_heads_of_the_self_supervised_network_see_what_monais_encoder_returns():
    """MONAI's encoder normalises the hidden states that it returns, and keeps them as they are inside."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    config = config_of("swin_ssl_ct_mr", model__merge_order="monai15", image_size=64)
    net = network.build(config)
    params = jax.device_get(jax.jit(net.init)())
    state = names.state_dict_from_params(params)
    size = net.model.feature_size
    theirs = SwinTransformer(
        in_chans=1, embed_dim=size, window_size=(7, 7, 7), patch_size=(2, 2, 2), depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24), norm_layer=torch.nn.LayerNorm, spatial_dims=3,
    ).eval()  # fmt: skip
    own = {k.removeprefix("swinViT."): torch.tensor(v) for k, v in state.items() if k.startswith("swinViT.")}
    lacking, unknown = theirs.load_state_dict(own, strict=False)
    assert not unknown and all(name.endswith("relative_position_index") for name in lacking), (lacking, unknown)
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 64, 1)).astype(np.float32)
    _, out = jax.jit(lambda p: net.model.apply({"params": p}, x))(params)
    with torch.no_grad():
        last = theirs(torch.tensor(x.transpose(0, 4, 1, 2, 3)))[4]
        tokens = last.flatten(2).transpose(1, 2).numpy()
    for name, token in (("rotation", 0), ("embedding", 1)):
        head = {"rotation": "rotation_head", "embedding": "contrastive_head"}[name]
        want = tokens[:, token] @ state[f"{head}.weight"].T + state[f"{head}.bias"]
        np.testing.assert_allclose(out[name], want, atol=1e-5)


def test_scrambled_axes_are_refused(tmp_path):
    trained = random_run()
    trained.network.model = trained.network.model.clone(layout="as_coded")
    with pytest.raises(UserError, match="as_coded"):
        export.export(trained, "dae", tmp_path / "out")


def test_the_surface_dice_is_monais():
    from monai.metrics import compute_surface_dice

    from deblur_mae_jax.metrics import segmentation

    rng = np.random.default_rng(0)
    for _ in range(3):
        masks = [np.zeros((18, 16, 14), bool) for _ in range(2)]
        for mask in masks:
            start = rng.integers(1, 5, 3)
            mask[tuple(slice(s, s + int(n)) for s, n in zip(start, rng.integers(4, 9, 3), strict=True))] = True
        one, two = (torch.tensor(np.stack([~m, m])[None].astype(np.float32)) for m in masks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            want = compute_surface_dice(two, one, [1.0], include_background=False)
        got = segmentation.measure(*masks, (1.0, 1.0, 1.0), tolerance=1.0)["surface_dice"]
        np.testing.assert_allclose(got, float(want), atol=1e-6)
