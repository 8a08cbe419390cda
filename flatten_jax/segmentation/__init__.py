"""Semantic segmentation: heads over the maps of a backbone, data, training and pictures."""
