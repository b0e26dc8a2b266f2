"""Archives from strangers: unpacked whole, or refused by name with nothing left behind."""

from __future__ import annotations

import io
import lzma
import shutil
import stat
import tarfile
import zipfile

import pytest

from onenip.errors import SourceError
from onenip.sources.archive import extract
from onenip.sources.items import Limits
from tests.drill import damage
from tests.sources.originals import pack_tar, pack_zip

SMALL = Limits(total_bytes=10_000, ratio=200, files=5)


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    """A tar of entries that hold nothing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for info in infos:
            packed.addfile(info, io.BytesIO(b"x" * info.size))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """One entry of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return info


def zip_with_mode(name: str, mode: int, body: bytes) -> bytes:
    """A zip whose only entry has a Unix mode, such as a link's."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        packed.writestr(info, body)
    return buffer.getvalue()


UNSAFE = {
    "zip traversal": (pack_zip({"a/../../evil.png": b"x"}), "evil.png"),
    "tar traversal": (pack_tar({"../evil.png": b"x"}), "evil.png"),
    "zip absolute": (pack_zip({"/etc/evil.png": b"x"}), "evil.png"),
    "tar absolute": (pack_tar({"/etc/evil.png": b"x"}), "evil.png"),
    "drive": (pack_zip({"C:/evil.png": b"x"}), "evil.png"),
    "backslash": (pack_tar({"a\\..\\evil.png": b"x"}), "evil.png"),
    "folder": (tar_of(entry("../evil", tarfile.DIRTYPE)), "evil"),
    "symlink out": (tar_of(entry("a/evil.png", tarfile.SYMTYPE, "../../etc/passwd")), "evil.png"),
    "symlink absolute": (tar_of(entry("evil.png", tarfile.SYMTYPE, "/etc/passwd")), "evil.png"),
    "hard link out": (tar_of(entry("evil.png", tarfile.LNKTYPE, "../passwd")), "passwd"),
    "link to nothing": (tar_of(entry("evil.png", tarfile.SYMTYPE, "absent.png")), "evil.png"),
    "link circle": (
        tar_of(entry("evil", tarfile.SYMTYPE, "b"), entry("b", tarfile.SYMTYPE, "evil")),
        "evil",
    ),
    "zip symlink out": (zip_with_mode("evil", stat.S_IFLNK | 0o777, b"../../x"), "evil"),
    "zip device": (zip_with_mode("evil", stat.S_IFCHR | 0o666, b""), "evil"),
    "device": (tar_of(entry("evil", tarfile.CHRTYPE)), "evil"),
    "pipe": (tar_of(entry("evil", tarfile.FIFOTYPE)), "evil"),
    "case": (pack_zip({"a/x.png": b"1", "A/y.png": b"2"}), "a and A"),
    "same name": (pack_tar({"x.png": b"1", "./x.png": b"2"}), "x.png"),
    "unicode": (pack_zip({"caf\u00e9.png": b"1", "cafe\u0301.png": b"2"}), "caf"),
    "file and folder": (pack_tar({"a/x.png": b"1", "a": b"2"}), "a"),
    "total": (pack_zip({"big.png": bytes(20_000)}), "big.png"),
    "number": (pack_zip({f"{i}.png": b"x" for i in range(6)}), "more than 5"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_archive_is_refused_by_name(tmp_path, kind):
    """Whatever would leave the folder, or fill the disk, is named, and nothing is written."""
    body, named = UNSAFE[kind]
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in/set.bin"
    archive.write_bytes(body)

    with pytest.raises(SourceError) as caught:
        extract(archive, tmp_path / "in/out", limits=SMALL)

    assert named in str(caught.value)
    assert "set.bin" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "set.bin"]


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    """A file that unpacks to hundreds of times its size stops before the disk is full."""
    archive = tmp_path / "bomb.zip"
    archive.write_bytes(pack_zip({"a.png": bytes(80 << 20)}))

    with pytest.raises(SourceError, match=r"a\.png: unpacks to 200 times"):
        extract(archive, tmp_path / "out", limits=Limits())

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compression", ["zip", "", "gz", "bz2", "xz"])
def test_archives_are_told_by_content_and_links_become_files(tmp_path, compression):
    """Every kind unpacks to the same files; a link within the archive becomes what it points to."""
    files = {"a/x y.png": b"1", "a/\u00e4.png": b"22"}
    body = pack_zip(files) if compression == "zip" else pack_tar(files, compression)
    (tmp_path / "set").write_bytes(body)

    out = extract(tmp_path / "set", tmp_path / "out", limits=SMALL)

    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.png")} == files
    (tmp_path / "links").write_bytes(
        tar_of(entry("a/x"), entry("b", tarfile.SYMTYPE, "a/x"), entry("c", tarfile.LNKTYPE, "a/x"))
    )
    linked = extract(tmp_path / "links", tmp_path / "linked", limits=SMALL)
    assert (linked / "b").read_bytes() == (linked / "c").read_bytes() == b"xxx"
    assert not (linked / "b").is_symlink()


@pytest.mark.parametrize("pack", [pack_zip, lambda files: pack_tar(files, "gz")])
def test_a_damaged_archive_says_so(tmp_path, pack):
    """An archive that was cut off names itself, and leaves no folder that looks complete."""
    body = pack({f"{i}.png": bytes(range(256)) * 20 for i in range(4)})
    (tmp_path / "set.x").write_bytes(body[: len(body) // 2])

    with pytest.raises(SourceError, match=r"set\.x"):
        extract(tmp_path / "set.x", tmp_path / "out", limits=Limits())

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_checksum_at_the_end_counts(tmp_path, kind):
    """Damage in the last bytes, behind all entries, is noticed as any other."""
    content = bytearray(pack_tar({"a.png": b"x" * 5000}, kind))
    content[-6] ^= 1
    (tmp_path / "x.tar").write_bytes(content)

    with pytest.raises(SourceError, match="damaged archive"):
        extract(tmp_path / "x.tar", tmp_path / "out", limits=SMALL)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", ".", "./", "a" * 300 + ".png", "a/" * 2000 + "x.png"])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    """Empty, too long and too deep names are refused, whatever the format."""
    archives = {"tar": pack_tar({name: b"x"})} | ({"zip": pack_zip({name: b"x"})} if name else {})
    for kind, content in archives.items():
        (tmp_path / kind).write_bytes(content)
        try:
            extract(tmp_path / kind, tmp_path / f"{kind}-out", limits=SMALL)
        except SourceError as error:
            assert "refused" in str(error)  # noqa: PT017  # some names are those of folders
        assert not list((tmp_path / f"{kind}-out").rglob("*"))


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, kind):
    """Names and attributes of an entry are read whole, so 3 MB could stand for 20 GB of them."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2 << 20
    for first in (b"", tar_of(entry("a"))[:1024]):
        content = first + header.tobuf(tarfile.USTAR_FORMAT) + bytes(3 << 20)
        (tmp_path / "x.tar").write_bytes(lzma.compress(content))

        with pytest.raises(SourceError, match="a header of 2097152 bytes"):
            extract(tmp_path / "x.tar", tmp_path / "out", limits=SMALL)


