"""Evaluation of the test set: scores per image, figures per category, curves, pictures, report.

- `evaluate`: scores the test images, one at a time, into one folder
- `results`: a score per image, and the files of the folder `artifacts/evaluation`
- `category`: scores of one category; figures, intervals, kinds of defect
- `summary`: content of `metrics.json`
- `metrics`: figures of merit and their bootstrap
- `curves`: tables behind the plots
- `comparison`: two models on the same images
- `gallery`: pictures of the worst misses, the worst false alarms and a sample
- `report`: one HTML file
"""
