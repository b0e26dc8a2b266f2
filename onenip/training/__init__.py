"""Training: normal images to a calibrated detector.

Knows the detector, the data set and synthetic anomalies; knows no registry and no orchestrator.
"""
