"""Synthetic anomalies: how they are drawn, the noise and textures they are made of, and the stored bank.

Knows images and params; knows nothing of models or training.
"""
