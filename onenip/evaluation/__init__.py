"""The test set, scored: results per image, figures per category, curves and pictures.

- `results`: a result per image, and the folder `artifacts/evaluation` read back
- `category`: collects one category's scores; figures, intervals, defects
- `summary`: what `metrics.json` says
- `curves`: tables behind the plots
- `gallery`: the worst misses, the worst false alarms and a sample, as pictures
"""
