"""Flax Linen networks. One file per backbone, each with a `Model(...)`; see `vit_mae.py`."""
