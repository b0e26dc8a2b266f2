"""What is installed at a customer's: container files, systemd units, and light installs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from flows import stack
from onenip.data.outputs import OUTPUTS
from tests.paths import ROOT
from tests.test_docs import parse_onenip

DEPLOY = ROOT / "deploy"
NOT_FOR_SERVING = (
    "prefect", "dvc", "great_expectations", "streamlit", "lightning_fabric", "imagehash", "jinja2",
    "aiobotocore", "filelock", "httpx",
)  # fmt: skip
SERVE = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
from onenip.serving.champions import Follower
from onenip.serving.connections import run_server
from onenip.serving.web import ServeSettings, build_app
import asyncio
from pathlib import Path
follower = Follower.of_folder(Path({model!r}))
assert build_app(follower, ServeSettings()).routes
from onenip import Detector
from onenip.images import load_image
print(Detector.load({model!r}).predict([load_image(Path({image!r}))], category="disc")[0].verdict)
import onenip.registry.champions, onenip.registry.approval
"""


def test_serving_needs_neither_prefect_nor_dvc(tiny_model, tiny_data):
    """With what `onenip[serve]` leaves out blocked, the server is built and a model answers."""
    image = next((tiny_data / "disc/test/good").iterdir())
    program = SERVE.format(blocked=NOT_FOR_SERVING, model=str(tiny_model), image=str(image))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] in {"normal", "anomalous"}  # after what a library says


def test_the_compose_file_fits_together():
    """It parses; services wait for known ones, mount known volumes, and secrets are all in the example."""
    text = (DEPLOY / "compose.yaml").read_text()
    content = YAML(typ="safe", pure=True).load(text)
    services, volumes = content["services"], set(content["volumes"])
    example = (DEPLOY / "example.env").read_text()
    wanted = set(re.findall(r"\$\{(\w+):\?\}", text))
    mounts = [m.split(":")[0] for one in services.values() for m in one.get("volumes", [])]
    ports = [p for one in services.values() for p in one.get("ports", [])]

    assert wanted == set(re.findall(r"^(\w+)=$", example, re.M))
    for service in services.values():
        assert set(service.get("depends_on", [])) <= services.keys()
    assert all((DEPLOY / m).is_file() if m.startswith("./") else m in volumes for m in mounts)
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_containers_are_set_up_as_up_does_it(tmp_path, monkeypatch):
    """What `onenip up` sets for each server is set there, too; nothing calls home."""
    monkeypatch.chdir(tmp_path)
    stack.FOLDER.mkdir(parents=True)
    login = dict.fromkeys(
        ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), "x"
    )
    wanted = {
        "prefect": stack._prefect_settings("http://127.0.0.1:4200", login),
        "mlflow": stack._mlflow_settings("http://127.0.0.1:5000", login),
    }
    services = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]
    quiet = {"DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_UI_V2_ENABLED"}

    for name, settings in wanted.items():
        assert settings.keys() | quiet <= services[name]["environment"].keys()
    assert "-master.telemetry=false" in services["s3"]["command"]


def test_volumes_belong_to_the_user_of_the_image():
    """Where a volume is mounted there is a folder of that user's, or a new volume would be root's."""
    services = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]
    mounts = [m for one in services.values() if "build" in one for m in one["volumes"]]
    targets = {m.split(":")[1] for m in mounts if not m.startswith("./")}
    (made,) = re.findall(
        r"install -d -o onenip (.+)$", (DEPLOY / "Containerfile").read_text(), re.M
    )

    assert targets <= set(made.split())


def test_commands_of_the_deployment_are_ones():
    """Compose file and units call commands with options that exist; answers are kept where the page looks."""
    services = YAML(typ="safe", pure=True).load((DEPLOY / "compose.yaml").read_text())["services"]
    commands = [s["command"] for s in services.values() if "build" in s and "entrypoint" not in s]
    for unit in (DEPLOY / "systemd").iterdir():
        lines = re.findall(r"^Exec\w+=/srv/onenip/venv/bin/onenip (.+)$", unit.read_text(), re.M)
        commands += map(shlex.split, lines)
    for words in commands:
        parse_onenip(words)
    serving = [words for words in commands if words[0] == "serve"]

    assert {words[0] for words in commands} == {"serve", "inspect", "up", "down"}
    assert all(words[-2:] == ["--recent", str(OUTPUTS.recent)] for words in serving)


def test_the_container_file_has_both_targets():
    """Its stages build on public images or on one another, and every copied file exists."""
    text = (DEPLOY / "Containerfile").read_text()
    stages = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\w+)$", text, re.M)}
    copied = re.findall(r"^COPY ([^-\s]\S*)", text, re.M)

    assert {"server", "edge"} <= stages.keys()
    assert all(base.startswith("docker.io/library/") for base in stages.values())
    assert all((ROOT / name).exists() for name in copied)


def test_nothing_is_installed_unchecked():
    """Each installation takes files by their hashes, or files that were taken so, or this very checkout."""
    files = [ROOT / "Makefile", DEPLOY / "Containerfile", ROOT / "docs/how-to/air-gapped.md"]
    text = "\n".join(path.read_text().replace("\\\n", " ") for path in files)
    commands = re.findall(r"pip (?:install|wheel|download) .*?(?=&&|$)", text, re.M)

    assert len(commands) > 8
    for command in commands:
        words = command.split()
        is_own = words[-1] == "." and "--no-build-isolation" in words
        assert is_own or {"--require-hashes", "--no-index"} & set(words), command


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    """`systemd-analyze verify` finds nothing but that onenip is not installed in /srv."""
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text().replace("/srv/onenip/venv/bin/onenip", "/bin/true")
        (tmp_path / path.name).write_text(text)
    units = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )

    assert len(units) == 3
    assert done.returncode == 0, done.stderr
