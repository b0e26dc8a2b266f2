import subprocess
import sys

from onenip.stages import validate


def test_stage_writes_what_the_graph_declares(tiny_data, tiny_params, tmp_path):
    """The stage leaves the manifest, the quarantine, the summary and the Data Docs."""
    result = validate.run(tiny_params, data_dir=tiny_data, out_dir=tmp_path / "validation")
    names = {path.name for path in (tmp_path / "validation").iterdir()}

    assert result.manifest == tmp_path / "validation/manifest.csv"
    assert names == {"manifest.csv", "quarantine.csv", "summary.json", "data_docs"}


def test_command_ends_with_two_and_one_line(tmp_path):
    """A user's mistake is one line on stderr and exit status 2."""
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    done = subprocess.run(
        [sys.executable, "-m", "onenip", "validate", "--data", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr == "onenip: nowhere: no such folder; run `onenip download` first\n"
