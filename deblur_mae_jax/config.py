"""Every field of a run's config: its default, its meaning, and the kinds of run that have it.

A kind of run is a function below: `pretraining()`, `diffmae()`, `convmae()`, `simmim()`, `finetuning()`, `convvit()`, `beit()`, `backbones()`, `linear_probe()`, `probe()`, `blur_search()`,
`contrastive()`, `dino_v2()`, `segmentation()`, `segmenter()`, `volumes()`, `pretext()`, `volume_segmentation()`. Each picks groups of fields and states the values in which it
differs from their defaults. The files of `configs/` call one of them and change what their method needs; the command
line changes the rest. `python -m deblur_mae_jax.config` prints the reference page.

A field that is unset (`None`, a typed placeholder) is inherited from the network in `init_from`, or set by the model's
variant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from deblur_mae_jax.errors import unknown


class Field(NamedTuple):
    """One field of a config.

    default: the value, or a type if the field is unset by default.
    meaning: one line for the reference page.
    kind: type of the values, if that of the default is not the only one.
    """

    default: Any
    meaning: str
    kind: type | None = None


Group = dict[str, Field]

RUN: Group = {
    "seed": Field(0, "Seed of every random number of the run."),
    "image_size": Field(224, "Side of the network's input: pixels, or voxels of a cube. One number per axis for other shapes: (160, 256) is (height, width); a volume's axes are those of `data.spacing`, as in (96, 96, 32).", object),
    "compilation_cache": Field("auto", 'Folder that keeps compiled programs between runs. "auto": the user\'s cache folder. "": none.'),
    "hang_minutes": Field(10.0, "Minutes after which a training step that does not end ends the run, with exit code 124 and the stack of every thread. At least 20 typical steps. 0: never."),
    "init_from": Field("", 'Weights to start from: the workdir of a run, or a weight file of this library, MAE, DeblurringMIM, ConvMAE, MoCo v3, SimMIM, BEiT, USFM, timm, torchvision, Hugging Face, MONAI or DAE. "": from scratch.'),
    "init_strict": Field(True, "Refuse weights that do not fit the network. False: take what fits."),
    "init_parts": Field("both", "Parts of `init_from` to take: both | encoder | decoder."),
}  # fmt: skip
DEGRADE: Group = {
    "degrade": Field("none", "How the input is degraded; join several with \"|\". blur.gaussian(sigma=1.1), blur.gaussian_levels(max_sigma=1.1, step=0.1), speckle.srad(40, 0.1), blur.mean(5), blur.median(5), blur.motion(5), blur.defocus(5), noise.gaussian_noise(0.25), resample.down_up(4), frequency.band_stop(0.2, 0.5), none."),
}  # fmt: skip
BLUR_SITE: Group = {
    "blur_site": Field("native", "native: degrade before the crop, in the image's own pixels (published code) | network: after the resize."),
}  # fmt: skip
MASKED_RECON: Group = {
    "target": Field("clean", "Image to reconstruct: clean | degraded (a control)."),
    "loss_on": Field("all", "Patches that count in the loss: all | masked."),
    "mask_ratio": Field(0.75, "Share of the patches that are masked."),
    "norm_pix_loss": Field(False, "Normalise each target patch to mean 0 and standard deviation 1 (He et al. 2022)."),
    "error": Field("squared", "Error of a pixel in the loss: squared | absolute (SimMIM)."),
}  # fmt: skip
DISRUPTED_RECON: Group = {
    "local_mask": Field(0.6, "Share of the patch embedding's channels that are set to zero."),
    "local_mask_scope": Field("sample", "What shares one choice of channels: batch | sample | token."),
    "block_mask_ratio": Field(0.0, "Share of the 16-voxel blocks that the mask token replaces (3-D MAE)."),
    "loss_on": Field("all", "Voxels that count in the loss: all | masked."),
    "contrast": Field("paper", "Contrast of modalities: paper | bce | code | none."),
    "contrast_weight": Field(0.05, "Weight of the contrast in the loss."),
    "temperature": Field(0.07, "Temperature of the contrast."),
}  # fmt: skip
PRETEXT: Group = {
    "rotation_weight": Field(1.0, "Weight of the rotation loss. 0: off."),
    "contrast_weight": Field(1.0, "Weight of the contrast of two views. 0: off."),
    "reconstruction_weight": Field(1.0, "Weight of the reconstruction loss. 0: off."),
    "temperature": Field(0.5, "Temperature of the contrast."),
}  # fmt: skip
DIFFMAE: Group = {
    "mask_ratio": Field(0.75, "Share of the patches that are masked."),
    "schedule": Field("linear", "Schedule of the noise: linear | cosine."),
    "steps": Field(1000, "Steps of the diffusion."),
    "rho": Field(0.8, "Exponent of the variances of the noise; below 1 there is more noise."),
    "sampler": Field("ddim", "How reports draw a reconstruction: ddim | ddpm."),
    "sampling_steps": Field(50, "Steps of such a drawing."),
    "samples": Field(8, "Drawings of each image whose mean is measured too."),
}  # fmt: skip
MOCO: Group = {
    "temperature": Field(0.2, "Temperature of the contrast."),
    "momentum": Field(0.99, "Weight of the momentum encoder's own parameters in its update, at the start; it rises to 1."),
    "freeze_patch_embed": Field(True, "Do not train the patch embedding of a ViT."),
}  # fmt: skip
DINO: Group = {
    "momentum": Field(0.992, "Weight of the teacher's own parameters in its update, at the start; it rises to 1."),
    "teacher_temperature": Field((0.04, 0.07), "Temperature of the teacher, at the start and after its warm-up."),
    "warmup_share": Field(0.06, "Length of this warm-up, as a share of the run."),
    "mask_probability": Field(0.5, "Probability that patches of a large crop are masked."),
    "mask_range": Field((0.1, 0.5), "Range of the share of the patches that are masked."),
    "ibot_weight": Field(1.0, "Weight of the loss of masked patches (iBOT). 0: off."),
    "koleo_weight": Field(0.1, "Weight of the term that keeps the features of a batch apart (KoLeo). 0: off."),
}  # fmt: skip
SIMCLR: Group = {"temperature": Field(0.1, "Temperature of the contrast.")}
CLASSIFY: Group = {
    "frozen": Field(False, "Train the head only."),
    "cache_features": Field(False, "With `frozen`: encode the central view of every image once and train the head on these features, without random crops and flips."),
    "label_smoothing": Field(0.1, "Share of the target that is spread over all classes."),
    "mixup": Field(0.8, "Parameter of mixup's Beta distribution. 0: off."),
    "cutmix": Field(1.0, "Parameter of cutmix's Beta distribution. 0: off."),
    "mix_probability": Field(1.0, "Probability that a batch is mixed."),
    "mix_switch": Field(0.5, "Probability of cutmix where mixup is on too."),
}  # fmt: skip
SEGMENT: Group = {
    "loss": Field("dice_ce", "dice_ce (published code) | dice (the paper's words) | ce."),
    "include_background": Field(True, "Count the background in the Dice term."),
    "dice_weight": Field(1.0, "Weight of the Dice term."),
    "ce_weight": Field(1.0, "Weight of the cross-entropy term."),
}  # fmt: skip

SECOND_HEAD: Group = {
    "auxiliary_weight": Field(0.0, "Weight of the cross-entropy of a UPerNet's second head; `upernet.py` has 0.4.")
}

COMPUTE: Group = {
    "dtype": Field("auto", "auto (bfloat16 on accelerators, float32 on CPUs) | bfloat16 | float32. On a CPU with AVX512-BF16, bfloat16 is 1.3 times as fast for a ViT and slower for a Swin-UNETR (0.74 times); other CPUs were not measured."),
    "remat": Field(False, "Recompute activations in the backward pass to save memory."),
}  # fmt: skip
VIT: Group = {
    "name": Field("vit_mae", "Network: a file of `deblur_mae_jax/models`."),
    "variant": Field("B", "Size of the ViT: Ti | S | B | L | H."),
    "patch_size": Field(16, "Side of a patch, pixels."),
    "in_chans": Field(1, "Channels of the image: 1 | 3. The published networks have 3, all equal for gray images."),
    "embed_dim": Field(int, "Width of the encoder. Unset: that of the variant."),
    "depth": Field(int, "Blocks of the encoder. Unset: that of the variant."),
    "num_heads": Field(int, "Attention heads of the encoder. Unset: that of the variant."),
    "conditioning": Field("none", "How the network is given the blur level: none | addition | token."),
    "level_code": Field("learned", "Code of the blur level: learned | sinusoid | table | mlp."),
    "attention": Field("auto", "Implementation of attention: auto | xla | cudnn | triton | by_image."),
    **COMPUTE,
}  # fmt: skip
CONVVIT: Group = {
    "name": Field("convvit_mae", "Network: convvit_mae | convvit."),
    "variant": Field("B", "Size: B."),
    "patch_size": Field(16, "Side of a patch, pixels: 16."),
    "stem_dims": Field(tuple, "Widths of the two convolutional stages. Unset: those of the variant."),
    "stem_depths": Field(tuple, "Blocks of the two convolutional stages. Unset: those of the variant."),
    **{name: VIT[name] for name in ("in_chans", "embed_dim", "depth", "num_heads", "conditioning", "level_code", "attention")},
    **COMPUTE,
}  # fmt: skip
VIT_DECODER: Group = {
    "decoder_embed_dim": Field(512, "Width of the decoder."),
    "decoder_depth": Field(8, "Blocks of the decoder."),
    "decoder_num_heads": Field(16, "Attention heads of the decoder."),
    "decoder_level_token": Field(True, "Pass the blur token to the decoder."),
}
MIM: Group = {"mask_size": Field(32, "Side of the patches that are masked together, pixels.")}
_LAYER_SCALE = "Initial factor of each branch of a BEiT's blocks. 0: no such factors."
MIM_VIT: Group = {
    **MIM,
    "positions": Field("sincos", "Positions of the patches: sincos (MAE's fixed table) | relative_shared (a BEiT with one table for all blocks, SimMIM's)."),
    "layer_scale": Field(0.1, _LAYER_SCALE),
    "drop_path": Field(0.1, "Stochastic depth of the last block."),
}  # fmt: skip
DENOISER: Group = {
    **{name: VIT_DECODER[name] for name in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")},
    "decoder": Field("cross_self", "What the noisy patches attend to: cross_self (the visible ones, then each other) | cross (the visible ones) | joint (all together)."),
    "time": Field("addition", "How the strength of the noise is told: addition | token | none."),
    "skip": Field("u_shape", "Encoder blocks that the decoder blocks see: u_shape (the last first) | last."),
}  # fmt: skip
PROJECTION: Group = {
    "projector": Field((4096, 4096, 256), "Widths of the layers of the projector."),
    "predictor": Field((4096, 256), "Widths of the layers of the predictor (MoCo v3). (): none."),
    "momentum": Field(True, "A momentum copy of the encoder (MoCo v3)."),
    "projector_last": Field("plain", "After the last layer of the projector: plain (BatchNorm without parameters) | scale (BatchNorm with a scale) | none."),
    "predictor_last": Field("plain", "The same for the predictor."),
}  # fmt: skip
PROTOTYPES: Group = {
    "prototypes": Field(4096, "Prototypes of each head."),
    "head_hidden": Field(2048, "Width of the hidden layers of the heads."),
    "head_bottleneck": Field(256, "Width of the bottleneck of the heads."),
    "drop_path": Field(0.1, "Stochastic depth of the last block, in the student."),
}
VIT_HEAD: Group = {
    "pool": Field("mean", "Features for the head: mean (of the patch tokens, then `fc_norm`) | cls (the cls token after `norm`)."),
    "drop_path": Field(0.1, "Stochastic depth of the last block; 0.2 for ViT-H."),
    "probe": Field(False, "BatchNorm without affine parameters before the head."),
    "head_init": Field(2e-5, "Standard deviation of the head's initial weights."),
}  # fmt: skip
BEIT_HEAD: Group = {
    "positions": Field("relative", "Positions of the patches: relative (a table in every block) | relative_shared (one for all)."),
    "layer_scale": Field(float, f"{_LAYER_SCALE} Unset: 0.1."),
    **{name: VIT_HEAD[name] for name in ("pool", "drop_path")},
    "head_init": VIT_HEAD["head_init"],
}  # fmt: skip
VIT_UNETR: Group = {"width": Field(16, "Channels of the segmentation decoder at full resolution.")}
SEGMENTER: Group = {
    "encoder": Field("resnet", "Encoder: resnet | convnext | swin2d | vit | beit | convvit."),
    "decoder": Field("unetpp", "Decoder: unetpp (U-Net++) | upernet (UPerNet)."),
    "decoder_width": Field(512, "Channels of a UPerNet's decoder."),
    "drop_path": Field(0.1, "Stochastic depth of the encoder's last block."),
}  # fmt: skip
BACKBONE: Group = {
    "name": Field("resnet", "Network: resnet | convnext | swin2d, or one that contains it."),
    "variant": Field("", 'Size. ResNet: 50 | 101. ConvNeXt and Swin: T | S | B | L. "": the first of these.'),
    "width": Field(int, "Channels of the first stage. Unset: those of the variant."),
    "depths": Field(tuple, "Blocks of each stage. Unset: those of the variant."),
    "in_chans": Field(1, "Channels of the image: 1 | 3."),
    "conditioning": Field("none", "How the network is given the blur level: none."),
    "drop_path": Field(0.1, "Stochastic depth of the last block."),
    "head_init": Field(0.01, "Standard deviation of the head's initial weights."),
    **COMPUTE,
}  # fmt: skip
# A backbone without head.
TRUNK: Group = {name: field for name, field in BACKBONE.items() if name not in ("drop_path", "head_init")}
WINDOWS: Group = {
    "window": Field(7, "Side of a window, tokens, 2 or more: 7, or 12 for images of 384 pixels, 6 for 192.")
}
SWIN: Group = {
    "name": Field("swin_unetr", "Network: a file of `deblur_mae_jax/models`."),
    "variant": Field("48", "Channels of the first stage: 12 | 24 | 48."),
    "feature_size": Field(int, "Another width. Unset: that of the variant."),
    "depths": Field(tuple, "Blocks of each stage. Unset: (2, 2, 2, 2)."),
    "num_heads": Field(tuple, "Attention heads of each stage. Unset: (3, 6, 12, 24)."),
    "in_chans": Field(1, "Channels of the volume: 1."),
    "patch_embed": Field("unet_basic", "unet_basic (DAE) | conv (MONAI)."),
    "merge_order": Field("legacy", "Order in which patches are merged: legacy (DAE, MONAI up to 1.4) | monai15 | v2."),
    "layout": Field("intended", "intended | as_coded (the published pre-training code, which reads depth as channels)."),
    **COMPUTE,
}  # fmt: skip
SWIN_OUTPUT: Group = {
    "normalize": Field(False, "LayerNorm on the decoder's inputs (MONAI; not in DAE's pre-training)."),
    "skip_input": Field("disrupted", "Input of the full-resolution skip connection: disrupted | none."),
    "mask_token": Field(False, "A learned token for masked blocks."),
}  # fmt: skip
SWIN_RECONSTRUCTION: Group = {"out_chans": Field(1, "Channels of the reconstruction.")}
SWIN_SSL: Group = {"rebuilds": Field(True, "Add the decoder of the reconstruction loss.")}

SOURCE: Group = {
    "name": Field("image_folder", "Kind of source: a file of `deblur_mae_jax/data`: image_folder | manifest | dicom | packed | webdataset | parquet | tfds_source | phantoms | nifti | phantoms3d."),
    "root": Field("", 'Folder or CSV. Volumes: one or several, joined by ";", each with its modality: "/data/lung=ct;/data/brain=mr".'),
    "split": Field("train+pool", "Splits to train on, of a manifest or of split folders. TFDS has its own syntax."),
    "columns": Field("", 'Columns of a CSV, where they have unusual names: "group=patient_id,label=class". "group=": do not use one.'),
    "group_pattern": Field("", 'Regular expression that finds the patient in the name of an image, such as "(bus_\\d+)". "": a CSV column, or sub-folders that look like patients.'),
    "mask_values": Field("", 'Classes of the values in masks: "1=organ,2+3=lesion,300-310=vessel,#ff0000=cyst,alpha=lesion,*=background". "": whole numbers from 0 to 255, each a class.'),
    "labels": Field("", "CSV with labels, splits, patients and masks of DICOM files, by SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID, PatientID or path."),
    "allow_burned_in": Field(False, "Use DICOM pictures whose header says that text is burned into the pixels."),
    "fraction": Field(1.0, "Share of the images to use, chosen by the seed."),
    "num_images": Field(600, "Number of phantoms."),
    "side": Field(160, "Height of a phantom, pixels; side of a phantom volume, voxels."),
    "phantom_seed": Field(0, "Seed of the phantoms."),
    "store": Field("auto", "Where the images stay: resident (device memory) | streaming (read again in every epoch) | auto."),
    "num_threads": Field(4, "Threads that read images."),
    "num_workers": Field(0, "Processes that read ahead for the streaming store. 0: threads read."),
    "check": Field("pixels", "What is checked before training: pixels (decode every file) | header."),
    "max_bad_fraction": Field(0.2, "Stop when a larger share of the files cannot be used."),
    "max_pixels": Field(50_000_000, "Refuse larger images: pixels, or voxels of a volume."),
}  # fmt: skip
IMAGES: Group = {
    "tfds_name": Field("", "Name of a TensorFlow Datasets set, with data.name=tfds_source."),
    "mean": Field((), "Mean of the 0..1 gray scale, one value per channel. (): ImageNet's, averaged over the colours for one channel."),
    "std": Field((), "Standard deviation of the 0..1 gray scale; like `mean`."),
    "crop_scale": Field((0.2, 1.0), "Range of the area of a random crop, as a share of the image."),
    "crop_ratio": Field((3 / 4, 4 / 3), "Range of the width / height of a random crop, relative to that of `image_size`."),
    "crop_rejection": Field(True, "Draw crops that do not fit the image again. False: cut them to the image (linear probe)."),
    "flip": Field(True, "Flip left and right at random."),
    "gray_target": Field(False, "With three channels: make the target gray too."),
    "frames": Field("uniform(8)", "Frames of a DICOM clip: uniform(8) | every(1.0 s) | all | first | middle."),
    "crop": Field("auto", "Part of a DICOM ultrasound picture: auto (its regions, else the fan) | regions | none."),
    "window": Field("", 'Window of DICOM pictures: "low,high", or lung | soft | bone | brain | liver for CT. "": the file\'s own.'),
    "max_side": Field(1024, "Shrink larger images to this when they are read, pixels. 0: never."),
    "min_side": Field(16, "Leave smaller images out, pixels."),
    "bits16": Field("minmax", "How 16-bit gray levels become 8-bit: minmax (the image's own range) | full."),
}  # fmt: skip
VOLUMES: Group = {
    "spacing": Field(
        (),
        "Resample to this voxel size, mm, such as (2.0, 2.0, 2.0), along the axes left to right, back to front, feet to head. (): keep the file's.",
    ),
    "ct_window": Field((-1000.0, 1000.0), "Range of CT values, HU, that is mapped to 0..1."),
    "decoded": Field("", 'Folder that keeps decoded volumes between epochs and runs. "": none.'),
}
MODALITIES: Group = {"ratio": Field("", 'Ratio of the modalities drawn, such as "ct=1,mr=3". "": as they are.')}  # fmt: skip
SPLITS: Group = {
    "val_split": Field("val", 'Validation images: a split by name | "": drawn from the training images, whole patients at a time | auto: the first if there is one, else the second.'),
    "test_split": Field("test", "Test images: as `val_split` | none."),
    "split_seed": Field(0, "Seed of the splits that are drawn, and of `fraction`; `seed` is that of the training."),
    "folds": Field(5, "Number of folds. 5 are the papers' 3:1:1."),
    "fold": Field(0, "Fold that tests; the next one validates."),
}  # fmt: skip
CLASSES: Group = {
    "balance": Field("none", "none | sampling (classes equally often) | loss (weighted by class)."),
    "positive": Field("", 'The positive one of two classes. "": the last in alphabetical order.'),
}
LABEL_MAPS: Group = {
    "label_names": Field((), "Names of the values in the masks, in order, without the background."),
    "crops_per_image": Field(1, "Crops of each image in an epoch."),
}
FOREGROUND: Group = {"foreground": Field(0.5, "Share of the crops whose centre is a labelled voxel.")}

AUGMENT_CLASSES: Group = {
    "rand_augment": Field("rand-m9-mstd0.5-inc1", 'RandAugment in timm\'s notation. "": off.'),
    "erase_probability": Field(0.25, "Probability of random erasing."),
}
AUGMENT_VIEWS: Group = {
    "jitter": Field((0.4, 0.4, 0.2, 0.1), "Largest relative change of brightness, contrast and saturation, and largest shift of the hue, in two random views of an image. One channel has no saturation and hue."),
    "jitter_probability": Field(0.8, "Probability of these changes."),
    "gray_probability": Field(0.2, "Probability that the colours of a view are removed."),
    "view_blur_probability": Field((1.0, 0.1), "Probability that a view is blurred, for each of the two."),
    "view_blur_sigma": Field((0.1, 2.0), "Range of the sigma of this blur, pixels of the view."),
    "solarize_probability": Field((0.0, 0.2), "Probability that gray levels of 128 and more are inverted, for each of the two views."),
}  # fmt: skip
AUGMENT_LOCAL: Group = {
    "local_crops": Field(8, "Small crops of each image beside the two large ones. 0: none."),
    "local_size": Field(96, "Side of the small crops, pixels."),
    "local_scale": Field((0.05, 0.32), "Range of the area of a small crop, as a share of the image."),
}
AUGMENT_INTENSITY: Group = {
    "intensity_scale": Field(0.1, "Largest relative change of the intensities."),
    "intensity_shift": Field(0.1, "Largest shift of the intensities."),
    "intensity_probability": Field(0.1, "Probability of each of the two."),
}
AUGMENT_VOLUMES: Group = {
    "flip_probability": Field(0.2, "Probability of a flip along each axis."),
    "rotate_probability": Field(0.2, "Probability of a rotation by 90, 180 or 270 degrees around the third axis."),
}  # fmt: skip
SEARCH: Group = {
    "setting": Field("auto", "How the blur level of each image is found: auto | none | fixed(0.5) | search(2) | online(2) | random | oracle."),
    "high_pass": Field(0.0, "Compare only what a Gaussian blur of this sigma removes from the error, pixels of the network's input. 0: the whole error, as in Algorithm 1."),
    "batch_size": Field(64, "Forward passes at once: images times levels."),
    "cache": Field("auto", 'Folder that keeps the results between runs. "": none.'),
}  # fmt: skip
SELECT: Group = {
    "metric": Field("accuracy", "Measure on the validation images that selects the best weights."),
    "patience_epochs": Field(0.0, "Stop so many epochs after the best. 0: never."),
}
INFER: Group = {
    "overlap": Field(0.5, "Overlap of neighbouring windows, as a share of their side."),
    "blending": Field("gaussian", "Weights of overlapping windows: gaussian | constant."),
    "batch_size": Field(4, "Windows, or 2-D images, at once."),
    "flips": Field(False, "Average over flipped views (8 of a volume, 2 of a 2-D image)."),
    "largest_component": Field(False, "Keep only the largest connected component of every label."),
}
PROBE: Group = {
    "kind": Field("knn", "knn | logistic."),
    "pool": Field("mean", "Features: mean (of the patch tokens) | cls."),
    "neighbours": Field((1, 5, 20, 50), "Numbers of neighbours to choose from."),
    "strengths": Field((1e-4, 1e-3, 1e-2, 0.1, 1.0), "Values of C of the logistic regression to choose from."),
}  # fmt: skip
OPTIM: Group = {
    "name": Field("adamw", "adamw | lars (MAE, MoCo v3: the learning rate after the momentum) | lars_simclr (before it)."),
    "batch_size": Field(256, "Images per step, over all devices and accumulation steps."),
    "accum_steps": Field(1, "Parts of a batch whose gradients are accumulated. Mixup, cutmix and contrastive losses see one part at a time."),
    "epochs": Field(800.0, "Length of the run, epochs."),
    "steps": Field(0, "Length of the run, steps. If set, it replaces `epochs`, and the warm-up is at most a tenth of it."),
    "warmup_epochs": Field(40.0, "Length of the warm-up, epochs."),
    "warmup_steps": Field(0, "Length of the warm-up, steps, instead of `warmup_epochs`; with `steps` at most a tenth of the run. 0: `warmup_epochs`."),
    "base_lr": Field(1.5e-4, "Learning rate at batch 256; see `scale_lr`."),
    "scale_lr": Field(True, "Multiply `base_lr` by batch_size / 256."),
    "min_lr": Field(0.0, "Learning rate at the end."),
    "warmup_lr": Field(0.0, "With schedule=timm: learning rate at the start of the warm-up."),
    "schedule": Field("cosine", "After the warm-up: cosine | constant | timm (DAE's code) | by_epoch (MONAI's) | multistep (SimMIM's: a tenth after 7/8 of the run)."),
    "b1": Field(0.9, "AdamW's decay of the first moment."),
    "b2": Field(0.95, "AdamW's decay of the second moment."),
    "eps": Field(1e-8, "AdamW's epsilon."),
    "weight_decay": Field(0.05, "Weight decay."),
    "decay_on": Field("weights_and_tokens", "What AdamW's weight decay acts on: weights | weights_and_tokens | all. That of LARS acts on parameters with more than one axis."),
    "layer_decay": Field(1.0, "Factor of the learning rate from each block to the one below. 1: off."),
    "clip_norm": Field(0.0, "Clip gradients to this global norm. 0: off."),
}  # fmt: skip
SHARDING: Group = {
    "params": Field("replicate", "What is divided among the devices, for networks that do not fit one: replicate (nothing) | zero1 (the state of the optimiser) | fsdp (the parameters too)."),
    "replica": Field(1, "Copies of what is divided. Each copy is divided among devices / replica devices."),
    "min_mib": Field(1.0, "Arrays of fewer MiB are not divided."),
}  # fmt: skip
CHECKPOINT: Group = {
    "every_epochs": Field(10.0, "Epochs between checkpoints."),
    "keep_last": Field(2, "Number of newest checkpoints to keep."),
    "async_save": Field("auto", "Write checkpoints while training goes on: auto (on accelerators) | on | off."),
    "commit": Field(
        "rename",
        "How a checkpoint becomes valid when it is complete: rename (its folder is renamed) | file (commit_success.txt is written last; for mounted buckets, where a rename copies every file).",
    ),
    "keep_every": Field(0, "Never delete checkpoints of these multiples of steps. 0: off."),
}
LOG: Group = {
    "every_steps": Field(20, "Steps between lines of `metrics.jsonl`."),
    "tensorboard": Field(True, "Write TensorBoard files too."),
}
REPORT: Group = {"every_epochs": Field(100.0, "Epochs between evaluations.")}
REPORT_RECONSTRUCTION: Group = {
    "num_images": Field(8, "Images shown."),
    "num_eval_images": Field(64, "Images measured."),
    "eval_split": Field(
        "", 'Split to measure on; "unseen": simulated images that are not trained on. "": images of the training set.'
    ),
}
MONITOR: Group = {
    "monitor_root": Field("", 'Labelled images, one sub-folder per class or a CSV, on which nearest neighbours and a linear probe judge the frozen features during pre-training. "": none.'),
    "monitor_images": Field(200, "Most of these images that are used."),
    "monitor_share": Field(0.02, "Largest share of the run's time that this takes, after the first judgement."),
}  # fmt: skip
REPORT_LABELS: Group = {
    "audit": Field("near", "Search for copies across splits: near (perceptual hashes too) | identical."),
}
REPORT_SEGMENTATION: Group = {
    "tolerance": Field(1.0, "Surfaces so close count as equal (surface Dice): mm, or pixels."),
    "empty": Field("skip", "A label that the truth or the prediction lacks: skip | count."),
}

Groups = dict[str, tuple[Group, ...]]
_TASK = {"name": Field("", "What is trained: a file of `deblur_mae_jax/tasks`, or a command: blur_search | probe.")}  # fmt: skip
_COMMON: Groups = {"": (RUN,), "optim": (OPTIM,), "sharding": (SHARDING,), "checkpoint": (CHECKPOINT,), "log": (LOG,)}
_VIT_LABELS: Groups = {
    **_COMMON,
    "search": (SEARCH,),
    "select": (SELECT,),
}
GROUPS: dict[str, Groups] = {
    "pretraining": {
        **_COMMON,
        "task": (_TASK, DEGRADE, BLUR_SITE, MASKED_RECON),
        "model": (VIT, VIT_DECODER),
        "data": (SOURCE, IMAGES),
        "report": (REPORT, REPORT_RECONSTRUCTION, MONITOR),
    },
    "finetuning": {
        **_VIT_LABELS,
        "task": (_TASK, DEGRADE, BLUR_SITE, CLASSIFY),
        "model": (VIT, VIT_HEAD),
        "data": (SOURCE, IMAGES, SPLITS, CLASSES),
        "augment": (AUGMENT_CLASSES,),
        "report": (REPORT, REPORT_LABELS),
    },
    "segmentation": {
        **_VIT_LABELS,
        "task": (_TASK, DEGRADE, BLUR_SITE, SEGMENT),
        "model": (VIT, VIT_UNETR),
        "data": (SOURCE, IMAGES, SPLITS, LABEL_MAPS),
        "augment": (AUGMENT_INTENSITY,),
        "infer": (INFER,),
        "report": (REPORT, REPORT_LABELS, REPORT_SEGMENTATION),
    },
    "volumes": {
        **_COMMON,
        "task": (_TASK, DEGRADE, DISRUPTED_RECON),
        "model": (SWIN, SWIN_OUTPUT, SWIN_RECONSTRUCTION),
        "data": (SOURCE, VOLUMES, MODALITIES),
        "report": (REPORT, REPORT_RECONSTRUCTION),
    },
    "pretext": {
        **_COMMON,
        "task": (_TASK, DEGRADE, PRETEXT),
        "model": (SWIN, SWIN_SSL),
        "data": (SOURCE, VOLUMES, MODALITIES),
        "report": (REPORT, REPORT_RECONSTRUCTION),
    },
    "volume_segmentation": {
        **_COMMON,
        "task": (_TASK, DEGRADE, SEGMENT),
        "model": (SWIN, SWIN_OUTPUT),
        "data": (SOURCE, VOLUMES, SPLITS, LABEL_MAPS, FOREGROUND),
        "augment": (AUGMENT_INTENSITY, AUGMENT_VOLUMES),
        "infer": (INFER,),
        "select": (SELECT,),
        "report": (REPORT, REPORT_LABELS, REPORT_SEGMENTATION),
    },
}
GROUPS["backbones"] = {**GROUPS["finetuning"], "model": (BACKBONE,)}
GROUPS["swin2d"] = {**GROUPS["finetuning"], "model": (BACKBONE, WINDOWS)}
GROUPS["diffmae"] = {**GROUPS["pretraining"], "task": (_TASK, DEGRADE, BLUR_SITE, DIFFMAE), "model": (VIT, DENOISER)}
GROUPS["simmim_vit"] = {**GROUPS["pretraining"], "model": (VIT, MIM_VIT)}
GROUPS["convmae"] = {**GROUPS["pretraining"], "model": (CONVVIT, VIT_DECODER)}
_CONVVIT_HEAD: Group = {name: VIT_HEAD[name] for name in ("drop_path", "head_init")}
GROUPS["beit"] = {**GROUPS["finetuning"], "model": (VIT, BEIT_HEAD)}
GROUPS["simmim_swin2d"] = {**GROUPS["pretraining"], "model": (TRUNK, WINDOWS, MIM, {"drop_path": MIM_VIT["drop_path"]})}
GROUPS["convvit"] = {**GROUPS["finetuning"], "model": (CONVVIT, _CONVVIT_HEAD)}
_ENCODERS = {
    "resnet": (TRUNK,), "convnext": (TRUNK,), "swin2d": (TRUNK, WINDOWS), "vit": (VIT,), "convvit": (CONVVIT,),
    "beit": (VIT, {name: BEIT_HEAD[name] for name in ("positions", "layer_scale")}),
}  # fmt: skip
for _encoder, _fields in _ENCODERS.items():
    GROUPS[f"segmenter_{_encoder}"] = {
        **GROUPS["segmentation"], "task": (_TASK, DEGRADE, BLUR_SITE, SEGMENT, SECOND_HEAD), "model": (*_fields, SEGMENTER)
    }  # fmt: skip
_CONTRAST: Groups = {
    **_COMMON,
    "data": (SOURCE, IMAGES),
    "augment": (AUGMENT_VIEWS,),
    "report": (REPORT, REPORT_RECONSTRUCTION, MONITOR),
}
_TASKS_OF_CONTRAST = {"moco_v3": (_TASK, DEGRADE, BLUR_SITE, MOCO), "simclr": (_TASK, DEGRADE, BLUR_SITE, SIMCLR)}
_NETWORKS_OF_CONTRAST = {"vit": (VIT, PROJECTION), "resnet": (TRUNK, PROJECTION)}
for _method, _task in _TASKS_OF_CONTRAST.items():
    for _network, _model in _NETWORKS_OF_CONTRAST.items():
        GROUPS[f"{_method}_{_network}"] = {**_CONTRAST, "task": _task, "model": _model}
GROUPS["dino_v2"] = {
    **_CONTRAST, "augment": (AUGMENT_VIEWS, AUGMENT_LOCAL), "task": (_TASK, DEGRADE, BLUR_SITE, DINO), "model": (VIT, PROTOTYPES)
}  # fmt: skip
GROUPS["probe"] = {**GROUPS["finetuning"], "task": (_TASK, DEGRADE, BLUR_SITE), "probe": (PROBE,)}
GROUPS["blur_search"] = {**GROUPS["finetuning"], "task": (_TASK, DEGRADE, BLUR_SITE)}

# Fields that a run inherits from the network in `init_from` unless the user sets them. `FROM_SCRATCH` has the values
# for a run without such a network, if they differ from the fields' defaults.
INHERITED_BY_IMAGES = (
    "image_size", "task.degrade", "task.blur_site", "model.variant", "model.patch_size", "model.in_chans",
    "model.embed_dim", "model.depth", "model.num_heads", "model.conditioning", "model.level_code", "data.mean",
    "data.std", "data.max_side", "data.bits16", "data.gray_target",
)  # fmt: skip
INHERITED_BY_CONVVIT = (
    "image_size", "task.degrade", "task.blur_site", "model.variant", "model.stem_dims", "model.stem_depths",
    "model.in_chans", "model.embed_dim", "model.depth", "model.num_heads", "model.conditioning", "model.level_code",
    "data.mean", "data.std", "data.max_side", "data.bits16", "data.gray_target",
)  # fmt: skip
INHERITED_BY_BACKBONES = (
    "image_size", "task.degrade", "task.blur_site", "model.in_chans", "data.mean", "data.std", "data.max_side",
    "data.bits16", "data.gray_target",
)  # fmt: skip
# The CT window and the spacing describe the images, not the network, so they are not inherited.
INHERITED_BY_VOLUMES = (
    "image_size", "model.variant", "model.feature_size", "model.depths", "model.num_heads", "model.in_chans",
    "model.patch_embed", "model.merge_order",
)  # fmt: skip
INHERITS = {
    "finetuning": INHERITED_BY_IMAGES,
    "convvit": INHERITED_BY_CONVVIT,
    "beit": (*INHERITED_BY_IMAGES, "model.layer_scale"),
    "backbones": INHERITED_BY_BACKBONES,
    "swin2d": INHERITED_BY_BACKBONES,
    "probe": INHERITED_BY_IMAGES,
    "blur_search": INHERITED_BY_IMAGES,
    "segmentation": INHERITED_BY_IMAGES,
    "volume_segmentation": INHERITED_BY_VOLUMES,
}
_OF_ENCODER = {"vit": INHERITS["finetuning"], "beit": INHERITS["beit"], "convvit": INHERITED_BY_CONVVIT}
INHERITS |= {f"segmenter_{name}": _OF_ENCODER.get(name, INHERITED_BY_BACKBONES) for name in _ENCODERS}
FROM_SCRATCH = {
    "volume_segmentation": {
        "image_size": 96,
        "model.patch_embed": "conv",
        "model.merge_order": "monai15",
    }
}
# Fields of `config.data` that change the decoded values.
DECODING = ("max_pixels", "max_side", "min_side", "bits16", "spacing", "ct_window", "mask_values", "crop", "window")

# The values of each kind of run that differ from the defaults above.
_LABELS = {
    "data.split": "train",
    "data.crop_scale": (0.08, 1.0),
    "optim.epochs": 100.0,
    "optim.warmup_epochs": 5.0,
    "optim.base_lr": 1e-3,
    "optim.min_lr": 1e-6,
    "optim.b2": 0.999,
    "optim.layer_decay": 0.75,
    "optim.decay_on": "weights",
    "checkpoint.every_epochs": 5.0,
    "report.every_epochs": 1.0,
}
_MOCO = {
    "data.crop_scale": (0.08, 1.0),
    "optim.batch_size": 1024,
    "optim.epochs": 300.0,
    "optim.b2": 0.999,
    "optim.decay_on": "all",
}
_SIMCLR = {
    "data.crop_scale": (0.08, 1.0),
    "augment.jitter": (0.8, 0.8, 0.8, 0.2),
    "augment.view_blur_probability": (0.5, 0.5),
    "augment.solarize_probability": (0.0, 0.0),
    "model.predictor": (),
    "model.momentum": False,
    "model.projector_last": "scale",
    "optim.name": "lars_simclr",
    "optim.batch_size": 1024,
    "optim.base_lr": 0.3,
    "optim.weight_decay": 1e-6,
    "optim.epochs": 300.0,
    "optim.warmup_epochs": 10.0,
}
# SimMIM's commands: the rates are those of a batch of 512 images there, and of 256 here.
_SIMMIM = {
    "task.name": "masked_recon",
    "task.loss_on": "masked",
    "task.error": "absolute",
    "task.mask_ratio": 0.6,
    "data.crop_scale": (0.67, 1.0),
    "optim.batch_size": 2048,
    "optim.b2": 0.999,
    "optim.clip_norm": 5.0,
    "optim.decay_on": "weights",
    "optim.warmup_epochs": 10.0,
}
_DAE = {
    "image_size": 96,
    "model.name": "swin_unetr",
    "data.name": "nifti",
    "data.side": 64,
    "data.max_pixels": 500_000_000,
    "optim.batch_size": 16,
    "optim.scale_lr": False,
    "optim.base_lr": 4e-4,
    "optim.weight_decay": 1e-5,
    "optim.b2": 0.999,
}
_DAE_PRETRAINING = {
    **_DAE,
    # Noise, then down- and up-sampling in sequence, as in the code; the paper adds the two. The 0.1 is a variance.
    "task.degrade": "noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4)",
    "optim.warmup_steps": 500,
    "optim.steps": 20_000,
    "optim.clip_norm": 1.0,
    "optim.decay_on": "weights",
    "optim.schedule": "timm",
    "report.num_images": 2,
    "report.num_eval_images": 4,
}
VALUES: dict[str, dict[str, Any]] = {
    "pretraining": {"task.name": "masked_recon"},
    "finetuning": {"task.name": "classify", "model.name": "vit", **_LABELS},
    "diffmae": {"task.name": "diffmae", "model.name": "vit_diffmae", "report.num_eval_images": 16},
    # ConvMAE's commands; the batch is 3,072 images.
    "convmae": {
        "task.name": "masked_recon",
        "model.name": "convvit_mae",
        "task.loss_on": "masked",
        "task.norm_pix_loss": True,
        "optim.batch_size": 1024,
        "optim.epochs": 1600.0,
    },
    "convvit": {
        "task.name": "classify",
        "model.name": "convvit",
        **_LABELS,
        "optim.base_lr": 5e-4,
        "optim.layer_decay": 0.65,
    },
    "simmim_vit": {"model.name": "vit_mim", **_SIMMIM, "optim.base_lr": 5e-5, "optim.schedule": "multistep"},
    "simmim_swin2d": {
        "model.name": "swin2d_mim",
        **_SIMMIM,
        "image_size": 192,
        "model.window": 6,
        "model.drop_path": 0.0,
        "optim.base_lr": 1e-4,
    },
    # SimMIM's fine-tuning of a ViT; BEiT's and USFM's have the same rates.
    "beit": {
        "task.name": "classify",
        "model.name": "beit",
        **_LABELS,
        "optim.base_lr": 6.25e-4,
        "optim.min_lr": 2.5e-7,
        "optim.warmup_epochs": 20.0,
        "optim.layer_decay": 0.65,
    },
    "backbones": {"task.name": "classify", **_LABELS, "optim.layer_decay": 1.0},
    "swin2d": {"task.name": "classify", "model.name": "swin2d", **_LABELS, "optim.layer_decay": 1.0},
    "probe": {"task.name": "probe", "model.name": "vit", **_LABELS},
    "blur_search": {"task.name": "blur_search", "model.name": "vit", **_LABELS},
    "moco_v3_vit": {
        "task.name": "moco_v3",
        "model.name": "siamese_vit",
        **_MOCO,
        "optim.base_lr": 1.5e-4,
        "optim.weight_decay": 0.1,
    },
    "moco_v3_resnet": {
        "task.name": "moco_v3",
        "model.name": "siamese_resnet",
        **_MOCO,
        "task.temperature": 1.0,  # the default of the published code; its commands for a ViT set 0.2
        "model.projector": (4096, 256),
        "model.predictor_last": "none",
        "data.crop_scale": (0.2, 1.0),
        "optim.name": "lars",
        "optim.base_lr": 0.3,
        "optim.weight_decay": 1e-6,
        "optim.warmup_epochs": 10.0,
    },
    "dino_v2": {
        "task.name": "dino_v2",
        "model.name": "vit_dino",
        "data.crop_scale": (0.32, 1.0),
        "optim.batch_size": 1024,
        "optim.epochs": 500.0,
        "optim.warmup_epochs": 10.0,
        "optim.scale_lr": False,
        "optim.base_lr": 4e-3,
        "optim.min_lr": 1e-6,
        "optim.b2": 0.999,
        "optim.weight_decay": 0.1,
        "optim.decay_on": "weights",
        "optim.clip_norm": 3.0,
    },
    "simclr_vit": {"task.name": "simclr", "model.name": "siamese_vit", **_SIMCLR, "model.projector": (2048, 2048, 128)},
    "simclr_resnet": {
        "task.name": "simclr",
        "model.name": "siamese_resnet",
        **_SIMCLR,
        "model.projector": (2048, 2048, 128),
    },
    "segmentation": {
        "task.name": "segment",
        "model.name": "vit_unetr",
        **_LABELS,
        "data.crop_scale": (0.5, 1.0),
        "data.val_split": "auto",
        "data.test_split": "auto",
        "select.metric": "dice",
        "optim.batch_size": 32,
    },
    **{
        f"segmenter_{encoder}": {
            "task.name": "segment",
            "model.name": "segmenter",
            "model.encoder": encoder,
            **_LABELS,
            "data.crop_scale": (0.5, 1.0),
            "data.val_split": "auto",
            "data.test_split": "auto",
            "select.metric": "dice",
            "optim.batch_size": 16,
            "optim.layer_decay": 1.0,
        }
        for encoder in _ENCODERS
    },
    "volumes": {"task.name": "disrupted_recon", **_DAE_PRETRAINING},
    "pretext": {
        "task.name": "pretext",
        **_DAE_PRETRAINING,
        "task.degrade": "none",  # the task makes its own views
        "model.name": "swin_ssl",
        "model.patch_embed": "conv",
    },
    "volume_segmentation": {
        "task.name": "segment",
        **_DAE,
        "model.normalize": True,  # as MONAI and the published fine-tuning, unlike its pre-training
        "data.split": "train",
        "data.val_split": "auto",
        "data.test_split": "auto",
        "data.crops_per_image": 4,
        "select.metric": "dice",
        "optim.epochs": 600.0,
        "optim.warmup_epochs": 50.0,
        "optim.decay_on": "all",
        "report.every_epochs": 10.0,
    },
}
# Settings in which the published code differs from the papers.
UPSTREAM: dict[str, dict[str, Any]] = {
    # DeblurringMIM: a constant rate, no layer decay, no mixing, stopped 200 epochs after the best.
    "finetuning": {
        "task.mixup": 0.0,
        "task.cutmix": 0.0,
        "optim.base_lr": 1e-3,
        "optim.min_lr": 1e-6,
        "optim.warmup_epochs": 5.0,
        "optim.weight_decay": 0.01,
        "optim.layer_decay": 1.0,
        "optim.decay_on": "all",
        "optim.schedule": "constant",
        "optim.epochs": 10_000.0,
        "select.patience_epochs": 200.0,
    },
    # DAE: nearest-neighbour resampling, channels masked alike in a whole batch, the rates of its README. Two of its bugs are
    # not reproduced: its contrast is meaningless (config.task.contrast=code), and its axes are scrambled
    # (config.model.layout=as_coded).
    "volumes": {
        "task.degrade": "noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4, method='nearest')",
        "task.local_mask_scope": "batch",
        "task.contrast_weight": 0.03,
        "task.temperature": 0.5,
        "optim.base_lr": 1e-4,
        "optim.min_lr": 1e-5,
        "optim.warmup_lr": 1e-6,
        "optim.weight_decay": 0.05,
        "optim.steps": 0,
        "optim.warmup_steps": 0,
        "optim.epochs": 1000.0,
        "optim.warmup_epochs": 4.0,
    },
    # DAE's fine-tuning commands: twice the learning rate. It changes once per epoch and is exactly 0 in the first.
    "volume_segmentation": {"optim.base_lr": 8e-4, "optim.schedule": "by_epoch"},
}


UPSTREAM |= {
    "convvit": UPSTREAM["finetuning"],
    "beit": UPSTREAM["finetuning"],
    "backbones": UPSTREAM["finetuning"],
    "swin2d": UPSTREAM["finetuning"],
}
# The published commands: batch 4096; the rate and weight decay of SimCLR's command for 100 epochs.
UPSTREAM |= {name: {"optim.batch_size": 4096} for name in ("moco_v3_vit", "moco_v3_resnet")}
UPSTREAM |= {
    name: {"optim.batch_size": 4096, "optim.epochs": 100.0, "optim.weight_decay": 1e-4}
    for name in ("simclr_vit", "simclr_resnet")
}
# For small networks and sets of some hundred to a few thousand images: no mixing, mild crops, a short run.
SMALL: dict[str, Any] = {
    "task.mixup": 0.0,
    "task.cutmix": 0.0,
    "data.crop_scale": (0.6, 1.0),
    "model.drop_path": 0.0,
    "augment.rand_augment": "",
    "augment.erase_probability": 0.0,
    "select.metric": "auroc",
    "optim.batch_size": 32,
    "optim.base_lr": 4e-3,
    "optim.layer_decay": 1.0,
    "optim.epochs": 15.0,
    "optim.warmup_epochs": 1.0,
}
# A network that a CPU can pre-train. Blur follows the resize, which would otherwise hide it.
SMALL_PRETRAINING: dict[str, Any] = {
    "image_size": 96,
    "model.patch_size": 12,
    "model.embed_dim": 192,
    "model.depth": 6,
    "model.num_heads": 3,
    "model.decoder_embed_dim": 96,
    "model.decoder_depth": 2,
    "model.decoder_num_heads": 4,
    "task.blur_site": "network",
    "optim.batch_size": 64,
    "optim.base_lr": 4e-3,
    "optim.steps": 4000,
}
# Where the fine-tuning recipes of the networks' own papers differ.
OWN_RECIPES: dict[str, dict[str, Any]] = {
    "convnext": {"optim.layer_decay": 0.8, "model.drop_path": 0.2},
    "convnext-L": {"model.drop_path": 0.3},
    "swin2d": {"optim.layer_decay": 0.9, "model.drop_path": 0.2},
}


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
        paper where it differs; or "upstream", the published code.
    """
    kind = "swin2d" if network == "swin2d" else "backbones"
    config = _make(kind, "paper" if preset == "own" else preset)
    change(config, {"model.name": network, "model.variant": variant})
    if preset == "own":
        change(config, OWN_RECIPES.get(network, {}) | OWN_RECIPES.get(f"{network}-{variant}", {}))
    return config


