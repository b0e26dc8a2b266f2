"""Ingestion: every arrival ends in the data or on a shelf, once, wherever a kill lands."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from copy import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.data import dvc, git
from onenip.data.checkout import HOLDER
from onenip.data.outputs import Outputs
from onenip.errors import (
    BusyError,
    CheckpointError,
    DataError,
    RemoteError,
    SourceError,
    SourceUnreachableError,
    VersioningError,
)
from onenip.images import hash_file
from onenip.ingestion.fingerprint import KnownImages
from onenip.ingestion.ingest import ingest, open_journal
from onenip.ingestion.waiting import Waiting, choose_due, count_waiting, list_new_categories
from onenip.params import RetrainParams
from onenip.sources.inbox import FolderInbox, open_inbox
from onenip.sources.inbox import folder as folder_inbox
from onenip.sources.inbox.base import file_refusals, parse_note
from onenip.sources.inbox.s3 import S3Inbox
from tests.checkouts import drop, make_checkout
from tests.holding import held_elsewhere
from tests.tiny import draw_normal, draw_tiny_data, make_tiny_params, paint_spot


def nobody(_category: str) -> None:
    """No category has a champion."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A checkout to copy: making one takes seconds."""
    return make_checkout(tmp_path_factory.mktemp("checkout") / "template")


@pytest.fixture
def checkout(template, tmp_path):
    """A checkout of this test's own."""
    return Path(shutil.copytree(template, tmp_path / "checkout", symlinks=True))


def fill(inbox: Path, data: Path) -> None:
    """Six good discs, one that nearly equals one of the data, and one of each fault."""
    rng = np.random.default_rng(11)
    for i in range(6):
        drop(inbox, f"disc/new {i}.png", draw_normal("disc", rng))
    drop(inbox, "disc/flat.png", np.full((64, 64, 3), 90, np.uint8))
    (inbox / "disc/empty.png").write_bytes(b"")
    (inbox / "disc/cut.png").write_bytes((inbox / "disc/new 0.png").read_bytes()[:200])
    (inbox / "disc/notes.txt").write_text("not an image")
    shutil.copy(data / "disc/train/good/000.png", inbox / "disc/again.png")
    shutil.copy(inbox / "disc/new 1.png", inbox / "disc/twice.png")
    known = np.asarray(Image.open(data / "disc/test/good/001.png"))
    drop(inbox, "disc/recoded.bmp", known)
    drop(
        inbox,
        "disc/alike.jpg",
        np.asarray(Image.open(data / "disc/train/good/001.png")),
        quality=99,
    )
    drop(inbox, "bolt/0.png", draw_normal("stripes", rng))
    drop(inbox, "loose.png", draw_normal("disc", rng))


def look(inbox: Path) -> dict[str, set[str]]:
    """Names in the inbox and on its shelves, without the hashes before them."""
    shelves = {"inbox": inbox} | {
        name: inbox.with_name(f"{inbox.name}-{name}")
        for name in ("quarantine", "held", "duplicates")
    }
    return {
        shelf: {
            path.name if shelf == "inbox" else path.name[13:]
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".json"
        }
        for shelf, folder in shelves.items()
    }


COUNTS = {"accepted": 7, "duplicates": 3, "near-duplicates": 1, "quarantine": 4}
CLOSED = {"new_categories": False}
EXPECTED = {
    "inbox": set(),
    "quarantine": {"flat.png", "empty.png", "cut.png", "notes.txt"},
    "held": {"0.png", "loose.png"},
    "duplicates": {"again.png", "twice.png", "recoded.bmp"},
}


def test_every_arrival_ends_where_it_belongs(checkout, tmp_path):
    """Good images are in the data under names of their content; the others lie on shelves with reasons."""
    inbox = tmp_path / "inbox"
    fill(inbox, checkout / "data")
    before = dvc.read_data_version(checkout)

    result = ingest(
        make_tiny_params(retrain=CLOSED),
        inbox=FolderInbox(inbox),
        find_champion=nobody,
        root=checkout,
    )

    assert look(inbox) == EXPECTED
    assert result.counts["disc"] == COUNTS
    reasons = {item.key: item.reason for item in result.set_aside}
    assert "0 bytes" in reasons["disc/empty.png"]
    assert "disc/test/good/001.png" in reasons["disc/recoded.bmp"]
    assert "unknown category bolt" in reasons["bolt/0.png"]
    added = {path.name for path in (checkout / "data/disc/train/good").iterdir()} - {
        f"{i:03}.png" for i in range(4)
    }
    assert len(added) == 7
    assert result.data_version != before
    assert dvc.read_version_at("onenip/arrivals", root=checkout) == result.data_version
    assert dvc.read_version_at("main", root=checkout) == before
    assert git.current_branch(checkout) == "main"


