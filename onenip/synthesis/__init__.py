"""Synthetic anomalies: drawing them, the noise and textures used, and the stored bank.

Takes images and params; knows no model or training.
"""