def contrastive(method: str, network: str, preset: str = "paper") -> ConfigDict:
    """Contrastive pre-training on 2-D images from two random views of each.

    method: "moco_v3" or "simclr".
    network: "vit" or "resnet".
    preset: "paper", or "upstream" for the published commands.
    """
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

    The recipe is MAE's fine-tuning without mixup and cutmix.
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
        "task.loss": "ce", "task.auxiliary_weight": 0.4, "optim.scale_lr": False, "optim.base_lr": 1e-4, "optim.layer_decay": layer_decay.get(encoder, 1.0),
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
    if organ == "ovary":  # the official split, as a CSV
        return change(config, {"data.name": "manifest", "select.metric": "f1_macro"})
    return change(config, {"data.split": "train+pool", "data.val_split": "auto", "data.test_split": "auto"})


def pick(arguments: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """Parse the comma-separated words after `config.py:`.

    Returns one word from each group of `choices`; the first word of a group is its default.
    """
    picked = [group[0] for group in choices]
    for word in filter(None, (word.strip() for word in arguments.split(","))):
        group = next((i for i, group in enumerate(choices) if word in group), None)
        if group is None:
            raise unknown("--config", word, [name for group in choices for name in group])
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
        _unset(config, name)
    return config


def _default(field: Field) -> Any:
    if field.kind is not None:
        return config_dict.FieldReference(field.default, field_type=field.kind)
    return config_dict.placeholder(field.default) if isinstance(field.default, type) else field.default


def _unset(config: ConfigDict, name: str) -> None:
    """Make a field unset and keep its type."""
    node, leaf = _node(config, name)
    kind = node.get_type(leaf)
    del node[leaf]
    node[leaf] = config_dict.placeholder(kind)


def _node(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    """The section that holds the field of this dotted name, and the field's own name."""
    *sections, leaf = name.split(".")
    for section in sections:
        config = config[section]
    return config, leaf


def change(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """Set fields by their dotted names; returns `config`."""
    for name, value in values.items():
        node, leaf = _node(config, name)
        node[leaf] = value
    return config


def copy(config: ConfigDict, values: dict[str, Any] | None = None) -> ConfigDict:
    """Copy a config, with type checks off, and set `values` in the copy by their dotted names."""
    return change(ConfigDict(config.to_dict(), type_safe=False), values or {})


def flat(config: ConfigDict) -> dict[str, Any]:
    """Flatten a config to dotted names and plain values. Tuples become lists, as JSON reads them back."""
    out: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, (dict, ConfigDict)):
                walk(f"{name}.", value)
            else:
                out[name] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return out


def nested(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `flat`. Lists become tuples."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        node = out
        *sections, leaf = name.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return ConfigDict(out, type_safe=False)


def fields_of(kind: str) -> dict[str, Field]:
    """The fields of a kind of run by dotted name."""
    return {
        f"{section}.{name}" if section else name: field
        for section, groups in GROUPS[kind].items()
        for group in groups
        for name, field in group.items()
    }


def without_source(axes: int) -> dict[str, Any]:
    """The value of every field that a run could inherit, for a run that starts from scratch.

    axes: spatial axes of the images, 2 or 3.
    """
    kind = "finetuning" if axes == 2 else "volume_segmentation"
    fields, from_scratch = fields_of(kind), FROM_SCRATCH.get(kind, {})
    values = {name: from_scratch.get(name, fields[name].default) for name in INHERITS[kind]}
    return {name: None if isinstance(value, type) else value for name, value in values.items()}


def decoding(config: ConfigDict) -> list[Any]:
    """The settings that change the decoded values of an image."""
    values = config.data.to_dict()
    return [values[name] for name in DECODING if name in values]


_KIND_OF_TASK = {"masked_recon": "pretraining", "disrupted_recon": "volumes", "pretext": "pretext", "classify": "finetuning",
                 "probe": "probe", "blur_search": "blur_search"}  # fmt: skip


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Convert a flat config written by version 0.1 to the fields of this version.

    A config that has every field of this version is returned unchanged. New fields get their defaults. Fields that the run never used are dropped. A size of 0, which meant "set by the
    variant", becomes unset. A config whose task is not in this library is returned unchanged.
    """
    task = values.get("task.name")
    kind = _KIND_OF_TASK.get(str(task))
    if task == "segment":
        kind = "volume_segmentation" if "data.ct_window" in values else "segmentation"
        if values.get("model.name") == "segmenter":
            kind = f"segmenter_{values['model.encoder']}"
    if kind is None:
        return values
    own_model = VALUES[kind].get("model.name", VIT["name"].default)
    if all(name in values for name in fields_of(kind) if not name.startswith("model.")):
        return values  # written by this version; further fields are the user's own
    out = {}
    for name, field in fields_of(kind).items():
        if name.startswith("model.") and values.get("model.name") != own_model:
            continue  # fields of a network that is not part of this library
        default = None if isinstance(field.default, type) else field.default
        value = values.get(name, list(default) if isinstance(default, tuple) else default)
        out[name] = None if isinstance(field.default, type) and not value else value
    # Keep further settings of a model from a weight file, such as its mlp_ratio.
    return out | {k: v for k, v in values.items() if k.startswith("model.") and k not in out}


def reference() -> str:
    """The reference page, in Markdown."""
    lines = [
        "# Config fields",
        "",
        "Every run has one config: a file of `configs/`, changed on the command line with `--config.<field>=<value>`.",
        "A field that is *unset* is taken from the network in `config.init_from`, or from the variant of the model.",
        "",
        "This page is generated by `python -m deblur_mae_jax.config`.",
    ]
    seen: dict[int, None] = {}
    for section in ("", "task", "model", "data", "augment", "search", "select", "infer", "probe", "optim", "sharding", "checkpoint", "log", "report"):  # fmt: skip
        lines += ["", f"## {f'config.{section}' if section else 'config'}"]
        rows: dict[str, list[str]] = {}  # by the kinds of run that have them
        for groups in GROUPS.values():
            for group in groups.get(section, ()):
                if id(group) in seen:
                    continue
                seen[id(group)] = None
                users = [k for k, g in GROUPS.items() if any(x is group for x in g.get(section, ()))]
                table = rows.setdefault(_kinds(users), [])
                table += [_row(section, name, field) for name, field in group.items()]
        for kinds, table in rows.items():
            lines += ["", f"In {kinds}:", "", "| field | default | meaning |", "|---|---|---|", *table]
    lines += ["", "## Kinds of run", "", "The functions of `deblur_mae_jax/config.py`, and where each differs from the defaults."]  # fmt: skip
    for kind, values in VALUES.items():
        unset = ", ".join(f"`{name}`" for name in INHERITS.get(kind, ()))
        lines += ["", f"### {kind}", "", "| field | value |", "|---|---|"]
        lines += [f"| `{name}` | `{value!r}` |" for name, value in values.items()]
        lines += [f"| `{name}` with preset `upstream` | `{value!r}` |" for name, value in UPSTREAM.get(kind, {}).items()]  # fmt: skip
        lines += ["", f"Unset, so inherited from `config.init_from`: {unset}."] if unset else []
    return "\n".join(lines).replace("|`", "| `") + "\n"


def _kinds(users: list[str]) -> str:
    """Kinds of run for the reference page, by those that are left out where these are fewer."""
    others = [kind for kind in GROUPS if kind not in users]
    listed = lambda names: ", ".join(f"`{name}`" for name in names)
    if not others:
        return "every kind of run"
    return listed(users) if len(users) <= len(others) else f"every kind of run but {listed(others)}"


def _row(section: str, name: str, field: Field) -> str:
    default = "unset" if isinstance(field.default, type) else f"`{field.default!r}`"
    meaning = field.meaning.replace("|", "\\|")
    return f"| `config.{section + '.' if section else ''}{name}` | {default} | {meaning} |"


if __name__ == "__main__":
    print(reference(), end="")