def test_names_in_utf_8_are_read_where_the_zip_does_not_say_so(tmp_path):
    """Some archivers write UTF-8 without its flag, which would be read as letters of DOS."""
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("DXXbel/0.png", b"x")
    archive.write_bytes(archive.read_bytes().replace(b"DXXbel", "Dübel".encode()))

    folder = extract(archive, tmp_path / "out", limits=SMALL)

    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.png")] == [
        "Dübel/0.png"
    ]


def test_a_zip_of_powershell_unpacks(tmp_path):
    """Its backslashes separate folders, and lead out of none."""
    (tmp_path / "x.zip").write_bytes(pack_zip({"part\\OK\\0.png": b"x", "part\\NG\\": b""}))
    (tmp_path / "y.zip").write_bytes(pack_zip({"part\\..\\..\\0.png": b"x"}))

    extract(tmp_path / "x.zip", tmp_path / "out", limits=SMALL)

    assert (tmp_path / "out/part/OK/0.png").read_bytes() == b"x"
    with pytest.raises(SourceError, match="leads out"):
        extract(tmp_path / "y.zip", tmp_path / "other", limits=SMALL)


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz"])
def test_damaged_archives_unpack_or_are_one_line(tmp_path, kind, drill):
    """Bytes changed, cut or put in anywhere: all of it is unpacked, or a SourceError and nothing is left."""
    files = {f"a/{i}.png": bytes(range(256)) * i for i in range(4)}
    whole = pack_zip(files) if kind == "zip" else pack_tar(files, kind)
    rng, count = drill.draw(), drill.choose(60, 1500)
    for number in range(count):
        (tmp_path / "x").write_bytes(damage(whole, rng))
        try:
            extract(tmp_path / "x", tmp_path / f"{number}", limits=SMALL)
        except SourceError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either may happen
            assert not (tmp_path / f"{number}").exists()
        else:
            shutil.rmtree(tmp_path / f"{number}")
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
    drill.note("damaged archives of five formats", count)
