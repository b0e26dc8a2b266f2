"""The architecture as tests: one word per stage everywhere, and a stage reruns for what it imports."""

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command

import onenip
from onenip.cli import COMMANDS, app
from onenip.errors import ParamsError
from onenip.params import Params
from onenip.params.presets import list_presets, load_preset, render
from onenip.version import __version__
from onenip.workspace.code import STAGES, list_modules
from tests.paths import ROOT

DVC_STAGES = STAGES
ALL_STAGES = ("download", *DVC_STAGES, "register")
COMMAND_LINE = get_command(app)


def read_graph(path=ROOT / "dvc.yaml"):
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(path.read_text())


def file_of(name):
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def import_closure(stage):
    """Packages, and modules that lie in none, that a stage's code consists of, relative to the root."""
    relative = (path.relative_to(ROOT) for path in list_modules(stage))
    return {
        (
            path if len(path.parts) == 2 or path.parts[1] == "stages" else Path(*path.parts[:2])
        ).as_posix()
        for path in relative
    }


@pytest.mark.parametrize("stage", DVC_STAGES)
def test_a_stage_reruns_for_every_module_that_it_imports(stage):
    """The stage's dependencies in dvc.yaml are exactly its import closure, beside data."""
    listed = {d for d in read_graph()["stages"][stage]["deps"] if d.startswith("onenip/")}

    assert listed == import_closure(stage)


def test_a_workspace_has_the_graph_of_this_checkout():
    """Its stages call the installed command, and depend on `onenip.yaml` where these depend on their code."""
    ours = read_graph()
    for name, stage in ours["stages"].items():
        stage["cmd"] = f"onenip {name}"
        stage["deps"] = [d for d in stage["deps"] if not d.startswith(("onenip/", "constraints"))]
        stage["params"].append({"onenip.yaml": [name]})

    assert read_graph(ROOT / "onenip/workspace/template/dvc.yaml") == ours


def test_stages_that_draw_anomalies_depend_on_textures():
    """Photos and pinned libraries are dependencies like data: DVC notices when they change."""
    stages = read_graph()["stages"]

    assert all("constraints.txt" in stages[name]["deps"] for name in DVC_STAGES)
    assert {name for name in DVC_STAGES if "textures" in stages[name]["deps"]} == {
        "synthesize",
        "train",
    }
    with pytest.raises(ParamsError, match=r"synthesize\.textures: .*must be textures/"):
        Params.parse({"synthesize": {"textures": "/elsewhere"}})


def test_anomalies_are_drawn_anew_where_the_size_of_images_changes():
    """Everything that decides on a category's zoom is among the params of the stage."""
    source = (ROOT / "onenip/detector/zoom.py").read_text(encoding="utf-8")
    read = {f"model.{name}" for name in re.findall(r"params\.(\w+)", source)}

    listed = read_graph()["stages"]["synthesize"]["params"]

    assert read
    assert read - {"model.zoomed_size"} <= set(listed)


def test_a_stage_has_one_name_everywhere():
    """dvc.yaml, the modules in onenip/stages and the commands say the same words."""
    commands = set(COMMAND_LINE.commands)
    modules = {path.stem for path in (ROOT / "onenip/stages").glob("[a-z]*.py")}

    assert tuple(read_graph()["stages"]) == DVC_STAGES
    assert set(ALL_STAGES) <= commands
    assert set(ALL_STAGES) <= modules


@pytest.mark.parametrize(
    ("title", "example"),
    [(title, example) for panel in COMMANDS.values() for title, (_, example) in panel.items()],
)
def test_the_example_of_a_command_is_one(title, example):
    """What `--help` shows as an example of a command is accepted by that command's parser."""
    command = COMMAND_LINE
    for name in title.split():
        command = command.commands[name]

    assert command.make_context(title, shlex.split(example.removeprefix(f"onenip {title}")))
    assert f"Example: `{example}`" in command.epilog


def parse_code():
    """Each module of the product with its syntax tree, by its path."""
    for path in sorted([*ROOT.glob("onenip/**/*.py"), *ROOT.glob("flows/*.py")]):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def find_modules(matches):
    """Modules in whose code a node is that `matches` accepts."""
    return {name for name, tree in parse_code() if any(map(matches, ast.walk(tree)))}


def is_text(node, start):
    return isinstance(node, ast.Constant) and str(node.value).startswith(start)


