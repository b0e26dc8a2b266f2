"""`python -m onenip`: the command line."""

from __future__ import annotations

from onenip.cli import main

if __name__ == "__main__":
    main()
