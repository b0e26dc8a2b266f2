"""The data set: its manifest, decoding, validation, and its versions in DVC and Git.

Knows files and images; knows no model.
"""
