"""Every field of a run's config, once: its default and its meaning, in groups by section and kind of run."""

from __future__ import annotations

from typing import Any, NamedTuple


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
    "init_from": Field("", 'Weights to start from: the workdir of a run, or a weight file of this library, MAE, DeblurringMIM, ConvMAE, MoCo v3, SimMIM, BEiT, USFM, timm, torchvision, Hugging Face, MONAI or DAE. "": from scratch.'),
}  # fmt: skip
TRAINING: Group = {
    "hang_minutes": Field(10.0, "Minutes after which a training step that does not end ends the run, with exit code 124 and the stack of every thread. At least 20 typical steps. 0: never."),
    "init_strict": Field(True, "Refuse weights that do not fit the network. False: take what fits."),
    "init_parts": Field("both", "Parts of `init_from` to take: both | encoder | decoder."),
}  # fmt: skip
TASK: Group = {
    "name": Field("", "What is trained: a file of `deblur_mae_jax/tasks`, or a command: blur_search | probe."),
}
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
    "mlp_ratio": Field(4.0, "Hidden width of an MLP, in widths of the network."),
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
    **{name: VIT[name] for name in ("in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "conditioning", "level_code", "attention")},
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
    "fraction": Field(1.0, "Share of the images to use, chosen by the seed; with labels, of the training images, chosen by `split_seed`, at least one of each class."),
    "num_images": Field(600, "Number of phantoms."),
    "side": Field(160, "Height of a phantom, pixels; side of a phantom volume, voxels."),
    "phantom_seed": Field(0, "Seed of the phantoms."),
    "num_threads": Field(4, "Threads that read images."),
    "check": Field("pixels", "What is checked before training: pixels (decode every file) | header."),
    "max_bad_fraction": Field(0.2, "Stop when a larger share of the files cannot be used."),
    "max_pixels": Field(50_000_000, "Refuse larger images: pixels, or voxels of a volume."),
}  # fmt: skip
STORE: Group = {
    "store": Field("auto", "Where the images stay: resident (device memory) | streaming (read again in every epoch) | auto."),
    "num_workers": Field(0, "Processes that read ahead for the streaming store. 0: threads read."),
}  # fmt: skip
IMAGES: Group = {
    "tfds_name": Field("", "Name of a TensorFlow Datasets set, with data.name=tfds_source."),
    "mean": Field((), "Mean of the 0..1 gray scale, one value per channel. (): ImageNet's, averaged over the colours for one channel."),
    "std": Field((), "Standard deviation of the 0..1 gray scale; like `mean`."),
    "gray_target": Field(False, "With three channels: make the target gray too."),
    "frames": Field("uniform(8)", "Frames of a DICOM clip: uniform(8) | every(1.0 s) | all | first | middle."),
    "crop": Field("auto", "Part of a DICOM ultrasound picture: auto (its regions, else the fan) | regions | none."),
    "window": Field("", 'Window of DICOM pictures: "low,high", or lung | soft | bone | brain | liver for CT. "": the file\'s own.'),
    "max_side": Field(1024, "Shrink larger images to this when they are read, pixels; a blur at native resolution comes after it. 0: never."),
    "min_side": Field(16, "Leave smaller images out, pixels."),
    "bits16": Field("minmax", "How 16-bit gray levels become 8-bit: minmax (the image's own range) | full."),
}  # fmt: skip
CROPS: Group = {
    "crop_scale": Field((0.2, 1.0), "Range of the area of a random crop, as a share of the image."),
    "crop_ratio": Field((3 / 4, 4 / 3), "Range of the width / height of a random crop, relative to that of `image_size`."),
    "crop_rejection": Field(True, "Draw crops that do not fit the image again. False: cut them to the image (linear probe)."),
    "flip": Field(True, "Flip left and right at random."),
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
    "folds": Field(5, "Number of folds. 5 folds give the papers' 3:1:1."),
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
    "setting": Field("auto", "How the blur level of each image is found: auto | none | fixed(SIGMA OF A LEVEL) | search(2) | online(2) | random | oracle."),
    "high_pass": Field(0.0, "Compare only what a Gaussian blur of this sigma removes from the error, pixels of the network's input. 0: the whole error, as in Algorithm 1."),
    "batch_size": Field(64, "Forward passes at once: images times levels."),
    "cache": Field("auto", 'Folder that keeps the results between runs. "": none.'),
}  # fmt: skip
SELECT: Group = {
    "metric": Field("accuracy", "Measure on the validation images that selects the best weights."),
}
PATIENCE: Group = {
    "patience_epochs": Field(0.0, "Stop so many epochs after the best. 0: never."),
}  # fmt: skip
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
    "warmup_epochs": Field(40.0, "Length of the warm-up, epochs; with `steps` at most a tenth of the run."),
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
    "monitor_images": Field(200, "Largest number of these images that are used."),
    "monitor_share": Field(0.02, "Largest share of the run's time for these evaluations; the first is always made."),
}  # fmt: skip
REPORT_LABELS: Group = {
    "audit": Field("near", "Search for copies across splits: near (perceptual hashes too) | identical."),
}
REPORT_SEGMENTATION: Group = {
    "tolerance": Field(1.0, "Surfaces within this distance count as equal (surface Dice): mm, or pixels."),
    "empty": Field("skip", "A label that the truth or the prediction lacks: skip | count."),
}
