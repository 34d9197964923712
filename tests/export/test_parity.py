"""Against PyTorch itself: blocks of timm, AdamW, torchvision's crops. Needs the `pytorch` extra."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

ROOT = tiny.ROOT
torch = pytest.importorskip("torch", reason="pip install deblur_mae_jax[pytorch] (or make test-pytorch)")
if importlib.util.find_spec("timm") is None:
    pytest.skip("pip install deblur_mae_jax[pytorch]", allow_module_level=True)

from test_crop_resize import crop_box, on_canvas, render

from benchmarks.torch_mae import TorchMAE, TorchStep
from deblur_mae_jax import network as networks
from deblur_mae_jax.data.phantoms import Phantoms
from deblur_mae_jax.input_pipeline import crop_resize
from deblur_mae_jax.models import masking
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.training import optimizer as optim
from deblur_mae_jax.weight_formats import names as pytorch


def load(net, params, model):
    """Our parameters into the PyTorch network of the benchmark."""
    state = pytorch.state_dict_from_params(params)
    out = {}
    for name, value in state.items():
        if name == "patch_embed.proj.weight":  # (D, C, P, P) -> (D, P*P*C), channel fastest
            out["proj.weight"] = value.transpose(0, 2, 3, 1).reshape(value.shape[0], -1)
            continue
        for ours, theirs in (
            ("patch_embed.", ""), ("decoder_blocks.", "decoder."), ("decoder_embed", "embed"),
            ("decoder_pred", "pred"), ("decoder_norm.", f"decoder.{model.decoder_depth}."),
            ("norm.", f"blocks.{model.depth}."),
        ):  # fmt: skip
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
                break
        out[name] = value
    missing, extra = net.load_state_dict({k: torch.tensor(np.array(v)) for k, v in out.items()}, strict=False)
    assert not extra and all("pos" in m or m in ("frequency", "blur_token") for m in missing)


@pytest.fixture(scope="module", params=["token", "none"])
def pair(request):
    """The same network twice, and a batch."""
    config = tiny.config(model__conditioning=request.param)
    network = networks.build(config)
    params = jax.jit(network.init)()
    net = TorchMAE(network.model, request.param == "token")
    load(net, params, network.model)
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.standard_normal((4, 16, 16, 1)).astype(np.float32),
        "targets": rng.standard_normal((4, 16, 16, 1)).astype(np.float32),
        "level": np.array([1, 4, 7, 11]),
        "noise": rng.random((4, 16)).astype(np.float32),
    }
    return network.model, params, net, batch


def loss_of(model, batch):
    def loss(params):
        pred, _ = model.apply(
            {"params": params}, jnp.asarray(batch["inputs"]), jnp.asarray(batch["noise"]), 0.75,
            jnp.asarray(batch["level"]),
        )  # fmt: skip
        goal = masking.patchify(jnp.asarray(batch["targets"]), model.patch_size)
        return losses.patch_error(pred, goal).mean()

    return loss


def torch_loss(net, batch):
    tensors = {k: torch.tensor(v) for k, v in batch.items()}
    return net(tensors["inputs"], tensors["targets"], tensors["level"], 0.75, tensors["noise"])


def test_loss_and_gradients_equal_pytorchs(pair):
    model, params, net, batch = pair
    value, grads = jax.jit(jax.value_and_grad(loss_of(model, batch)))(params)
    net.zero_grad()
    theirs = torch_loss(net, batch)
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    ours = pytorch.state_dict_from_params(grads)
    for name, tensor in (
        ("cls_token", net.cls_token), ("mask_token", net.mask_token),
        ("blocks.0.mlp.fc1.weight", net.blocks[0].mlp.fc1.weight),
        ("blocks.0.attn.qkv.weight", net.blocks[0].attn.qkv.weight),
        ("decoder_pred.bias", net.pred.bias),
    ):  # fmt: skip
        np.testing.assert_allclose(ours[name], tensor.grad, atol=2e-6)


def test_adamw_equals_pytorchs(pair):
    model, params, net, batch = pair
    tx = optim.adamw(lambda _: 1e-3)
    state, step = tx.init(params), jax.jit(jax.value_and_grad(loss_of(model, batch)))
    decayed = [p for n, p in net.named_parameters() if p.ndim > 1 and not n.endswith("bias")]
    rest = [p for n, p in net.named_parameters() if p.ndim <= 1 or n.endswith("bias")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95),
    )  # fmt: skip
    for _ in range(4):
        value, grads = step(params)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        optimizer.zero_grad()
        theirs = torch_loss(net, batch)
        theirs.backward()
        optimizer.step()
        np.testing.assert_allclose(value, theirs.item(), rtol=2e-5)


def test_the_benchmarks_step_trains(pair):
    model, _, _, batch = pair
    step = TorchStep(model, {k: batch[k] for k in ("inputs", "targets", "level")}, 0.75, False, False)
    before = step.net.pred.bias.detach().clone()
    step()
    assert not torch.equal(before, step.net.pred.bias)


def test_crops_equal_torchvisions():
    from torchvision.transforms import InterpolationMode, RandomResizedCrop
    from torchvision.transforms import functional as F

    gray = Phantoms(1, seed=2).view(0)[0]
    image, size = on_canvas(gray)
    box = crop_box(jax.random.key(3), size)
    top, left, height, width = (int(v) for v in box[:4])
    want = np.asarray(
        F.resized_crop(Image.fromarray(gray), top, left, height, width, [224, 224], InterpolationMode.BICUBIC)
    )
    # Where Pillow does its two passes in the other order, overshoot is clipped elsewhere.
    difference = abs(render(image, size, box, (224, 224)) - want)
    assert np.quantile(difference, 0.999) <= 1.5
    boxes = jax.vmap(lambda key: crop_resize.random_resized_crop(key, size))(jax.random.split(jax.random.key(0), 3000))
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(Image.fromarray(gray), (0.2, 1.0), (3 / 4, 4 / 3)) for _ in
         range(3000)]
    )  # fmt: skip
    for got, want in zip(boxes[:4], theirs.T, strict=True):
        assert abs(np.asarray(got).mean() - want.mean()) < 6 * want.std() / np.sqrt(3000)