def moves_a_file(node):
    """`os.replace(a, b)`, `path.replace(b)` or `path.rename(b)`; text has two arguments to `replace`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    is_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    return node.func.attr in ("replace", "rename") and (is_os or len(node.args) == 1)


def test_files_are_written_whole_in_one_place():
    """Who else renames moves what is complete already: a download, an arrival, a workspace."""
    movers = {
        "onenip/inference/export.py",
        "onenip/ingestion/ingest.py",
        "onenip/registry/store.py",
        "onenip/registry/tracking.py",
        "onenip/workspace/files.py",
    }
    found = {name for name in find_modules(moves_a_file) if not name.startswith("onenip/sources/")}

    assert found <= {"onenip/folders.py", *movers}


def test_outputs_have_their_paths_from_one_place():
    """Nobody else spells a path below `artifacts/`, or knows the name of the file of figures."""
    paths = find_modules(lambda node: is_text(node, "artifacts/"))
    figures = find_modules(
        lambda node: isinstance(node, ast.Constant) and node.value == "metrics.json"
    )

    assert paths <= {"onenip/data/outputs.py"}
    assert {name for name in figures if not name.startswith("onenip/evaluation/")} <= {
        "onenip/data/outputs.py"
    }


def test_a_prediction_has_one_dict_form():
    """Only one module builds a dict with score, verdict and regions."""

    def is_prediction(node):
        keys = {getattr(key, "value", None) for key in getattr(node, "keys", ())}
        return isinstance(node, ast.Dict) and {"score", "verdict", "regions"} <= keys

    assert find_modules(is_prediction) == {"onenip/detector/prediction.py"}


def test_params_yaml_is_the_default_preset():
    """params.yaml lists every param with its explanation, as `onenip preset cpu` writes it."""
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == render(load_preset("cpu"))
    assert Params.load(ROOT / "params.yaml") == Params()


def test_every_params_section_that_a_stage_lists_exists():
    """dvc.yaml names sections of params.yaml, and the sections of the graph are all used."""
    known = set(Params().dump())
    listed = [p for s in read_graph()["stages"].values() for p in s.get("params", [])]
    used = {p for p in listed if isinstance(p, str)}

    assert {p.split(".")[0] for p in used} <= known
    assert {"validate", "synthesize", "model", "train", "calibrate", "evaluate", "seed"} <= {
        p.split(".")[0] for p in used
    }


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_loads(name):
    """A preset is legal params."""
    assert isinstance(load_preset(name), Params)


def test_every_param_is_explained():
    """Each field of each section has a description."""
    for section in Params.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        missing = [name for name, field in fields.items() if not field.description]
        assert not missing


def test_public_names():
    """`from onenip import` offers these, and no more."""
    assert sorted(onenip.__all__) == ["Detector", "Prediction", "Region", "__version__"]
    assert all(hasattr(onenip, name) for name in onenip.__all__)


def test_version_is_the_changelogs_newest():
    """The version in code is the topmost of the changelog."""
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)

    assert newest is not None
    assert newest[1] == __version__


def test_the_makefile_has_its_fixed_targets():
    """Nobody has to look up how things are called."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))

    assert {"help", "install", "demo", "test", "check", "fix", "up", "down"} <= targets
    assert {"docs", "bench", "lock", "sbom", "audit", "acceptance"} <= targets


def test_all_that_is_installed_is_pinned_and_hashed():
    """constraints.txt pins what a checkout needs, locked.txt has a hash of each, and nothing else comes."""
    pins = read_pins("constraints.txt")
    hashed = (ROOT / "locked.txt").read_text().split("--hash=sha256:")
    needed, seen = ["onenip[dev]", "setuptools"], set()
    while needed:
        wanted = Requirement(needed.pop())
        name, extras = canonicalize_name(wanted.name), wanted.extras or {""}
        if (name, *extras) in seen:
            continue
        seen.add((name, *extras))
        asked = importlib.metadata.requires(name) or []
        needed += [
            text
            for text in asked
            if (marker := Requirement(text).marker) is None
            or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
        ]

    assert {name for name, *_ in seen} - {"onenip"} <= pins.keys()
    assert read_pins("locked.txt") == pins
    assert len(hashed) > len(pins)
    assert all(re.match(r"[0-9a-f]{64}\s", text) for text in hashed[1:])
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert build == [f"setuptools=={pins['setuptools']}"]


def read_pins(file):
    """Version by canonical name."""
    found = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(), re.M)
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize(("kind", "brings_torch"), [("editable", True), ("wheel", False)])
def test_a_checkout_needs_everything_and_a_wheel_is_light(tmp_path, kind, brings_torch):
    """`pip install -e .` alone trains; a built distribution leaves torch to the extra `full`."""
    pytest.importorskip("setuptools", minversion="77")
    script = (
        "import sys; sys.path.insert(0, 'build_backend'); import checkout_backend as backend; "
        f"backend.prepare_metadata_for_build_{kind}({str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)

    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    lines = [x for x in metadata.read_text().splitlines() if x.startswith("Requires-Dist")]
    needed = [line for line in lines if "extra ==" not in line]
    assert any("torch>=" in line for line in needed) == brings_torch
    assert any("numpy" in line for line in needed)
