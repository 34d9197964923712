"""Numbers from arrays: classification, segmentation, statistics, similarity of features."""
