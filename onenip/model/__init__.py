"""The model: backbone features, reconstruction, refiner and memory, composed as one network, and its file.

Knows tensors and params; knows no images on disk, no data set and no training.
"""
