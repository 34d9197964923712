"""Measures computed from arrays: classification, segmentation, statistics, similarity of features."""
