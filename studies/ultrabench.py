r"""UltraBench's 14 tasks (Tupper and Gagne 2025, TMLR) for one network: linear probe, fine-tuning, segmentation.

    python scripts/ultrabench_lists.py --root=/data/ultrabench
    python scripts/study.py studies/ultrabench.py --preset=full --finetune_root=/data/ultrabench \
      --init_from=runs/d2mae --output=runs/ultrabench_d2mae

`--init_from` is a run or a weight file. The word after `studies/ultrabench.py:` names another network than a ViT:
resnet, convnext, swin, beit or convvit. A row whose list is not in the folder says so. Splits are UltraBench's; its
validation images choose the weights.
"""

from deblur_mae_jax.errors import unknown
from scripts.ultrabench_lists import CLASSIFY, SEGMENT
from studies import common

# By network: the configs for fine-tuning, for the linear probe and for segmentation.
NETWORKS = {
    "vit": ("finetune:small", "linear_probe", "unetpp:vit"),
    "resnet": ("resnet", "linear_probe:resnet", "unetpp:resnet"),
    "convnext": ("convnext", "linear_probe:convnext", "unetpp:convnext"),
    "swin": ("swin", "linear_probe:swin", "unetpp:swin"),
    "beit": ("beit", "linear_probe:beit", "unetpp:beit"),
    "convvit": ("convvit", "linear_probe:convvit", "unetpp:convvit"),
}
# The preset `cpu` shortens what the configs say; a probe encodes every image once.
_SHORT = {"data.num_threads": 2, "log.tensorboard": False, "optim.warmup_epochs": 1.0}
_BY_ROW = {
    "fine-tuned": {"optim.epochs": 10.0},
    "linear probe": {"task.cache_features": True, "optim.batch_size": 64, "optim.epochs": 90.0},
    "U-Net++": {"optim.epochs": 10.0},
}


def get_study(preset, network="vit"):
    """A row for each task and recipe."""
    if network not in NETWORKS:
        raise unknown("studies/ultrabench.py", network, NETWORKS)
    tuned, probed, segmented = NETWORKS[network]
    kinds = [(f"{task}, {what}", f"classify_{task}.csv", config, what)
             for task in CLASSIFY for what, config in (("linear probe", probed), ("fine-tuned", tuned))]  # fmt: skip
    kinds += [(f"{task}, U-Net++", f"segment_{task}.csv", segmented, "U-Net++") for task in SEGMENT]
    small = preset == "cpu"
    return {
        "title": f"UltraBench, {network}", "pretrain": {}, "finetune": {}, "scratch": {}, "phantoms": {},
        "seeds": common.preset(preset)["seeds"], "quoted": (), "starts": True,
        "methods": {
            name: {
                "list": file, "finetune": config,
                "finetune_overrides": _SHORT | _BY_ROW[what] if small else {},
            }
            for name, file, config, what in kinds
        },
    }  # fmt: skip
