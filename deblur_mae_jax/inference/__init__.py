"""Whole images through a trained network: blur search, segmentation, attention maps."""