def draw_parts(kind: str, count: int) -> list[np.ndarray]:
    """Discs in one pose under a camera with a little noise, each with one fault of a kind."""
    rng = np.random.default_rng(2)
    part = draw_normal("disc", np.random.default_rng(3)).astype(float)
    y, x = np.mgrid[:64, :64]
    images = []
    for _ in range(count):
        image = part + rng.normal(0, 1.5, part.shape)
        cy, cx = rng.integers(24, 40, 2)
        if kind == "scratch":  # two px wide, 14 long
            image[cy : cy + 2, cx - 7 : cx + 7] = (230, 40, 40)
        elif kind == "smear":
            near = (np.abs(y - cy) < 4) & (np.abs(x - cx) < 8)
            image[near] = image[near].mean(axis=0) * (0.5, 0.5, 1.6)
        elif kind == "stain":
            image[np.hypot(y - cy, x - cx) < 4] *= 0.4
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


def test_parts_in_a_fixed_pose_are_judged_not_taken_for_duplicates(
    checkout, tmp_path, tiny_detector
):
    """The champion decides about parts that look alike: good ones are taken, faulty ones are held."""
    inbox = tmp_path / "inbox"
    parts = {
        f"disc/{kind}-{number}.png": image
        for kind in ("good", "scratch", "smear", "stain")
        for number, image in enumerate(draw_parts(kind, 10))
    }
    for key, image in parts.items():
        drop(inbox, key, image)
    predictions = tiny_detector.predict(list(parts.values()), category="disc")
    doubted = {key for key, one in zip(parts, predictions, strict=True) if one.is_anomalous}

    result = ingest(
        make_tiny_params(),
        inbox=FolderInbox(inbox),
        find_champion=lambda _: tiny_detector,
        root=checkout,
    )

    counts = result.counts["disc"]
    assert "duplicates" not in counts
    assert {item.key for item in result.set_aside if item.outcome == "held"} == doubted
    assert sum("good" in key for key in doubted) <= 2
    assert sum("good" not in key for key in doubted) >= 25
    assert counts["accepted"] == 40 - len(doubted)
    assert counts["near-duplicates"] >= 7  # each good one after the first


def test_a_second_run_changes_nothing_and_a_repeated_arrival_is_a_duplicate(checkout, tmp_path):
    """Running again is free; the same image sent again is told from a new one."""
    inbox = tmp_path / "inbox"
    image = draw_normal("disc", np.random.default_rng(1))
    drop(inbox, "disc/a.png", image)
    params = make_tiny_params()
    first = ingest(params, inbox=FolderInbox(inbox), find_champion=nobody, root=checkout)

    second = ingest(params, inbox=FolderInbox(inbox), find_champion=nobody, root=checkout)
    drop(inbox, "disc/a.png", image)
    third = ingest(params, inbox=FolderInbox(inbox), find_champion=nobody, root=checkout)

    assert second.counts == {}
    assert second.commit is None
    assert third.counts == {"disc": {"duplicates": 1}}
    assert third.data_version == first.data_version
    with open_journal(checkout) as journal:
        assert {name: count for name, (count, _) in journal.count_untrained().items()} == {
            "disc": 1
        }


