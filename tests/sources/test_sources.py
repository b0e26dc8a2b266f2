"""Sources: every kind ends in one layout; a failure changes nothing and says what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from onenip.errors import BusyError, SourceError
from onenip.images import hash_file, load_mask
from onenip.sources import http
from onenip.sources.http import download as fetch_file
from onenip.stages import download
from tests.holding import held_elsewhere
from tests.paths import SHARED
from tests.sources.originals import ORIGINALS, mask, pack_tar, pack_zip, picture
from tests.sources.web import Web, running_web
from tests.tiny import make_tiny_params

IMAGES = SHARED / "data"


@pytest.fixture
def web():
    """A server on this machine, empty."""
    with running_web(Web()) as running:
        yield running


@pytest.fixture
def fetch(tmp_path):
    """Download into a data set of this test's own, outside of Git."""

    def run(*sources: object, **options):
        return download.run(
            make_tiny_params(),
            sources=[str(source) for source in sources],
            data_dir=tmp_path / "set/data",
            record=tmp_path / "set/origin.json",
            **options,
        )

    (tmp_path / "set").mkdir()
    run.data = tmp_path / "set/data"
    run.record = tmp_path / "set/origin.json"
    return run


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Files in a folder."""
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file by its path."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def layout(folder: Path) -> Counter[str]:
    """Number of files in every folder."""
    return Counter(path.rpartition("/")[0] for path in tree(folder))


LAYOUTS = {
    "categories": (
        {
            "a b/train/good/1.png": picture(1),
            "a b/test/cr\u00e4ck/2.png": picture(2),
            "a b/ground_truth/cr\u00e4ck/2_mask.png": mask(),
            "a b/readme.txt": b"x",
            "c/train/good/1.png": picture(3),
        },
        {
            "a b/train/good": 1,
            "a b/test/cr\u00e4ck": 1,
            "a b/ground_truth/cr\u00e4ck": 1,
            "c/train/good": 1,
        },
    ),
    "one category": (
        {"train/good/1.png": picture(1), "test/good/2.png": picture(2)},
        {"here/train/good": 1, "here/test/good": 1},
    ),
    "categories without splits": (
        {"a/1.jpg": picture(1, "jpg"), "b/2.jpg": picture(2, "jpg"), "b/.DS_Store": b"x"},
        {"a/train/good": 1, "b/train/good": 1},
    ),
    "images alone": (
        {"1.jpg": picture(1, "jpg"), "2.bmp": picture(2, "bmp"), "cut.png": b"no image"},
        {"here/train/good": 3},
    ),
    "wrapped": (
        {"set/a/train/good/1.png": picture(1), "__MACOSX/set/a/._1.png": b"x"},
        {"a/train/good": 1},
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_a_folder_or_archive_becomes_the_layout(fetch, tmp_path, kind, form):
    """The layouts that people have, packed or not, become one; unreadable images come along."""
    files, expected = LAYOUTS[kind]
    source = tmp_path / "here"
    if form == "folder":
        write(source, files)
    else:
        source = tmp_path / f"here.{form}"
        source.write_bytes(pack_zip(files) if form == "zip" else pack_tar(files, "gz"))

    result = fetch(source)

    assert layout(fetch.data) == expected
    assert result.is_changed
    assert result.version is None
    assert not fetch(source).is_changed


@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs the shared images")
@pytest.mark.parametrize("name", ["inspection", "arrivals", "textures", "inspection/bottle"])
def test_real_sets_are_taken_as_they_are(fetch, name):
    """Every image of every real set arrives, byte for byte."""
    result = fetch(IMAGES / name)

    images = [path for path in (IMAGES / name).rglob("*") if path.suffix in (".jpg", ".png")]
    assert sum(result.categories.values()) == len(images)
    assert Counter(tree(fetch.data).values()) == Counter(map(hash_file, images))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_of_images_becomes_the_layout(fetch, tmp_path, form):
    """Rows say what an image is; equal names from several folders do not clash; masks become PNG."""
    files = {"x/1.png": picture(1), "y/1.png": picture(2), "z.png": picture(3)}
    write(tmp_path / "in", files | {"z_mask.bmp": mask(255, "bmp")})
    rows = [
        {"path": "x/1.png", "category": "a", "label": "good"},
        {"path": "y/1.png", "category": "a", "label": "good"},
        {"path": "z.png", "category": "a", "label": "hole", "mask": "z_mask.bmp"},
    ]
    table = tmp_path / f"in/set.{form}"
    if form == "csv":
        lines = [
            ",".join(row.get(k, "") for k in ("path", "category", "label", "mask")) for row in rows
        ]
        table.write_text("\n".join(["path,category,label,mask", *lines]))
    else:
        table.write_text("\n".join(map(json.dumps, rows)))

    fetch(table)

    assert sorted(tree(fetch.data)) == [
        "a/ground_truth/hole/z_mask.png",
        "a/test/hole/z.png",
        "a/train/good/x-1.png",
        "a/train/good/y-1.png",
    ]
    assert Image.open(fetch.data / "a/ground_truth/hole/z_mask.png").format == "PNG"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,category,label\n", "no rows"),
        ("path,category\nx.png,a\n", "row 2: label is missing"),
        ("path,category,label\nabsent.png,a,good\n", "row 2: no such file absent.png"),
        ("path,category,label\nx.png,../a,good\n", "row 2: category '../a': it begins with a dot"),
        ("path,category,label,lable\nx.png,a,good,1\n", "unknown column 'lable'"),
        ("path,category,label\n../x.png,a,good\n", "leads out of its folder"),
        ("path,category,label\n/etc/passwd,a,good\n", "leads out of its folder"),
        ("path,category,label,mask\nx.png,a,bad,..\\m.png\n", "leads out of its folder"),
        ("path,category,label\nx.png,NG,good\n", "row 2: category 'NG': it is a label"),
        ("path,category,label,split\nx.png,a,good,val\n", "split is 'val'"),
    ],
)
def test_a_wrong_table_names_its_row(fetch, tmp_path, text, message):
    """What is wrong with a table is said with file and row."""
    write(tmp_path / "in", {"x.png": picture(1), "set.csv": text.encode()})

    with pytest.raises(SourceError, match=message) as caught:
        fetch(tmp_path / "in/set.csv")

    assert "set.csv" in str(caught.value)
    assert not fetch.data.exists()


EXPECTED_ORIGINALS = {
    "mvtec": {
        f"{category}/{place}": count
        for category in ("bottle", "zipper")
        for place, count in (
            ("train/good", 3),
            ("test/good", 1),
            ("test/broken", 1),
            ("ground_truth/broken", 1),
        )
    },
    "visa": {
        f"{category}/{place}": count
        for category in ("candle", "pcb1")
        for place, count in (
            ("train/good", 2),
            ("test/good", 1),
            ("test/bad", 1),
            ("ground_truth/bad", 1),
        )
    },
    "btad": {
        f"btad_0{number}/{place}": count
        for number in (1, 2, 3)
        for place, count in (
            ("train/good", 2),
            ("test/good", 1),
            ("test/ko", 1),
            ("ground_truth/ko", 1),
        )
    },
}


@pytest.mark.parametrize("name", ["mvtec", "visa", "btad", "magnetic-tile"])
def test_a_public_set_is_converted_after_a_cut(fetch, web, monkeypatch, name):
    """The original archive, cut off on the way, becomes the layout, with terms and checksum on record."""
    body = ORIGINALS[name]()
    web.files["/set"] = body
    web.cuts["/set"] = [len(body) // 2]
    variable = f"ONENIP_URL_{name.upper().replace('-', '_')}"
    monkeypatch.setenv(variable, f"{web.address}/set#sha256=record")

    fetch(name, accept_license=True)

    found = layout(fetch.data)
    if name == "magnetic-tile":
        normal = found.pop("magnetic_tile/train/good") + found.pop("magnetic_tile/test/good")
        assert normal == 40
        labels = ("blowhole", "crack")
        expected = {f"magnetic_tile/{s}/{k}": 1 for s in ("test", "ground_truth") for k in labels}
        assert found == expected
    else:
        assert found == EXPECTED_ORIGINALS[name]
    for path in fetch.data.rglob("ground_truth/*/*"):
        assert path.name.endswith("_mask.png")
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}
        assert load_mask(path).sum() == 12
    assert [asked for _, asked in web.requests] == ["", f"bytes={len(body) // 2}-"]
    (origin,) = json.loads(fetch.record.read_text())["sources"]
    assert origin["licence"]
    assert origin["citation"]
    assert len(origin["sha256"]) == 64
    assert not fetch(name, accept_license=True).is_changed
    web.files["/set"] = body + body  # every format takes what follows
    with pytest.raises(SourceError, match="not the file of the first download any more"):
        fetch(name, accept_license=True)


def test_textures_go_to_their_own_folder(fetch, web, monkeypatch, tmp_path):
    """DTD is a source of textures, not of products: the data set stays as it is."""
    monkeypatch.chdir(tmp_path)
    web.files["/dtd.tar.gz"] = ORIGINALS["dtd"]()
    monkeypatch.setenv("ONENIP_URL_DTD", f"{web.address}/dtd.tar.gz#sha256=record")

    fetch("dtd")

    assert layout(tmp_path / "textures/dtd") == {"banded": 2, "woven": 2}
    assert not fetch.data.exists()


def test_a_licence_must_be_accepted(fetch):
    """MVTec AD is not even asked for before the user accepts its licence."""
    with pytest.raises(SourceError, match=r"CC BY-NC-SA.*--accept-license"):
        fetch("mvtec")


def test_the_pinned_checksum_holds_for_a_mirror(fetch, web, monkeypatch):
    """A mirror that serves other bytes than the published ones is refused, and nothing is kept."""
    web.files["/set"] = ORIGINALS["mvtec"]()
    monkeypatch.setenv("ONENIP_URL_MVTEC", f"{web.address}/set")

    with pytest.raises(SourceError, match=f"{web.address}/set: wrong checksum"):
        fetch("mvtec", accept_license=True)

    assert not fetch.data.exists()
    assert not list(fetch.data.parent.glob(".onenip/download/data/downloads/*"))


def test_several_sources_become_one_set_and_clashes_are_errors(fetch, tmp_path):
    """Categories of all sources lie side by side; the same category twice stops, naming both."""
    one = write(tmp_path / "one", {"a/1.png": picture(1)})
    two = write(tmp_path / "two", {"b/1.png": picture(2)})
    three = write(tmp_path / "three", {"A/1.png": picture(3)})

    fetch(one, two)
    before = tree(fetch.data)
    with pytest.raises(SourceError, match=f"both {one} and {three} bring a category a"):
        fetch(one, three)

    assert sorted(before) == ["a/train/good/1.png", "b/train/good/1.png"]
    assert tree(fetch.data) == before
    fetch(two)
    assert sorted(tree(fetch.data)) == ["b/train/good/1.png"]


FAILURES = {
    "not found": ("/absent.zip", "status 404: there is no such file"),
    "circle": ("/loop", "redirects in a circle"),
    "web page": ("/page.zip", "a web page came instead"),
    "hidden web page": ("/hidden.zip", "a web page came instead"),
    "no archive": ("/text.zip", "neither a zip nor a tar"),
    "checksum": (f"/good.zip#sha256={'0' * 64}", "wrong checksum"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_download_changes_nothing(fetch, web, tmp_path, kind):
    """The address and what to do are said in a line; data and record stay as they were."""
    fetch(write(tmp_path / "old", {"a/1.png": picture(1)}))
    before, record = tree(fetch.data), fetch.record.read_bytes()
    web.files |= {
        "/hidden.zip": b"<!DOCTYPE html><html>",
        "/text.zip": b"hello" * 100,
        "/good.zip": pack_zip({"a/1.png": picture(2)}),
    }
    web.pages["/page.zip"] = b"<html>log in</html>"
    path, message = FAILURES[kind]

    with pytest.raises(SourceError, match=message) as caught:
        fetch(web.address + path if kind != "circle" else f"{web.address}/loop")

    assert web.address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(fetch.data) == before
    assert fetch.record.read_bytes() == record


def test_a_busy_server_is_asked_again(web, tmp_path):
    """After 503 and several cuts only the missing bytes are asked for; the file is right in the end."""
    web.files["/f"] = bytes(range(256)) * 4000
    web.statuses["/f"] = [503, 429]
    web.cuts["/f"] = [300_000, 300_000]

    done = fetch_file(f"{web.address}/f", tmp_path / "f", wait_seconds=0.01)

    assert done.path.read_bytes() == web.files["/f"]
    begins = [int(asked[6:-1]) for _, asked in web.requests if asked]
    assert begins == [300_000, 600_000]


@pytest.mark.parametrize("tag", ['"\xfc\xff"', "\xfc"])
def test_a_tag_that_cannot_be_sent_back_is_none(web, tmp_path, tag):
    """A server that names its file in other letters than ASCII is asked for all of it again."""
    web.files["/f"] = bytes(range(256)) * 400
    web.tags["/f"] = tag
    web.cuts["/f"] = [1000]

    done = fetch_file(f"{web.address}/f", tmp_path / "f", wait_seconds=0.01)

    assert (done.tag, done.path.read_bytes()) == ("", web.files["/f"])
    assert [asked for _, asked in web.requests] == ["", ""]


def test_a_host_whose_name_is_none_is_one_line(tmp_path):
    """Such as one with a part of 300 letters, which no resolver takes."""
    with pytest.raises(SourceError, match="not an address to download from"):
        fetch_file(f"http://{'a' * 300}.example/f", tmp_path / "f", wait_seconds=0.01)


def test_a_download_that_is_always_cut_goes_on_in_the_next_run(web, tmp_path):
    """What came before the last attempt is kept, and the next run asks for the rest only."""
    web.files["/f"] = bytes(range(256)) * 400
    web.cuts["/f"] = [1000] * 6

    with pytest.raises(SourceError, match="run the same command again"):
        fetch_file(f"{web.address}/f", tmp_path / "f", wait_seconds=0.01)
    assert not (tmp_path / "f").exists()
    done = fetch_file(f"{web.address}/f", tmp_path / "f", wait_seconds=0.01)

    assert done.path.read_bytes() == web.files["/f"]
    assert web.requests[-1][1] == "bytes=6000-"


def test_a_file_that_changes_during_a_download_is_not_mixed(web, tmp_path):
    """A partial file of an older version is thrown away, not continued."""
    web.files["/f"] = b"a" * 90_000
    web.cuts["/f"] = [1000] * 6
    with pytest.raises(SourceError):
        fetch_file(f"{web.address}/f", tmp_path / "f", wait_seconds=0.01)
    web.files["/f"] = b"b" * 90_000

    done = fetch_file(f"{web.address}/f", tmp_path / "f", wait_seconds=0.01)

    assert done.path.read_bytes() == b"b" * 90_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no such folder or file.*mvtec"),
        ("s3://", "expected s3://bucket/prefix"),
        ("https://", "not an address"),
        ("x.txt", "not a folder, an archive"),
        ("empty", "no images found"),
        ("mixed", "images both beside and inside of folders"),
        ("deep", "its split and label are unknown"),
    ],
)
def test_a_source_that_is_none_says_what_is_expected(fetch, tmp_path, monkeypatch, name, message):
    """A wrong --source is one line that names it."""
    write(tmp_path, {"x.txt": b"x", "empty/a.txt": b"x"})
    write(tmp_path / "mixed", {"1.png": picture(1), "a/2.png": picture(2)})
    write(tmp_path / "deep", {"a/b/c/1.png": picture(1), "d/1.png": picture(1)})
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SourceError, match=message):
        fetch(name)

    assert not fetch.data.exists()


def test_names_that_differ_only_by_case_are_refused(fetch, tmp_path):
    """What some file systems would merge is refused by both names."""
    source = write(tmp_path / "in", {"a/X.png": picture(1), "a/x.png": picture(2)})

    with pytest.raises(SourceError, match=r"X\.png and .*x\.png differ only by case"):
        fetch(source)


def test_the_data_set_cannot_be_its_own_source(fetch, tmp_path):
    """Downloading from `data/` into `data/` is refused."""
    fetch(write(tmp_path / "in", {"a/1.png": picture(1)}))

    with pytest.raises(SourceError, match="is the data set itself"):
        fetch(fetch.data)


def test_a_hand_made_change_is_undone(fetch, tmp_path):
    """The data becomes exactly what the sources name, whatever someone did to it."""
    source = write(tmp_path / "in", {"a/1.png": picture(1), "a/2.png": picture(2)})
    fetch(source)
    before = tree(fetch.data)
    write(fetch.data, {"a/train/good/1.png": b"changed", "b/extra.png": b"x"})

    assert fetch(source).is_changed
    assert tree(fetch.data) == before


def test_two_downloads_do_not_meet(fetch, tmp_path):
    """A second download into the same checkout is refused while another process is at work."""
    source = write(tmp_path / "in", {"a/1.png": picture(1)})

    with held_elsewhere(fetch.data.parent, "download"), pytest.raises(BusyError, match="download"):
        fetch(source)

    assert fetch(source).is_changed


@pytest.mark.parametrize(
    ("options", "message"), [("size=200k", "disk is full"), ("ro", "read-only")]
)
def test_a_full_or_read_only_disk_is_one_line(tmp_path, options, message):
    """Where nothing can be written the old data stays, and the reason is said."""
    disk = tmp_path / "disk"
    disk.mkdir()
    small = f"{options},size=200k" if options == "ro" else options
    mount = ["mount", "-t", "tmpfs", "-o", small, "tmpfs", str(disk)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount")
    try:
        noise = {f"a/{i}.png": picture(i) * 40 for i in range(10)}
        with pytest.raises(SourceError, match=message) as caught:
            download.run(
                make_tiny_params(),
                sources=[str(write(tmp_path / "in", noise))],
                data_dir=disk / "data",
                record=tmp_path / "origin.json",
            )
        assert "\n" not in str(caught.value)
        assert not (disk / "data").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_secrets_of_an_address_are_neither_kept_nor_printed(fetch, web, caplog, monkeypatch):
    """User, password and signature fetch the archive; record, log and errors show the bare address.

    The environment may hold them.
    """
    web.files["/set.zip?sign=SECRET"] = pack_zip({"a/0.png": picture(1)})
    host = web.address.removeprefix("http://")

    fetch(f"http://ada:SECRET@{host}/set.zip?sign=SECRET")
    monkeypatch.setenv("PLANT", "SECRET")
    fetch(f"http://ada:${{PLANT}}@{host}/set.zip?sign=${{PLANT}}")
    with pytest.raises(SourceError, match="PLANT_2 is not set"):
        fetch(f"http://${{PLANT_2}}@{host}/set.zip")
    with pytest.raises(SourceError) as caught:
        fetch(f"http://ada:SECRET@{host}/absent.zip")

    record = (fetch.data.parent / "origin.json").read_text()
    assert "SECRET" not in record + caplog.text + str(caught.value)
    assert "***@" in record


def test_a_public_server_cannot_lead_into_a_private_network():
    """A redirect from a public to a private host, or to this machine, is refused; others are not."""
    for target in (
        "http://127.0.0.1/x",
        "http://10.0.0.1/x",
        "http://[::1]/",
        "http://169.254.1.1/",
    ):
        reply = httpx.Response(
            302, headers={"Location": target}, request=httpx.Request("GET", "http://1.1.1.1/a")
        )
        with pytest.raises(SourceError, match="private network"):
            http._refuse_private_redirect(reply)
    for start, target in (("http://1.1.1.1/a", "http://8.8.8.8/b"), ("http://10.0.0.1/a", "/b")):
        reply = httpx.Response(
            302, headers={"Location": target}, request=httpx.Request("GET", start)
        )
        http._refuse_private_redirect(reply)
