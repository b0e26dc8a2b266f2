"""Write the golden numbers anew, after a change that is meant: `python -m tests.golden.write`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from tests.recipe import compute_numbers

GOLDEN = Path(__file__).with_name("numbers.safetensors")

if __name__ == "__main__":
    save_file(compute_numbers(), GOLDEN)
