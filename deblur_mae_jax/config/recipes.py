"""The kinds of run as functions: each makes a config, which the files of `configs/` change as their method needs."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict, config_dict

from deblur_mae_jax.config.fields import Field
from deblur_mae_jax.config.kinds import GROUPS, INHERITS
from deblur_mae_jax.config.tree import change, flat, unset
from deblur_mae_jax.config.values import (
    OWN_RECIPES,
    SMALL,
    SMALL_PRETRAINING,
    SMALL_RESNET,
    SMALL_SIMCLR,
    UPSTREAM,
    VALUES,
)  # fmt: skip
from deblur_mae_jax.errors import UserError, unknown


def pretraining(preset: str = "paper") -> ConfigDict:
    """Masked pre-training of a ViT on 2-D images.

    preset: "paper", the MAE recipe, ViT-B/16 at 224 pixels, one gray channel; or "small", a ViT 192 wide and 6 deep
        at 96 pixels, for a CPU.
    """
    return change(_make("pretraining"), SMALL_PRETRAINING if preset == "small" else {})


def finetuning(preset: str = "paper", scratch: bool = False) -> ConfigDict:
    """Fine-tuning of a classifier.

    preset: "paper", the MAE recipe (He et al. 2022, table 9) that DeblurrMAE and D2MAE use; "upstream", the
        published code; or "small", for small networks and small sets.
    scratch: with "small", set the size of the network of `pretraining("small")`, which would else be inherited.
    """
    config = _make("finetuning", {"repo": "upstream", "small": "paper"}.get(preset, preset))  # "repo": its name in 0.1
    change(config, SMALL if preset == "small" else {})
    if preset == "small" and scratch:
        known = flat(config)
        change(
            config, {k: v for k, v in SMALL_PRETRAINING.items() if k in known and not k.startswith(("optim.", "task."))}
        )
    return config


def backbones(network: str, variant: str = "", preset: str = "paper") -> ConfigDict:
    """Supervised training of a convolutional network or a Swin, from ImageNet's weights or from scratch.

    network: "resnet", "convnext" or "swin2d".
    variant: its size.
    preset: "paper", the MAE recipe that DeblurrMAE and D2MAE use for all networks; "own", that of the network's own
        paper where it differs; "upstream", the published code; or "small", for a ResNet of `contrastive("simclr",
        "resnet", "small")` and small sets.
    """
    kind = "swin2d" if network == "swin2d" else "backbones"
    if preset == "small" and network != "resnet":
        raise unknown("--config", preset, ("paper", "own", "upstream"))
    config = _make(kind, "paper" if preset in ("own", "small") else preset)
    change(config, {"model.name": network, "model.variant": variant})
    if preset == "small":
        change(config, SMALL | SMALL_RESNET | {"image_size": 96})
    if preset == "own":
        change(config, OWN_RECIPES.get(network, {}) | OWN_RECIPES.get(f"{network}-{variant}", {}))
    return config


def contrastive(method: str, network: str, preset: str = "paper") -> ConfigDict:
    """Contrastive pre-training on 2-D images from two random views of each.

    method: "moco_v3" or "simclr".
    network: "vit" or "resnet".
    preset: "paper"; "upstream" for the published commands; or "small", SimCLR of a ResNet 16 wide with five blocks at
        64 pixels, for a CPU.
    """
    if preset == "small" and (method, network) == ("simclr", "resnet"):
        return change(_make("simclr_resnet"), SMALL_SIMCLR)
    return _make(f"{method}_{network}", preset)


def dino_v2() -> ConfigDict:
    """Self-distillation of a ViT on 2-D images from large and small crops of each (DINOv2, without layer scale)."""
    return _make("dino_v2")


def diffmae() -> ConfigDict:
    """Masked diffusion pre-training of a ViT on 2-D images (DiffMAE), with MAE's optimiser."""
    return _make("diffmae")


def convmae() -> ConfigDict:
    """Masked pre-training of a ConvViT on 2-D images (ConvMAE)."""
    return _make("convmae")


def convvit(preset: str = "paper") -> ConfigDict:
    """Fine-tuning of a ConvViT: ConvMAE's recipe, or "upstream", DeblurringMIM's code."""
    return _make("convvit", "upstream" if preset == "repo" else preset)


def simmim(network: str) -> ConfigDict:
    """Masked pre-training of a ViT or a Swin on 2-D images with one linear layer as decoder (SimMIM).

    network: "vit" or "swin2d".
    """
    return _make(f"simmim_{network}")


def beit(preset: str = "paper") -> ConfigDict:
    """Fine-tuning of a BEiT: SimMIM's recipe, or "upstream", DeblurringMIM's code."""
    return _make("beit", "upstream" if preset == "repo" else preset)


PROBED = {"vit": "finetuning", "beit": "beit", "convvit": "convvit", "resnet": "backbones", "convnext": "backbones",
          "swin": "swin2d"}  # fmt: skip


def linear_probe(network: str = "vit") -> ConfigDict:
    """A linear classifier on the frozen encoder (He et al. 2022, table 10): LARS, plain crops.

    network: "vit", with a BatchNorm before the classifier, or "beit", "convvit", "resnet", "convnext" or "swin", whose
        features the classifier reads as they are.
    """
    config = _make(PROBED[network])
    if PROBED[network] in ("backbones", "swin2d"):
        config.model.name = "swin2d" if network == "swin" else network
    return change(config, {
        "task.frozen": True,
        "task.label_smoothing": 0.0,
        "task.mixup": 0.0,
        "task.cutmix": 0.0,
        "data.crop_rejection": False,
        **({"model.pool": "cls", "model.probe": True} if network == "vit" else {"optim.layer_decay": 1.0}),
        "model.drop_path": 0.0,
        "model.head_init": 0.01,
        "augment.rand_augment": "",
        "augment.erase_probability": 0.0,
        "optim.name": "lars",
        "optim.batch_size": 1024,
        "optim.base_lr": 0.1,
        "optim.min_lr": 0.0,
        "optim.weight_decay": 0.0,
        "optim.epochs": 90.0,
        "optim.warmup_epochs": 10.0,
    })  # fmt: skip


