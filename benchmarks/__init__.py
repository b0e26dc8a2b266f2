"""Each claim of speed or quality as a command; `python -m benchmarks` lists them."""
