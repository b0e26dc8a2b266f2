"""Where the checkout lies, its test inputs, and the real images beside it, which may be absent."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests/cases"  # what cameras and people delivered; a README in each says what it is
SHARED = ROOT.parent / "shared"