def probe() -> ConfigDict:
    """Nearest neighbours or logistic regression on frozen features."""
    return _make("probe")


def blur_search() -> ConfigDict:
    """Optimal blurriness search over a set of images (D2MAE, Algorithm 1)."""
    return _make("blur_search")


def segmentation() -> ConfigDict:
    """Segmentation of 2-D images by a pre-trained ViT with a convolutional decoder (UNETR).

    Rates and layer decay are those of MAE's fine-tuning; there is no drop path, RandAugment, erasing, mixup or cutmix.
    """
    return _make("segmentation")


def segmenter(encoder: str, decoder: str) -> ConfigDict:
    """Segmentation of 2-D images by the encoder of a classifier with the decoder of a U-Net++ or a UPerNet.

    encoder: "resnet", "convnext", "swin2d", "vit", "beit" or "convvit".
    decoder: "unetpp", with a constant rate and the Dice loss, as in DeblurringMIM's code; or "upernet", with
        cross-entropy and its second head, as in the UPerNets of Swin and BEiT.
    """
    config = _make(f"segmenter_{encoder}")
    config.model.decoder = decoder
    if decoder == "unetpp":
        return change(config, {
            "task.loss": "dice", "optim.scale_lr": False, "optim.base_lr": 1e-4,
            "optim.schedule": "constant", "optim.weight_decay": 0.0, "optim.warmup_epochs": 0.0,
            "select.patience_epochs": 100.0, "model.drop_path": 0.2,
        })  # fmt: skip
    layer_decay = {"convnext": 0.8, "swin2d": 0.9, "vit": 0.75, "beit": 0.75, "convvit": 0.75}
    return change(config, {
        "task.loss": "ce", "task.auxiliary_weight": 0.4, "optim.scale_lr": False, "optim.base_lr": 1e-4,
        "optim.layer_decay": layer_decay.get(encoder, 1.0),
    })  # fmt: skip


def volumes(preset: str = "paper") -> ConfigDict:
    """Pre-training with Disruptive Autoencoders (MIDL 2024) and all their disruptions.

    preset: "paper", the sizes and learning rates of the paper; or "upstream", those of the published code.
    """
    return _make("volumes", preset)


def pretext() -> ConfigDict:
    """The three-part pre-training of Swin-UNETR (Tang et al. 2022), with the size and learning rates of DAE's paper."""
    return _make("pretext")


def volume_segmentation(preset: str = "paper") -> ConfigDict:
    """Segmentation of volumes, fine-tuned from Disruptive Autoencoders or trained from scratch.

    preset: "paper", or "upstream" for the settings of the published code.
    """
    return _make("volume_segmentation", preset)


def deblurring(config: ConfigDict, input_: str) -> ConfigDict:
    """Make a masked pre-training deblur: the loss is on all patches of the sharp image.

    input_: "clean" for no change; "deblur", blurred with DeblurrMAE's sigma of 1.1; or "levels", D2MAE's blur levels
        with a blur token.
    """
    values: dict[str, Any] = {"task.loss_on": "all", "task.norm_pix_loss": False}
    if input_ == "deblur":
        values["task.degrade"] = "blur.gaussian(sigma=1.1)"
    if input_ == "levels":
        values |= {"task.degrade": "blur.gaussian_levels(max_sigma=1.1, step=0.1)", "model.conditioning": "token"}
    return change(config, values if input_ != "clean" else {})


def on_organ(config: ConfigDict, organ: str) -> ConfigDict:
    """Set the data fields of a fine-tuning run.

    organ: "thyroid", "ovary" or "pancreas" for a data set of the papers, "folder" for the user's own images.
    """
    if organ == "ovary":  # the official split, as a CSV; it has no validation images
        return change(config, {"data.name": "manifest", "data.val_split": "auto", "select.metric": "f1_macro"})
    return change(config, {"data.split": "train+pool", "data.val_split": "auto", "data.test_split": "auto"})


def pick(arguments: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """Parse the comma-separated words after `config.py:`.

    Returns one word from each group of `choices`; the first word of a group is its default.
    """
    picked = [group[0] for group in choices]
    given: dict[int, str] = {}
    for word in filter(None, (word.strip() for word in arguments.split(","))):
        group = next((i for i, group in enumerate(choices) if word in group), None)
        if group is None:
            raise unknown("--config", word, [name for group in choices for name in group])
        if given.setdefault(group, word) != word:
            raise UserError(f"--config: '{given[group]}' and '{word}' exclude each other; name one of them")
        picked[group] = word
    return tuple(picked)


def _make(kind: str, preset: str = "paper") -> ConfigDict:
    presets = ("paper", "upstream") if kind in UPSTREAM else ("paper",)
    if preset not in presets:
        raise unknown("--config", preset, presets)
    config = ConfigDict()
    for section, groups in GROUPS[kind].items():
        node = config
        if section:
            config[section] = node = ConfigDict()
        for group in groups:
            for name, field in group.items():
                node[name] = _default(field)
    change(config, VALUES[kind] | (UPSTREAM[kind] if preset == "upstream" else {}))
    for name in INHERITS.get(kind, ()):
        unset(config, name)
    return config


def _default(field: Field) -> Any:
    if field.kind is not None:
        return config_dict.FieldReference(field.default, field_type=field.kind)
    return config_dict.placeholder(field.default) if isinstance(field.default, type) else field.default
