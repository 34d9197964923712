"""Turn stored images into network inputs, inside the jitted step: crop, degrade, resize, normalise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deblur_mae_jax import sides
from deblur_mae_jax.degradations.contract import Degradation, Params
from deblur_mae_jax.input_pipeline import augment, crop_resize
from deblur_mae_jax.input_pipeline import views as two_views
from deblur_mae_jax.input_pipeline.contract import Batch, ChooseLevel
from deblur_mae_jax.sides import Size

# Mean and standard deviation of ImageNet by the number of channels; averaged over the colours for one channel.
IMAGENET = {1: ((0.449,), (0.226,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """The input pipeline of 2-D images. `train` and `evaluate` turn examples into batches.

    An example has `image` uint8 `(Hc, Wc, C)` on its canvas and `size` (H, W). It has `degraded` uint8 `(Hc, Wc, 1)`
    if the degradation is precomputed, `level` if its blur level is fixed, and `mask` `(Hc, Wc)` in segmentation.
    A batch has `inputs` and `targets` float32 `(B, H, W, C)`, `level` int32 `(B,)` if the degradation has levels, and
    `mask` int32 `(B, H, W)`. Other entries of the examples, such as `label`, are passed on unchanged.

    blur_site: "native" degrades the image at its own resolution before the crop, as the published
        DeblurrMAE code does (sigma is in native pixels); "network" degrades the resized crop. A separable blur and
        the resize are one product, so that the blurred image is not rounded to 8 bits between them.
    mean: mean of the 0..1 gray scale, one value per channel.
    std: standard deviation of the 0..1 gray scale, one value per channel.
    crop_scale: range of the area of a random crop, as a share of the image.
    crop_ratio: range of the width / height of a random crop, relative to that of the network's input.
    flip: flip left and right at random.
    gray_target: make the target gray. With three channels a degraded input is always gray, as in the published code,
        and the target keeps its colours by default. Without a degradation both keep them.
    crop_rejection: draw again if a crop does not fit. False: clip it to the image.
    augment: `(key, image (H, W, C)) -> image`, in training, between degradation and normalisation.
    erase: `(key, image) -> image`, in training, after the normalisation.
    intensity: `(key, image) -> image`, in training, after `erase`.
    views: `(key, image (H, W, C)) -> image` of each of two views, in training, between degradation and normalisation.
        A batch then has, for the second view, `other_inputs`, `other_targets` and `other_level`.
    local: small crops beside the two views, in training. A batch then has `local_inputs` `(B, N, s, s, C)` and
        `local_level` `(B, N)`.
    """

    degradation: Degradation
    image_size: Size = 224
    in_chans: int = 1
    blur_site: str = "native"
    mean: tuple[float, ...] = (0.449,)
    std: tuple[float, ...] = (0.226,)
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    gray_target: bool = False
    crop_rejection: bool = True
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    erase: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    intensity: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    views: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...] = ()
    local: two_views.LocalCrops | None = None

    @classmethod
    def from_config(cls, config: ConfigDict, degradation: Degradation, kind: str) -> ImageInputs:
        """Build the pipeline from `config.data` and, for tasks with labels, `config.augment`.

        kind: kind of the task, such as "classify".
        """
        data, channels = config.data, config.model.in_chans
        mean, std = IMAGENET[channels]
        mean, std = tuple(data.mean) or mean, tuple(data.std) or std
        views: dict[str, Any] = {}
        if kind == "classify":
            views["augment"] = augment.rand_augment(config.augment.rand_augment, mean)
            if config.augment.erase_probability:
                views["erase"] = augment.RandomErasing(config.augment.erase_probability)
        if kind == "segment":
            views["intensity"] = augment.intensity_of(config.augment)
        if kind in ("contrast", "distill"):
            views["views"] = two_views.from_config(config.augment)
        if kind == "distill":
            views["local"] = two_views.local_of(config.augment, config.image_size, config.model.patch_size)
        return cls(
            degradation,
            image_size=config.image_size,
            in_chans=channels,
            blur_site=config.task.blur_site,
            mean=mean,
            std=std,
            crop_scale=tuple(data.crop_scale),
            crop_ratio=tuple(data.crop_ratio),
            flip=data.flip,
            gray_target=data.gray_target,
            crop_rejection=data.crop_rejection,
            **views,
        )

    def gray_levels(self, normalised: jax.Array) -> jax.Array:
        """Inputs of the network as gray levels 0..255, clipped."""
        return jnp.clip(crop_resize.denormalise(normalised, jnp.asarray(self.mean), jnp.asarray(self.std)), 0, 255)

    @property
    def out(self) -> tuple[int, ...]:
        """Height and width of the network's input, pixels."""
        return sides.of(self.image_size)

    @property
    def precomputes(self) -> bool:
        """Whether the degraded image is computed once and stored beside the original."""
        d = self.degradation
        return self.blur_site == "native" and not (d.identity or d.random or d.taps)

    def degrade_native(self, image: jax.Array, params: Params, size: jax.Array) -> jax.Array:
        """Degrade one image at native resolution to whole gray levels, `(Hc, Wc, 1)` float32."""
        gray = crop_resize.to_gray(image.astype(jnp.float32))
        degraded = self.degradation.apply(gray, params, (size[0], size[1]))
        return jnp.clip(jnp.rint(degraded), 0.0, 255.0)

    def precompute(self, images: jax.Array, sizes: jax.Array) -> jax.Array:
        """`degraded` uint8 `(B, Hc, Wc, 1)` of a degradation that draws nothing."""

        def one(image, size):
            params = self.degradation.draw(jax.random.key(0))  # not random, but a chain needs its parameters
            return self.degrade_native(image, params, size).astype(jnp.uint8)

        if jax.default_backend() == "cpu":  # image by image, so that each stays in the processor's cache
            return jax.lax.map(lambda pair: one(*pair), (images, sizes))
        return jax.vmap(one)(images, sizes)

    def _pair(self, example, box, flip, params) -> tuple[jax.Array, jax.Array]:
        """Degraded and clean view of one example, gray levels `(H, W, C)`."""
        image, size = example["image"], example["size"]
        canvas, out = (image.shape[0], image.shape[1]), self.out
        rows, cols = crop_resize.matrices(box, size, canvas, out, flip)
        clean = crop_resize.render(image, rows, cols)
        d = self.degradation
        if d.identity:
            degraded = clean
        elif self.blur_site == "network":
            degraded = d.apply(crop_resize.to_gray(clean), params, None)
        elif d.taps is not None:
            gray = crop_resize.to_gray(image.astype(jnp.float32))
            taps = d.taps(params)
            blurred = crop_resize.matrices(box, size, canvas, out, flip, taps)
            degraded = crop_resize.render(gray, *blurred, blurred=True)
            # A blur that changes nothing must leave the view as it is, which is clipped between its two passes.
            degraded = jnp.where(taps.max() == 1, crop_resize.render(gray, rows, cols), degraded)
        elif "degraded" in example:
            degraded = crop_resize.render(example["degraded"], rows, cols)
        else:
            degraded = crop_resize.render(self.degrade_native(image, params, size), rows, cols)
        if self.gray_target:
            clean = crop_resize.to_gray(clean)
            degraded = crop_resize.to_gray(degraded)
        shape = (*clean.shape[:2], self.in_chans)
        return jnp.broadcast_to(degraded, shape), jnp.broadcast_to(clean, shape)

    def _batch(self, examples: Batch, boxes, flips, params, keys=None, view=None) -> Batch:
        degraded, clean = jax.vmap(self._pair)(examples, boxes, flips, params)
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        if keys is not None and view is not None:  # the same changes of both
            degraded, clean = (jax.vmap(view)(keys["augment"], images) for images in (degraded, clean))
        if keys is not None and self.augment is not None:
            degraded = jax.vmap(self.augment)(keys["augment"], degraded)
        inputs = crop_resize.normalise(degraded, mean, std)
        if keys is not None and self.erase is not None:
            inputs = jax.vmap(self.erase)(keys["erase"], inputs)
        if keys is not None and self.intensity is not None:
            inputs = jax.vmap(self.intensity)(keys["augment"], inputs)
        batch = {k: v for k, v in examples.items() if k not in ("image", "size", "degraded")}
        if "mask" in batch:

            def seen(mask, box, size, flip):
                return crop_resize.sample(mask, box, size, self.out, flip)

            mask = jax.vmap(seen)(batch["mask"], boxes, examples["size"], flips)
            batch["mask"] = mask.astype(jnp.int32)
        batch |= {"inputs": inputs, "targets": crop_resize.normalise(clean, mean, std)}
        if "level" in params:
            batch["level"] = params["level"]
        return batch

    def _params(self, examples: Batch, keys: dict[str, jax.Array], level: jax.Array | None):
        """Parameters of the degradation: at the given level, at the example's own, or drawn."""
        level = examples.get("level") if level is None else level
        if level is not None and self.degradation.at_level is not None:
            return jax.vmap(self.degradation.at_level)(level)
        return jax.vmap(self.degradation.draw)(keys["degrade"])

    def cubes(self, seed: int) -> None:
        """Images are read whole."""

    def train(
        self,
        examples: Batch,
        keys: dict[str, jax.Array],
        choose_level: ChooseLevel | None = None,
    ) -> Batch:
        """Random resized crops and flips, each example with its own draws; two of them if there are `views`."""
        if self.views:
            return self._two_views(examples, keys)
        return self._random(examples, keys, choose_level)

    def _two_views(self, examples: Batch, keys: dict[str, jax.Array]) -> Batch:
        out: Batch = {}
        for number, view in enumerate(self.views):
            own = {name: jax.vmap(jax.random.fold_in, (0, None))(key, number) for name, key in keys.items()}
            one = self._random(examples, own, view=view)
            prefix = "other_" if number else ""
            changed = {f"{prefix}{name}": one.pop(name) for name in ("inputs", "targets", "level") if name in one}
            out |= one | changed
        if self.local is not None:
            out |= self._local_crops(self.local, examples, keys)
        return out

    def _local_crops(self, local: two_views.LocalCrops, examples: Batch, keys: dict[str, jax.Array]) -> Batch:
        """The small crops of every image."""
        smaller = dataclasses.replace(self, image_size=local.size, crop_scale=local.scale, views=(), local=None)

        def crop(number: jax.Array) -> Batch:
            own = {name: jax.vmap(jax.random.fold_in, (0, None))(key, 2 + number) for name, key in keys.items()}
            made = smaller._random(examples, own, view=local.view)
            return {f"local_{name}": made[name] for name in ("inputs", "level") if name in made}

        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.vmap(crop)(jnp.arange(local.count)))

    def _random(
        self, examples: Batch, keys: dict[str, jax.Array], choose_level: ChooseLevel | None = None, view: Any = None
    ) -> Batch:
        height, width = self.out
        low, high = self.crop_ratio
        ratio = (low * width / height, high * width / height)

        def crop(key, size):
            k_box, k_flip = jax.random.split(key)
            box = crop_resize.random_resized_crop(k_box, size, self.crop_scale, ratio, self.crop_rejection)
            flip = jax.random.bernoulli(k_flip) if self.flip else jnp.zeros((), bool)
            return box, flip

        boxes, flips = jax.vmap(crop)(keys["crop"], examples["size"])
        level = None if choose_level is None else choose_level(examples, boxes, flips)
        params = self._params(examples, keys, level)
        return self._batch(examples, boxes, flips, params, keys, view)

    def central(self, examples: Batch) -> tuple[crop_resize.Box, jax.Array]:
        """Boxes and flips of the deterministic central view."""
        boxes = jax.vmap(lambda size: crop_resize.centre_crop(size, self.out))(examples["size"])
        return boxes, jnp.zeros(examples["size"].shape[0], bool)

    def evaluate(self, examples: Batch, keys: dict[str, jax.Array], level: jax.Array | None = None) -> Batch:
        """The deterministic central view; `level` `(B,)` replaces the drawn or stored one."""
        boxes, flips = self.central(examples)
        with jax.default_matmul_precision("float32"):  # accelerators round the factors of a product by default
            return self._batch(examples, boxes, flips, self._params(examples, keys, level))

    def whole(self, examples: Batch, keys: dict[str, jax.Array], level: jax.Array | None = None) -> Batch:
        """The whole of every image, resized to the network's input. Segmentation is evaluated on this view."""
        boxes = jax.vmap(crop_resize.whole)(examples["size"])
        flips = jnp.zeros(examples["size"].shape[0], bool)
        with jax.default_matmul_precision("float32"):
            return self._batch(examples, boxes, flips, self._params(examples, keys, level))

    def at_levels(
        self, examples: Batch, boxes: crop_resize.Box, flips: jax.Array, levels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Network inputs at every level `(B, T, H, W, C)`, and the clean view `(B, H, W, C)`."""
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        at_level = self.degradation.at_level
        assert at_level is not None

        def one(example, box, flip):
            pairs = jax.vmap(lambda level: self._pair(example, box, flip, at_level(level)))
            degraded, clean = pairs(levels)
            return degraded, clean[0]

        with jax.default_matmul_precision("float32"):
            degraded, clean = jax.vmap(one)(examples, boxes, flips)
        return crop_resize.normalise(degraded, mean, std), crop_resize.normalise(clean, mean, std)
