"""A tiny training by several processes.

    python -m tests.training.shared_training DATA FOLDER PROCESSES BATCH

Fabric starts the further processes by running this very command again; the first one writes the losses.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.tiny import fit_tiny, make_tiny_params


def make_params(*, devices: int, batch_size: int, accumulate_steps: int = 1):
    """Params under which only the division of a step's samples differs; dropout is another in each."""
    base = make_tiny_params().dump()
    return make_tiny_params(
        model={**base["model"], "dropout": 0.0, "refiner_dropout": 0.0},
        train={
            **base["train"],
            "devices": devices,
            "batch_size": batch_size,
            "accumulate_steps": accumulate_steps,
            "epochs": 3,
            "max_steps": 4,
            "log_steps": 1,
            "learning_rate": 1e-4,  # so that steps do not magnify the last bit of a sum
        },
    )


if __name__ == "__main__":
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    params = make_params(devices=int(sys.argv[3]), batch_size=int(sys.argv[4]))
    rank = os.environ.get("LOCAL_RANK", "0")
    history = fit_tiny(data, params, folder / rank, checkpoint=folder / "checkpoint").record.history
    if rank == "0":
        (folder / "history.json").write_text(json.dumps(history))
