"""The stage `train`: a finished training is done again when it is asked for again."""

import csv

from onenip.data.outputs import Outputs
from onenip.stages import synthesize, train, validate
from onenip.training import step
from tests.tiny import make_tiny_params


def test_a_changed_loss_trains_anew(tiny_data, tmp_path, monkeypatch):
    """A finished training leaves no checkpoint: run again with another loss, it gives another model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    params, outputs = make_tiny_params(), Outputs()
    validate.run(params, data_dir=tiny_data, out_dir=outputs.validation)
    inputs = {"data_dir": tiny_data, "manifest": outputs.manifest}
    synthesize.run(params, **inputs, out_dir=outputs.synthesis)

    def run():
        found = train.run(
            params,
            **inputs,
            synthesis_dir=outputs.synthesis,
            out_dir=outputs.model,
            curves_dir=outputs.curves,
        )
        return found.digest

    first = run()
    with (outputs.curves / "curves.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [1, 2, 3, 4]
    assert not any(outputs.checkpoint.iterdir())
    exact = step.feature_mse
    monkeypatch.setattr(step, "feature_mse", lambda a, b: 2 * exact(a, b))
    assert run() != first
