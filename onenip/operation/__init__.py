"""What happens by itself: the gate and its evidence, drift, retraining, provisional models, reports, notices.

Knows the registry and the detector; knows no orchestrator.
"""
