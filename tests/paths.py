"""Where the checkout lies, and the real images beside it, which may be absent."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
