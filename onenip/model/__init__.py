"""The model: backbone features, reconstruction, refiner and memory, composed as one network, and its file.

Takes tensors and params; knows no image files, data set or training.
"""
