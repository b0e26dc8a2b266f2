"""What is missing on this machine or in this workspace, each with its remedy."""

from __future__ import annotations

import contextlib
import email.utils
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import httpx
import psutil

from onenip.addresses import hide_secrets
from onenip.data import dvc, git
from onenip.errors import OneNIPError
from onenip.operation.notices import has_address, read_address
from onenip.params import Params
from onenip.sources.inbox import open_inbox
from onenip.version import __version__
from onenip.workspace.files import require_current

_DISK_GIB = 5.0  # of images, cache and models before anybody looks again
_MEMORY_GIB = 3.0  # that a training with the preset cpu takes
_CLOCK_SECONDS = 60.0  # S3 refuses requests from 15 minutes on
_ANSWER_SECONDS = 5.0
_STACK = Path(".onenip/stack/env")
_NEEDED = ("torch", "timm", "dvc", "great_expectations", "prefect", "mlflow", "streamlit")
_SERVERS = {"PREFECT_API_URL": "/health", "MLFLOW_TRACKING_URI": "/health"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what, in a word or two.
        text: how it is.
        remedy: what to do; empty if it is well.
        is_needed: whether the pipeline cannot work without the remedy.
    """

    subject: str
    text: str
    remedy: str = ""
    is_needed: bool = False


def examine() -> Iterator[Finding]:
    """Findings about this machine and the workspace that is the current folder, one after another."""
    python = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("onenip", f"{__version__} on Python {python}")
    yield from _examine_packages()
    yield from _examine_git()
    yield from _examine_machine()
    yield _guard("params", _examine_params)
    yield _guard("workspace", _examine_workspace)
    yield _guard("remote", _examine_remote)
    yield _guard("inbox", _examine_inbox)
    yield _guard("notices", _examine_notices)
    yield from examine_servers()


def _guard(subject: str, look: Callable[[], Finding]) -> Finding:
    """What a look gives; an error that a user can act on says itself what to do."""
    try:
        return look()
    except OneNIPError as error:
        text, _, remedy = str(error).rpartition("; ")
        return Finding(subject, text or remedy, remedy if text else "repair it", is_needed=True)


def _examine_packages() -> Iterator[Finding]:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        yield Finding("packages", f"without {names}", "pip install 'onenip[full]'", is_needed=True)
    else:
        yield Finding("packages", "all of onenip[full]")


def _examine_git() -> Iterator[Finding]:
    version = git.try_run(["--version"], git.HERE)
    if version is None:
        yield Finding("git", "not installed", "install Git", is_needed=True)
        return
    name = git.try_run(["config", "user.email"], git.HERE)
    remedy = "git config --global user.email YOU@EXAMPLE.COM (and user.name)"
    yield Finding("git", f"{version}, as {name or 'nobody'}", "" if name else remedy)


def _examine_machine() -> Iterator[Finding]:
    free = shutil.disk_usage(Path()).free / 2**30
    few = f"make room: a plant takes {_DISK_GIB:.0f} GiB and more"
    yield Finding("disk", f"{free:.1f} GiB free here", few if free < _DISK_GIB else "")
    memory = psutil.virtual_memory().available / 2**30
    little = f"end other programs: training takes {_MEMORY_GIB:.0f} GiB"
    yield Finding("memory", f"{memory:.1f} GiB available", little if memory < _MEMORY_GIB else "")
    yield _guard("device", _examine_device)


def _examine_device() -> Finding:
    import torch

    from onenip.detector.devices import choose_device

    device = choose_device()
    count = torch.cuda.device_count()
    text = f"{device}; {count} CUDA devices, {os.cpu_count()} cores"
    if count and device.type == "cpu":
        return Finding("device", text, "ONENIP_DEVICE=cuda has predictions computed on the GPU")
    if not count and shutil.which("nvidia-smi"):
        remedy = "a GPU is here, but this torch cannot use it: install torch for your CUDA"
        return Finding("device", text, remedy)
    return Finding("device", text)


def _examine_params() -> Finding:
    params = Params.load()
    return Finding("params", f"params.yaml is valid, backbone {params.model.backbone}")


def _examine_workspace() -> Finding:
    if not (git.is_checkout() and dvc.is_checkout()):
        text = "this folder is none: no Git repository with DVC"
        return Finding("workspace", text, "onenip init DIR", is_needed=True)
    require_current()
    data = f"{dvc.count_files()} files of data" if dvc.read_data_version() else "no data yet"
    remedy = "" if dvc.read_data_version() else "onenip run --source FOLDER"
    return Finding("workspace", f"follows the installed version, {data}", remedy)


def _examine_remote() -> Finding:
    if not dvc.is_checkout() or not dvc.has_remote():
        remedy = "dvc remote add -d plant s3://BUCKET/PREFIX (or a folder): a disk may die"
        return Finding("remote", "DVC has none: images and models are on this disk alone", remedy)
    if dvc.read_data_version() is None:
        return Finding("remote", "named, not tried: there is no data yet")
    missing = dvc.count_unpushed()
    text = f"answers, {missing or 'no'} files are here alone"
    return Finding("remote", text, "dvc push" if missing else "")


def _examine_inbox() -> Finding:
    params = Params.load().retrain
    if params.inbox is None:
        text = "none: no new images are taken in by themselves"
        return Finding("inbox", text, "retrain.inbox in params.yaml names a folder or s3://...")
    inbox = open_inbox(params.inbox, settle_seconds=0)
    waiting = sum(1 for _ in islice(inbox.list_arrivals(), 1000))
    return Finding("inbox", f"{hide_secrets(params.inbox)}: {waiting} images wait")


def _examine_notices() -> Finding:
    params = Params.load().notify
    if not has_address(params):
        text = "nobody is notified of failures, drift and waiting models"
        return Finding("notices", text, "notify.webhook or notify.addresses in params.yaml")
    address = read_address(params) or " ".join(map(os.path.expandvars, params.addresses))
    if "$" in address:
        name = address.partition("$")[2].partition("/")[0]
        return Finding("notices", f"{name} is not set", f"export {name}=...", is_needed=True)
    return Finding("notices", "notify names where they go")


def examine_servers() -> Iterator[Finding]:
    """Servers that the environment names, and this machine's clock beside theirs."""
    skews = []
    for variable, health in _SERVERS.items():
        subject = variable.partition("_")[0].lower()
        address = os.environ.get(variable, "").rstrip("/")
        if not address.startswith("http"):
            remedy = f"source {_STACK}" if _STACK.is_file() else "onenip up starts one"
            yield Finding(subject, f"{variable} names no server: files here are used", remedy)
            continue
        try:
            # its head alone: a body may never end
            with httpx.stream("GET", address + health, timeout=_ANSWER_SECONDS) as answer:
                answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            text = f"{variable}: {hide_secrets(address)} does not answer ({type(error).__name__})"
            yield Finding(subject, text, f"onenip up, or unset {variable}", is_needed=True)
            continue
        yield Finding(subject, f"answers at {hide_secrets(address)}")
        with contextlib.suppress(ValueError, OverflowError):  # a server that tells no time
            theirs = email.utils.parsedate_to_datetime(answer.headers.get("date", ""))
            skews.append(abs(time.time() - theirs.timestamp()))
    if skews:
        wrong = "set it, such as `timedatectl set-ntp on`: S3 refuses a wrong clock"
        is_wrong = max(skews) > _CLOCK_SECONDS
        yield Finding("clock", f"{max(skews):.0f} s from the servers'", wrong if is_wrong else "")
    else:
        yield Finding(
            "clock", f"{datetime.now(tz=UTC):%Y-%m-%d %H:%M} UTC, with no server to compare"
        )
