"""DeblurrMAE, size of the ViT (paper, figure 3)."""

from studies import common

# Width, blocks and heads for the `cpu` preset.
_SMALL = {"Ti": (64, 2, 2), "S": (96, 3, 3), "B": (128, 3, 4), "L": (192, 6, 6)}


def get_study(preset):
    """One row for each size; those of the `cpu` preset are much smaller."""
    if preset == "cpu":
        names = ("model.embed_dim", "model.depth", "model.num_heads")
        rows = {f"like ViT-{size}": dict(zip(names, sizes, strict=True)) for size, sizes in _SMALL.items()}
    else:
        rows = {f"ViT-{size}": {"model.variant": size} for size in ("Ti", "S", "B", "L")}
    return common.ablation(preset, "DeblurrMAE: size of the ViT", rows)
