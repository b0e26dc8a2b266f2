"""The documentation: links resolve, what it names exists, commands are ones, and the site builds."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.main import get_command

from onenip.cli import app
from onenip.data.outputs import OUTPUTS
from onenip.operation.notices import ARRIVED_EVENT, DRIFT_EVENT
from onenip.params import Params
from tests.paths import ROOT

COMMAND_LINE = get_command(app)
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if path.name != "CHANGELOG.md"
)
NOT_RUN = 'title="not run by a test"'
SHELL = {"cd", "export", "source", "python3"}  # with what any user's shell has, nothing is checked


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def find_blocks(page, *, is_run):
    """Fenced blocks of commands: those that tests run, or those that are marked as not run."""
    blocks = re.findall(r"^```bash(.*)\n((?:.*\n)*?)^```$", read(page), re.M)
    return [text for mark, text in blocks if is_run == (NOT_RUN not in mark)]


def find_commands(page, *, is_run=True):
    """Words of each command in the page's blocks."""
    for line in "".join(find_blocks(page, is_run=is_run)).replace("\\\n", " ").splitlines():
        words = shlex.split(line.rstrip("& "), comments=True)
        if words:
            yield words


def parse_onenip(words):
    command, context = COMMAND_LINE, None
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            pytest.fail(f"no command {words[:1]}")
        command, words = command.commands[words[0]], words[1:]
    command.make_context("onenip", list(words), parent=context)


def parse_make(words):
    assert set(words) <= set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))


def parse_dvc(words):
    from dvc.cli.parser import get_main_parser

    get_main_parser().parse_args(words)


def parse_python(words):
    assert words[0] == "-m"
    assert ROOT.joinpath(*words[1].split(".")).with_suffix(".py").is_file()


PARSERS = {
    "onenip": parse_onenip,
    "make": parse_make,
    "dvc": parse_dvc,
    "python": parse_python,
}


def test_every_command_is_run_or_marked_as_not():
    """What has no mark is in the tutorial, which a test runs as it stands."""
    run = [words for words in find_commands("docs/tutorial.md") if words[0] not in SHELL]
    unmarked = [words for page in PAGES for words in find_commands(page) if words[0] not in SHELL]

    assert run
    assert not [words for words in unmarked if words not in run]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page):
    """Our programs and DVC read the arguments and options of their commands, run or not, without an error."""
    for words in [*find_commands(page), *find_commands(page, is_run=False)]:
        if parse := PARSERS.get(Path(words[0]).name):
            parse(words[1:])


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    """Files and headings that a page links to are there."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if heading and "from code:" not in file.read_text(encoding="utf-8"):
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles]
            assert heading in slugs, target


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    """Modules, files and commands that a page names are there."""
    text = read(page)
    paths = re.findall(r"(?<![\w./])((?:onenip|flows|tests|docs|benchmarks)/[\w/.-]*\w)", text)
    modules = re.findall(r"`((?:onenip|flows|benchmarks)(?:\.[a-z_0-9]+)+)`", text)
    runs = re.findall(r"python -m ((?:flows|benchmarks)(?:\.\w+)*)", text)
    words = re.findall(r"(?:`|bin/)onenip ([a-z][a-z-]*)", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    for name in {*modules, *runs} - {ARRIVED_EVENT, DRIFT_EVENT, "onenip.yaml"}:
        path = ROOT.joinpath(*name.split("."))
        missing += [] if path.exists() or path.with_suffix(".py").is_file() else [name]
    missing += [word for word in words if word not in COMMAND_LINE.commands]

    assert not missing


def test_every_page_is_in_the_navigation():
    """A page that no menu leads to is found by nobody; decisions are added by themselves."""
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    menu = read("mkdocs.yml")

    assert not [page for page in pages if not page.startswith("adr/") and page not in menu]


def test_pages_that_code_names_exist():
    """Comments, help and messages name pages of the documentation that are there."""
    sources = [
        *ROOT.glob("onenip/**/*.py"),
        *ROOT.glob("flows/*.py"),
        *ROOT.glob("benchmarks/*.py"),
    ]
    names = {
        n for path in sources for n in re.findall(r"docs/[\w/-]+\.md", path.read_text("utf-8"))
    }

    assert names
    assert not [name for name in names if not (ROOT / name).is_file()]


def test_every_output_and_variable_is_in_the_reference():
    """`files.md` has all outputs, `commands.md` all variables that a user may set."""
    files, commands = read("docs/reference/files.md"), read("docs/reference/commands.md")
    inner = {"ONENIP_FLOW_PROCESS", "ONENIP_URL_"}  # set by onenip itself; a prefix
    names = set()
    for path in [*ROOT.glob("onenip/**/*.py"), *ROOT.glob("flows/*.py")]:
        names |= set(re.findall(r"ONENIP_[A-Z_]+", path.read_text("utf-8")))
    names = {name for name in names - inner if not name.startswith("ONENIP_INSPECT")}
    folders = {"/".join(path.parts[:2]) for path in vars(OUTPUTS).values() if len(path.parts) > 1}

    assert not [name for name in names if f"`{name}`" not in commands]
    assert not [folder for folder in folders if f"`{folder}" not in files]


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_outside(tmp_path):
    """A broken link or an unknown part made from code stops the build; pages open without a network."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    outside = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?://[^\" >]+)")
    loaded = {found for text in pages for found in outside.findall(text)}

    assert "onenip predict" in (tmp_path / "reference/commands.html").read_text(encoding="utf-8")
    assert not loaded


def start_server(command, *, address, env, cwd):
    """Start a command that runs until it is stopped, see it answer, and stop it."""
    process = subprocess.Popen(command, env=env, cwd=cwd, start_new_session=True)
    try:
        wait_for_answer(address, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def wait_for_answer(address, process):
    while process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(address, timeout=30).raise_for_status()
            return
        time.sleep(1)
    pytest.fail(f"{process.args} ended with {process.returncode}")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_tutorial_runs_as_it_stands(tmp_path):
    """Its commands, in their order, lead from an empty folder to an approved model that answers.

    The training is cut short: what is tried are the commands.
    """
    servers = {"inspect": "http://127.0.0.1:8501", "serve": "http://127.0.0.1:8000/ready"}
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    folder = tmp_path
    for words in find_commands("docs/tutorial.md"):
        if words[0] == "cd":
            folder /= words[1]
        elif words[1] in servers:
            start_server(words, address=servers[words[1]], env=env, cwd=folder)
        else:
            subprocess.run(words, env=env, cwd=folder, check=True, stdin=subprocess.DEVNULL)
        if words[1] == "init":
            params = folder / words[2] / "params.yaml"
            params.write_text(params.read_text().replace("max_steps: 150 ", "max_steps: 2 "))
            assert Params.load(params).train.max_steps == 2

    assert list((folder / "out").rglob("*.png"))