def test_a_lost_journal_loses_nothing(checkout, tmp_path):
    """Images placed before the journal was lost are committed, not taken for duplicates."""
    inbox = tmp_path / "inbox"
    drop(inbox, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    copy = (inbox / "disc/a.png").read_bytes()
    params = make_tiny_params()
    first = ingest(params, inbox=FolderInbox(inbox), find_champion=nobody, root=checkout)
    shutil.rmtree(Outputs(checkout).ingestion)
    (inbox / "disc/a.png").write_bytes(copy)

    second = ingest(params, inbox=FolderInbox(inbox), find_champion=nobody, root=checkout)

    assert second.data_version == first.data_version
    assert second.commit == first.commit
    assert look(inbox)["inbox"] == set()


def test_what_the_champion_doubts_is_held_until_a_person_releases_it(
    checkout, tmp_path, tiny_detector
):
    """A defect that slipped in and a wrong category are not trained on; a person may overrule that."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(5)
    spotted, _ = paint_spot(draw_normal("disc", rng), rng)
    drop(inbox, "disc/spot.png", spotted)
    drop(inbox, "stripes/disc.png", draw_normal("disc", rng))
    params, box = make_tiny_params(), FolderInbox(inbox)

    result = ingest(params, inbox=box, find_champion=lambda _: tiny_detector, root=checkout)

    reasons = {item.key: item for item in result.set_aside}
    assert "finds a defect" in reasons["disc/spot.png"].reason
    assert "looks like disc" in reasons["stripes/disc.png"].reason
    held = reasons["disc/spot.png"]
    assert held.score > held.threshold
    box.release(held.name, note={"sha256": held.sha256, "by": "Ada", "reason": "a reflection"})
    again = ingest(params, inbox=box, find_champion=lambda _: tiny_detector, root=checkout)
    assert again.counts == {"disc": {"accepted": 1}}


def test_a_release_brings_an_image_back_to_where_it_arrived(checkout, tmp_path, monkeypatch):
    """An image that lay in no folder never makes a product `unsorted`, and overwrites no newer one."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(5)
    (tmp_path / "params.yaml").write_text(f"retrain: {{inbox: {inbox}, settle_seconds: 0}}")
    drop(inbox, "loose.png", draw_normal("disc", rng))
    drop(inbox, "unsorted/0.png", draw_normal("disc", rng))
    params, box = make_tiny_params(), FolderInbox(inbox)
    ingest(params, inbox=box, find_champion=nobody, root=checkout)
    drop(inbox, "unsorted/0.png", draw_normal("disc", rng))
    monkeypatch.chdir(tmp_path)

    shown = CliRunner().invoke(app, ["release", "unsorted", "--by", "Ada", "--reason", "fine"])
    again = ingest(params, inbox=box, find_champion=nobody, root=checkout)

    assert shown.exit_code == 0, shown.output
    assert "loose.png: back in the inbox" in shown.output
    names = {item.key.rpartition("/")[2].rpartition("-")[2] for item in again.set_aside}
    assert names == {"loose.png", "0.png"}
    assert again.counts[""] == {"held": 1}
    assert again.counts["unsorted"] == {"held": 2}
    assert not (checkout / "data/unsorted").exists()


def test_one_bad_arrival_never_stops_its_neighbours(checkout, tmp_path, caplog):
    """What cannot be read or judged is named and left or set aside; all others are taken."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(6)
    for number in range(3):
        drop(inbox, f"disc/{number}.png", draw_normal("disc", rng))
    drop(inbox, "stripes/0.png", draw_normal("stripes", rng))
    drop(inbox, os.fsdecode(b"disc/\xff.png"), draw_normal("disc", rng))
    params, box = make_tiny_params(), FolderInbox(inbox)

    class Unreadable(FolderInbox):
        """An inbox whose disk has a bad block below one image."""

        def fetch(self, arrival, path, *, shelf=None):
            if arrival.key == "disc/1.png":
                with file_refusals(inbox / arrival.key):
                    raise OSError(errno.EIO, "Input/output error")
            return super().fetch(arrival, path, shelf=shelf)

    def find(category: str) -> None:
        if category == "stripes":
            raise CheckpointError("the weights are damaged")

    result = ingest(params, inbox=Unreadable(inbox), find_champion=find, root=checkout)

    assert result.counts == {"disc": {"accepted": 2, "left": 1}, "stripes": {"left": 1}}
    assert "disc/1.png: left in the inbox: " in caplog.text
    assert "no champion of stripes can be asked: the weights are damaged" in caplog.text
    assert "not UTF-8" in caplog.text
    again = ingest(params, inbox=box, find_champion=nobody, root=checkout)
    assert again.counts == {"disc": {"accepted": 1}, "stripes": {"accepted": 1}}


def test_a_strange_size_time_or_note_stops_no_neighbour(checkout, tmp_path):
    """A terabyte that holds nothing, a clock in the year 33,658, and a damaged note of a release."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(6)
    drop(inbox, "disc/good.png", draw_normal("disc", rng))
    drop(inbox, "disc/flat.png", np.full((64, 64, 3), 90, np.uint8))
    with (inbox / "disc/huge.png").open("wb") as file:
        file.truncate(1 << 40)
    released = tmp_path / "inbox-released" / f"{hash_file(inbox / 'disc/flat.png')}.json"
    released.parent.mkdir()
    released.write_bytes(b"\xff[")
    found = os.stat_result((0o100644, *[1] * 5, 10, 1e12, 1e12, 1e12))

    result = ingest(
        make_tiny_params(retrain=CLOSED),
        inbox=FolderInbox(inbox),
        find_champion=nobody,
        root=checkout,
    )

    assert folder_inbox._to_arrival("disc/x.png", found).arrived_at.year == 9892
    assert result.counts["disc"]["left"] == 1
    assert result.counts["disc"]["accepted"] >= 1
    for content in (b"\xff", b"[1]", b"[" * 100_000, b'"x"', b""):
        assert parse_note(content) == {}


def test_whatever_an_image_does_to_a_model_others_are_taken(checkout, tmp_path, tiny_detector):
    """An error that nobody expected sets one image aside, with its words."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(6)
    for number in range(2):
        drop(inbox, f"disc/{number}.png", draw_normal("disc", rng))
    drop(inbox, "disc/wide.png", np.tile(draw_normal("disc", rng), (1, 2, 1)))

    class Fragile(Detector):
        """A detector that a wide image breaks."""

        def measure_distances(self, image):
            if image.shape[1] > image.shape[0]:
                raise RuntimeError("sizes do not match")
            return super().measure_distances(image)

    fragile = copy(tiny_detector)
    fragile.__class__ = Fragile
    box = FolderInbox(inbox)

    result = ingest(make_tiny_params(), inbox=box, find_champion=lambda _: fragile, root=checkout)

    reasons = {item.key: (item.outcome, item.reason) for item in result.set_aside}
    assert reasons["disc/wide.png"] == (
        "quarantine",
        "it cannot be judged (RuntimeError: sizes do not match)",
    )
    assert sum(result.counts["disc"].values()) == 3


def test_a_foreign_product_is_held_where_no_champion_could_say_so(tmp_path):
    """Images of a category like the others are taken, those of another product are not."""
    rng = np.random.default_rng(4)
    draw_tiny_data(tmp_path / "data", train=8, test_good=2, defective=2)
    with open_journal(tmp_path) as journal:
        known = KnownImages(tmp_path / "data", journal)

    for own, other in (("disc", "stripes"), ("stripes", "disc")):
        for _ in range(8):
            image = draw_normal(own, rng)
            assert not known.looks_foreign(own, image)
            assert known.looks_foreign(other, image)
        assert not known.looks_foreign("unknown", image)


def test_a_new_category_starts_with_its_first_images(checkout, tmp_path, tiny_detector):
    """Its folder appears in the data; what is likely a slip of the pen or of the hand is held instead."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(0)
    new = draw_normal("stripes", rng).transpose(1, 0, 2)
    drop(inbox, "bolt/0.png", new)
    drop(inbox, "Discs/0.png", draw_normal("disc", rng))
    drop(inbox, "widget/0.png", draw_normal("disc", rng))
    params, box = make_tiny_params(), FolderInbox(inbox)
    with open_journal(checkout) as journal:
        waiting = count_waiting(box, journal)
    assert list_new_categories(waiting, checkout / "data") == ["Discs", "bolt", "widget"]

    result = ingest(
        params,
        inbox=box,
        find_champion=nobody,
        find_unified=lambda: tiny_detector,
        root=checkout,
    )

    assert result.counts["bolt"] == {"accepted": 1}
    assert len(list((checkout / "data/bolt/train/good").iterdir())) == 1
    reasons = {item.key: item.reason for item in result.set_aside}
    assert reasons["Discs/0.png"] == "unknown category Discs; is it disc?"
    assert reasons["widget/0.png"] == "unknown category widget, but it looks like disc"
    held = next(item for item in result.set_aside if item.key == "widget/0.png")
    box.release(held.name, note={"sha256": held.sha256, "by": "Ada", "reason": "a new disc"})
    again = ingest(params, inbox=box, find_champion=nobody, root=checkout)
    assert again.counts == {"widget": {"accepted": 1}}


def test_a_new_category_of_many_bits_is_read_as_its_first_images_suggest(
    checkout, tmp_path, caplog
):
    """Twelve bits are taken with a line that says so; what suggests no range is held until it is declared."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(0)
    for i in range(3):
        bolt, nut = (draw_normal("disc", rng)[:, :, 0].astype(np.float64) for _ in range(2))
        drop(inbox, f"bolt/{i}.png", np.rint(bolt * 4095 / 255).astype(np.uint16))
        drop(inbox, f"nut/{i}.tif", (nut - 60).astype(np.float32))
    Image.open(inbox / "bolt/0.png").save(inbox / "bolt/9.tif")

    found = ingest(
        make_tiny_params(), inbox=FolderInbox(inbox), find_champion=nobody, root=checkout
    )

    assert found.counts == {"bolt": {"accepted": 3, "duplicates": 1}, "nut": {"held": 3}}
    assert "bolt: samples are read over 0 to 4095" in caplog.text
    reasons = {item.reason for item in found.set_aside if item.category == "nut"}
    assert all("declare data.sample_ranges" in reason for reason in reasons)


def test_nothing_leaves_the_inbox_when_the_remote_is_down(checkout, tmp_path):
    """The push fails, the images stay; when the remote is back the next run goes on."""
    inbox, blocked = tmp_path / "inbox", tmp_path / "blocked"
    drop(inbox, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    blocked.write_text("a file where the remote's folder should be")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "remote", "add", "-d", "-q", "r", str(blocked)], cwd=checkout, check=True)
    params, box = make_tiny_params(), FolderInbox(inbox)

    with pytest.raises(VersioningError):
        ingest(params, inbox=box, find_champion=nobody, root=checkout)

    assert look(inbox)["inbox"] == {"a.png"}
    assert git.find_commit("onenip/arrivals", root=checkout) is None
    blocked.unlink()
    result = ingest(params, inbox=box, find_champion=nobody, root=checkout)
    assert result.commit is not None
    assert look(inbox)["inbox"] == set()


def test_the_inbox_in_s3_does_as_a_folder(checkout, tmp_path, s3_server, monkeypatch):
    """The same arrivals end in the same places, in a real bucket."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    local = tmp_path / "local"
    fill(local, checkout / "data")
    client = boto3.Session().client("s3")
    for path in local.rglob("*.*"):
        key = f"line1/inbox/{path.relative_to(local).as_posix()}"
        client.upload_file(str(path), "images", key)

    result = ingest(
        make_tiny_params(retrain=CLOSED),
        inbox=S3Inbox("images", "line1/inbox"),
        find_champion=nobody,
        root=checkout,
    )

    assert result.counts["disc"] == COUNTS
    keys = {
        entry["Key"]
        for entry in client.list_objects_v2(Bucket="images", Prefix="line1/")["Contents"]
    }
    assert not any(key.startswith("line1/inbox/") for key in keys)
    assert sum(key.startswith("line1/inbox-quarantine/disc/") for key in keys) == 8
    item = next(item for item in result.set_aside if item.outcome == "held")
    S3Inbox("images", "line1/inbox").release(item.name, note={"sha256": item.sha256, "by": "Ada"})
    assert any(a.key == item.key for a in S3Inbox("images", "line1/inbox").list_arrivals())


def test_an_s3_inbox_that_is_not_there_is_one_clear_error(s3_server, monkeypatch):
    """A missing bucket and a wrong address name themselves."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SourceError, match="nowhere"):
        list(S3Inbox("nowhere", "inbox").list_arrivals())
    with pytest.raises(SourceError, match="ftp://x"):
        open_inbox("ftp://x", settle_seconds=0)


def test_an_ingestion_beside_another_command_is_refused(checkout, tmp_path):
    """The second says that the first is at work, and has moved nothing into the data."""
    drop(tmp_path / "inbox", "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    box = FolderInbox(tmp_path / "inbox")

    with held_elsewhere(checkout), pytest.raises(BusyError, match=r"pipeline .* is at work"):
        ingest(make_tiny_params(), inbox=box, find_champion=nobody, root=checkout)

    assert look(tmp_path / "inbox")["inbox"] == {"a.png"}
    assert len(list((checkout / "data/disc/train/good").iterdir())) == 4


def test_a_checkout_behind_the_branch_is_not_built_upon(checkout, tmp_path):
    """Going back to older data would drop earlier arrivals: the way out is named."""
    inbox = tmp_path / "inbox"
    drop(inbox, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    params, box = make_tiny_params(), FolderInbox(inbox)
    ingest(params, inbox=box, find_champion=nobody, root=checkout)
    subprocess.run(["git", "checkout", "-q", "data.dvc"], cwd=checkout, check=True)

    with pytest.raises(DataError, match="git checkout onenip/arrivals"):
        ingest(params, inbox=box, find_champion=nobody, root=checkout)


def test_data_that_are_not_laid_out_are_not_taken_for_deleted(checkout, tmp_path):
    """In a clone without `dvc pull`, nothing is ingested: the next version would lack the rest."""
    drop(tmp_path / "inbox", "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    shutil.rmtree(checkout / "data/stripes")
    box = FolderInbox(tmp_path / "inbox")

    with pytest.raises(DataError, match="dvc pull"):
        ingest(make_tiny_params(), inbox=box, find_champion=nobody, root=checkout)


def test_a_workspace_may_begin_with_arrivals(checkout, tmp_path):
    """Without any data before, what arrives is its first version."""
    shutil.rmtree(checkout / "data")
    for command in (["rm", "-q", "data.dvc"], ["commit", "-q", "-m", "No data"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    inbox = tmp_path / "inbox"
    drop(inbox, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))

    result = ingest(
        make_tiny_params(), inbox=FolderInbox(inbox), find_champion=nobody, root=checkout
    )

    assert result.counts == {"disc": {"accepted": 1}}
    assert dvc.count_files(checkout) == 1


def test_nothing_is_placed_where_no_checkout_is(tmp_path):
    """A folder that Git and DVC do not know keeps no copy of what it cannot version."""
    drop(tmp_path / "inbox", "disc/a.png", draw_normal("disc", np.random.default_rng(1)))

    with pytest.raises(DataError, match="no checkout of DVC and Git"):
        ingest(
            make_tiny_params(),
            inbox=FolderInbox(tmp_path / "inbox"),
            find_champion=nobody,
            root=tmp_path,
        )
    assert not (tmp_path / "data").exists()


def test_folders_that_say_defective_hold_their_images(checkout, tmp_path):
    """Below a category, or as the name of a new one; a person may release them."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(1)
    held = (
        "disc/bad_8.png",
        "disc/NG/a.png",
        "disc/test/spot/b.png",
        "disc/not OK 3/c.png",
        "nut_NG/d.png",
    )
    for name in (*held, "disc/OK/e.png", "disc/2026/11/1/f.png"):
        drop(inbox, name, draw_normal("disc", rng))

    result = ingest(
        make_tiny_params(), inbox=FolderInbox(inbox), find_champion=nobody, root=checkout
    )

    assert {item.key for item in result.set_aside} == set(held)
    assert "its path says 'NG'" in {item.key: item.reason for item in result.set_aside}[held[1]]
    assert result.counts["disc"] == {"accepted": 2, "held": 4}


def test_files_that_still_grow_are_left_alone(tmp_path, caplog):
    """A camera may be writing: a file counts once it has settled, and until then the log says so."""
    path = drop(tmp_path, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))

    with caplog.at_level("INFO"):
        assert list(FolderInbox(tmp_path, settle_seconds=60).list_arrivals()) == []
    assert "1 younger than 60 s, which may still grow, left for the next time" in caplog.text
    os.utime(path, (time.time() - 61,) * 2)
    assert [a.key for a in FolderInbox(tmp_path, settle_seconds=60).list_arrivals()] == [
        "disc/a.png"
    ]


