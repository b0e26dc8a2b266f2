"""Stages killed at random moments: the same commands end as if they had never been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onenip.images import hash_file
from onenip.model.file import read_model
from tests.paths import ROOT

_RUN = """
from pathlib import Path
from onenip.data.outputs import Outputs
from onenip.stages import evaluate, synthesize, train, validate
from tests.tiny import make_tiny_params

params, to = make_tiny_params(train={"max_steps": 12, "epochs": 6}), Outputs()
Path("started").touch()
data = {"data_dir": Path("data"), "manifest": to.manifest}
validate.run(params, data_dir=Path("data"), out_dir=to.validation)
synthesize.run(params, **data, out_dir=to.synthesis)
train.run(params, **data, synthesis_dir=to.synthesis, out_dir=to.model, curves_dir=to.curves)
evaluate.run(params, **data, model_dir=to.model, out_dir=to.evaluation)
Path("started").unlink()
"""
_MADE = ("validation/manifest.csv", "model/model.safetensors", "evaluation/scores.csv")


@pytest.mark.slow
@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_kills_at_random_moments_change_no_model_and_no_figure(tiny_data, tmp_path, drill):
    """SIGKILL again and again: a model loads or is not there, and the end is the same bytes."""
    chance, kills, ends, seconds = drill.draw(), drill.choose(2, 8), [], 0.0
    for name, count in (("calm", 0), ("killed", kills)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data").symlink_to(tiny_data)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        for attempt in range(count + 1):
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN],
                cwd=folder,
                env=environment,
                start_new_session=True,
                stderr=subprocess.DEVNULL,
            )
            while process.poll() is None and not (folder / "started").exists():
                time.sleep(0.01)
            begun = time.monotonic()
            if attempt < count:
                time.sleep(chance.uniform(0, seconds))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            assert process.wait(timeout=240) in (0, -signal.SIGKILL)
            seconds = seconds or time.monotonic() - begun
            (folder / "started").unlink(missing_ok=True)
            if (folder / "artifacts/model").exists():
                read_model(folder / "artifacts/model")
        made = [hash_file(folder / "artifacts" / made) for made in _MADE]
        left = [path.name for path in Path(folder / "artifacts").rglob(".*")]
        ends.append((made, left))

    assert ends[0] == ends[1]
    drill.note("kills of the stages, at random moments", kills)
