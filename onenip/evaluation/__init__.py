"""The test set, scored: results per image, figures per category, curves and pictures.

- `evaluating`: the test images, one at a time, into one folder
- `results`: a result per image, and the folder `artifacts/evaluation` read back
- `category`: collects one category's scores; figures, intervals, defects
- `summary`: what `metrics.json` says
- `curves`: tables behind the plots
- `differences`: two evaluations of the same images
- `gallery`: the worst misses, the worst false alarms and a sample, as pictures
"""
