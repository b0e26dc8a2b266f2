"""The detector: images to maps, scores, regions and verdicts, with the calibration of each category.

Knows the model and images; knows no training, no data set on disk and no registry.
"""