def test_training_is_due_by_number_or_by_time(checkout, tmp_path):
    """Enough images, or one that waited too long, or one whose camera lives in another decade."""
    params = RetrainParams(min_new_images=3, max_wait_hours=2)
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    waiting = [
        Waiting("many", 2, 1, now),
        Waiting("few", 2, 0, now - timedelta(hours=1)),
        Waiting("old", 1, 0, now - timedelta(hours=2)),
        Waiting("skewed", 1, 0, now + timedelta(minutes=5)),
        Waiting("future", 1, 0, now + timedelta(days=9000)),
    ]

    assert choose_due(waiting, params, now=now) == ["many", "old", "future"]
    drop(tmp_path / "inbox", "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    with open_journal(checkout) as journal:
        (one,) = count_waiting(FolderInbox(tmp_path / "inbox"), journal)
    assert (one.category, one.in_inbox, one.in_data) == ("disc", 1, 0)


def test_a_clock_that_jumps_neither_loses_nor_hurries_an_image(checkout, tmp_path):
    """A file from the future is taken once it stopped growing, and waits from now on."""
    inbox = tmp_path / "inbox"
    path = drop(inbox, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    os.utime(path, (time.time() + 1e8,) * 2)
    params = make_tiny_params()
    box = FolderInbox(inbox, settle_seconds=0.2)

    assert [arrival.key for arrival in box.list_arrivals()] == ["disc/a.png"]
    ingest(params, inbox=box, find_champion=nobody, root=checkout)
    with open_journal(checkout) as journal:
        waiting = count_waiting(box, journal)
    assert abs(waiting[0].oldest_at.timestamp() - time.time()) < 60
    assert choose_due(waiting, params.retrain, now=datetime.now(tz=UTC)) == []


def make_origin(checkout: Path, folder: Path) -> Path:
    """A bare Git remote `origin` of a checkout."""
    for command in (
        ["git", "init", "-q", "--bare", str(folder)],
        ["git", "-C", str(checkout), "remote", "add", "origin", str(folder)],
    ):
        subprocess.run(command, check=True)
    return folder


def test_nothing_is_pushed_unless_a_person_switched_it_on(checkout, tmp_path):
    """In a fresh clone with a remote, arrivals are committed to a branch that stays here."""
    origin = make_origin(checkout, tmp_path / "origin.git")
    drop(tmp_path / "inbox", "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    box = FolderInbox(tmp_path / "inbox")

    result = ingest(make_tiny_params(), inbox=box, find_champion=nobody, root=checkout)

    assert git.find_commit("onenip/arrivals", root=checkout) == result.commit
    assert git.run(["for-each-ref"], origin) == ""


def test_an_image_leaves_the_inbox_only_when_data_and_commit_are_pushed(
    checkout, tmp_path, s3_server, monkeypatch
):
    """With data in S3 and a Git remote that is down for a while: nothing leaves before both have it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    dvc = [sys.executable, "-m", "dvc"]
    url = f"s3://dvc-cache/{tmp_path.name}"
    for command in (
        ["add", "-d", "-q", "r", url],
        ["modify", "-q", "r", "endpointurl", s3_server.endpoint],
    ):
        subprocess.run([*dvc, "remote", *command], cwd=checkout, check=True)
    origin = make_origin(checkout, tmp_path / "origin.git")
    origin.rename(tmp_path / "away.git")
    inbox = tmp_path / "inbox"
    drop(inbox, "disc/a.png", draw_normal("disc", np.random.default_rng(1)))
    params, box = make_tiny_params(retrain={"push": True}), FolderInbox(inbox)

    with pytest.raises(RemoteError, match=r"Git remote origin.*retrain\.git_remote"):
        ingest(params, inbox=box, find_champion=nobody, root=checkout)
    assert look(inbox)["inbox"] == {"a.png"}

    (tmp_path / "away.git").rename(origin)
    result = ingest(params, inbox=box, find_champion=nobody, root=checkout)

    assert look(inbox)["inbox"] == set()
    assert git.find_commit("onenip/arrivals", root=origin) == result.commit
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "-q", "-b", "onenip/arrivals", str(origin), str(clone)], check=True
    )
    shutil.copy(checkout / ".dvc/config", clone / ".dvc/config")  # names the remote
    subprocess.run([sys.executable, "-m", "dvc", "pull", "data.dvc"], cwd=clone, check=True)
    assert len(list((clone / "data/disc/train/good").iterdir())) == 5


def test_two_checkouts_share_one_branch(checkout, tmp_path):
    """What another checkout pushed is built upon or asked for, never overwritten."""
    make_origin(checkout, tmp_path / "origin.git")
    other = Path(shutil.copytree(checkout, tmp_path / "other", symlinks=True))
    params, rng = make_tiny_params(retrain={"push": True}), np.random.default_rng(1)
    for name in ("one", "two"):
        drop(tmp_path / name, f"disc/{name}.png", draw_normal("disc", rng))
    ingest(params, inbox=FolderInbox(tmp_path / "one"), find_champion=nobody, root=checkout)
    box = FolderInbox(tmp_path / "two")

    with pytest.raises(DataError, match="newer arrivals"):
        ingest(params, inbox=box, find_champion=nobody, root=other)
    assert look(tmp_path / "two")["inbox"] == {"two.png"}

    shutil.copytree(checkout / ".dvc/cache", other / ".dvc/cache", dirs_exist_ok=True)
    for command in (
        ["git", "checkout", "-q", "onenip/arrivals", "--", "data.dvc"],
        [sys.executable, "-m", "dvc", "checkout", "-q", "data.dvc"],
    ):
        subprocess.run(command, cwd=other, check=True)
    result = ingest(params, inbox=box, find_champion=nobody, root=other)
    assert git.find_commit("onenip/arrivals", root=tmp_path / "origin.git") == result.commit
    assert len(list((other / "data/disc/train/good").iterdir())) == 6


def test_many_arrivals_are_versioned_in_parts(checkout, tmp_path, monkeypatch):
    """Each part is safe before the next is read, so that a flood that is cut short is not lost."""
    monkeypatch.setattr("onenip.ingestion.ingest._BATCH", 4)
    inbox = tmp_path / "inbox"
    fill(inbox, checkout / "data")

    result = ingest(
        make_tiny_params(retrain=CLOSED),
        inbox=FolderInbox(inbox),
        find_champion=nobody,
        root=checkout,
    )

    assert look(inbox) == EXPECTED
    assert result.counts["disc"] == COUNTS
    log = ["git", "log", "--format=%s", "main..onenip/arrivals"]
    commits = subprocess.run(log, cwd=checkout, check=True, capture_output=True, text=True).stdout
    assert len(commits.splitlines()) > 1


_FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # as a full disk: writes end with an error
"""
_ONE_LINE = """
import sys
from onenip.errors import OneNIPError
try:
    exec(sys.argv[3])
except OneNIPError as error:
    sys.exit(f"onenip: {error}")
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(checkout, tmp_path):
    """Nothing is lost while nothing can be written; with room again every image is taken."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(1)
    drop(inbox, "disc/a.png", draw_normal("disc", rng))
    large = draw_normal("disc", rng).clip(0, 240).repeat(8, axis=0).repeat(8, axis=1)
    large += rng.integers(0, 9, large.shape, np.uint8)  # noise, which no format makes small
    drop(inbox, "disc/large.png", large)
    command = [sys.executable, "-c", _FULL_DISK + _ONE_LINE, str(inbox), str(checkout), _RUN]

    full = subprocess.run(command, capture_output=True, text=True, check=False)
    command[2] = _ONE_LINE
    roomy = subprocess.run(command, capture_output=True, text=True, check=False)

    assert full.returncode == 1
    assert "File too large" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    assert roomy.returncode == 0, roomy.stderr
    assert look(inbox) == {shelf: set() for shelf in EXPECTED}
    assert len(list((checkout / "data/disc/train/good").iterdir())) == 6


_RUN = """
import sys
from pathlib import Path
from onenip.ingestion.ingest import ingest
from onenip.sources.inbox import FolderInbox
from tests.tiny import make_tiny_params
params = make_tiny_params(retrain={"new_categories": False})
ingest(params, inbox=FolderInbox(Path(sys.argv[1])), find_champion=lambda _: None,
       root=Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.drill
def test_kills_at_random_moments_change_nothing_in_the_end(template, tmp_path, drill):
    """SIGKILL again and again, then one run to the end: as if it had never been killed."""
    ends, chance = [], drill.draw()
    for name, count in (("calm", 0), ("killed", drill.choose(1, 10))):
        checkout = Path(shutil.copytree(template, tmp_path / name, symlinks=True))
        inbox = tmp_path / f"{name}-inbox"
        fill(inbox, checkout / "data")
        for attempt in range(count + 1):
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(inbox), str(checkout)], start_new_session=True
            )
            if attempt < count:
                _kill_after_start(process, checkout, chance)
            assert process.wait(timeout=120) in (0, -signal.SIGKILL)
        ends.append((look(inbox), dvc.read_version_at("onenip/arrivals", root=checkout)))

    assert ends[0] == ends[1]
    assert ends[0][0] == EXPECTED
    drill.note("kills of an ingestion, at random moments", count)


def _kill_after_start(process: subprocess.Popen, checkout: Path, chance: random.Random) -> None:
    """Kill a run, with all that it started, at a random moment after it took its lock."""
    lock = checkout / HOLDER
    known = lock.stat().st_mtime_ns if lock.exists() else 0
    while process.poll() is None and (not lock.exists() or lock.stat().st_mtime_ns == known):
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 2.5))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def test_an_s3_server_that_is_down_may_be_tried_again(monkeypatch):
    """An inbox that nobody answers for is unreachable, which a flow tries again, not a mistake."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    with pytest.raises(SourceUnreachableError, match="s3://bucket/inbox"):
        list(S3Inbox("bucket", "inbox").list_arrivals())
