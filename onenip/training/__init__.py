"""Training: normal images to a calibrated detector.

Uses the detector, the data set and synthetic anomalies; knows no registry or orchestrator.
"""
