"""Apply a trained network to whole images: blur search, segmentation, attention maps."""
