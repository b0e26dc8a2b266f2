"""S3, against a real server: what changed is fetched, whatever goes wrong is said, nothing is mixed."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from flows import local_s3
from onenip.errors import SourceError
from onenip.images import hash_file
from onenip.sources.s3 import Bucket
from onenip.stages import download
from tests.sources.originals import ORIGINALS, pack_zip, picture
from tests.sources.web import Web, Wire, running_web
from tests.tiny import make_tiny_params

BIG = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A client of the real server; the environment holds its credentials."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return boto3.Session().client("s3")


@pytest.fixture
def wire(s3_server, monkeypatch):
    """The connection to the real server, to be watched and cut."""
    target = urlsplit(s3_server.endpoint)
    with Wire((target.hostname, target.port), []) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.address)
        yield running


@pytest.fixture
def fetch(tmp_path):
    """Download into a data set of this test's own."""

    def run(*sources: str, **options):
        return download.run(
            make_tiny_params(),
            sources=sources,
            data_dir=tmp_path / "set/data",
            record=tmp_path / "set/origin.json",
            **options,
        )

    run.data = tmp_path / "set/data"
    return run


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file by its path."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def put(s3, prefix: str, files: dict[str, bytes]) -> None:
    """Objects below a prefix of the bucket `images`."""
    for name, body in files.items():
        s3.put_object(Bucket="images", Key=f"{prefix}/{name}", Body=body)


def test_only_new_and_changed_objects_are_fetched(s3, wire, fetch):
    """A second download transfers what came or changed, and drops what went."""
    prefix = "delta set/\u00e4"
    put(s3, prefix, {f"a/train/good/{i} x.png": picture(i) * 40 for i in range(4)})
    put(s3, prefix, {"a/train/good/": b""})
    size = len(picture(0)) * 40

    assert fetch(f"s3://images/{prefix}").is_changed
    assert wire.passed > 4 * size
    wire.passed = 0
    assert not fetch(f"s3://images/{prefix}").is_changed
    assert wire.passed < size
    put(s3, prefix, {"a/train/good/0 x.png": picture(9) * 40, "b/train/good/1.png": picture(8)})
    s3.delete_object(Bucket="images", Key=f"{prefix}/a/train/good/3 x.png")
    wire.passed = 0
    fetch(f"s3://images/{prefix}")

    assert wire.passed < 2 * size
    names = [*(f"a/train/good/{i} x.png" for i in range(3)), "b/train/good/1.png"]
    assert sorted(tree(fetch.data)) == names
    assert (fetch.data / "a/train/good/0 x.png").read_bytes() == picture(9) * 40


def test_a_cut_object_goes_on_where_it_was(s3, wire, tmp_path):
    """After two cuts in the middle only the rest is asked for, and the bytes are right."""
    s3.put_object(Bucket="images", Key="cut/big", Body=BIG)
    bucket = Bucket("s3://images/cut/big")
    (item,) = bucket.list_objects()
    wire.cuts, wire.passed = [600_000, 600_000], 0

    bucket.fetch({tmp_path / "big": item})

    assert (tmp_path / "big").read_bytes() == BIG
    assert wire.cuts == []
    assert wire.passed < len(BIG) + 600_000
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_large_object_comes_in_parts_and_its_checksum_is_checked(s3, tmp_path):
    """An object that was uploaded in parts is fetched in other parts, and checked all the same."""
    upload = s3.create_multipart_upload(Bucket="images", Key="parts/big")["UploadId"]
    size = 5 << 20
    body = BIG * 4
    parts = []
    for number in (1, 2):
        part = body[(number - 1) * size : number * size]
        reply = s3.upload_part(
            Bucket="images", Key="parts/big", UploadId=upload, PartNumber=number, Body=part
        )
        parts.append({"PartNumber": number, "ETag": reply["ETag"]})
    s3.complete_multipart_upload(
        Bucket="images", Key="parts/big", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    bucket = Bucket("s3://images/parts/big", part_bytes=1 << 20)
    (item,) = bucket.list_objects()

    bucket.fetch({tmp_path / "big": item})

    assert item.etag.endswith("-2")
    assert (tmp_path / "big").read_bytes() == body


def test_an_object_that_changes_meanwhile_is_not_mixed(s3, tmp_path):
    """An object that was replaced after the listing is an error that names it; nothing stays."""
    s3.put_object(Bucket="images", Key="change/big", Body=BIG)
    bucket = Bucket("s3://images/change")
    (item,) = bucket.list_objects()
    s3.put_object(Bucket="images", Key="change/big", Body=BIG[::-1])

    with pytest.raises(SourceError, match="s3://images/change/big: the object changed"):
        bucket.fetch({tmp_path / "big": item})

    assert not (tmp_path / "big").exists()


def test_damaged_bytes_are_noticed_and_removed(s3, tmp_path):
    """A part on disk that is not the object's is found by the checksum and not kept."""
    s3.put_object(Bucket="images", Key="bad/big", Body=BIG)
    bucket = Bucket("s3://images/bad")
    (item,) = bucket.list_objects()
    (tmp_path / "big.part0").write_bytes(b"x" * 1000)

    with pytest.raises(SourceError, match=r"wrong checksum.*run the command again"):
        bucket.fetch({tmp_path / "big": item})

    assert list(tmp_path.iterdir()) == []
    bucket.fetch({tmp_path / "big": item})
    assert (tmp_path / "big").read_bytes() == BIG


FAILURES = {
    "key": ({"AWS_ACCESS_KEY_ID": "other"}, "s3://images/fail", "AWS_ACCESS_KEY_ID"),
    "secret": ({"AWS_SECRET_ACCESS_KEY": "other"}, "s3://images/fail", "AWS_SECRET_ACCESS_KEY"),
    "bucket": ({}, "s3://absent/fail", "no such bucket"),
    "prefix": ({}, "s3://images/absent", "holds nothing there"),
    "endpoint": ({"AWS_ENDPOINT_URL": "no address"}, "s3://images/fail", "nvalid endpoint"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_refusal_says_what_to_do_and_changes_nothing(s3, fetch, monkeypatch, kind):
    """Each refusal of the server is one line with the address; data that was there stays."""
    put(s3, "fail", {"a/train/good/1.png": picture(1)})
    fetch("s3://images/fail")
    before = tree(fetch.data)
    environment, source, message = FAILURES[kind]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SourceError, match=message) as caught:
        fetch(source)

    assert str(caught.value).startswith("s3://")
    assert "\n" not in str(caught.value)
    assert tree(fetch.data) == before


def test_unsigned_access_is_denied_to_what_is_not_public(s3, fetch):
    """Without credentials a private bucket is denied, with a hint."""
    put(s3, "denied", {"a/train/good/1.png": picture(1)})

    with pytest.raises(SourceError, match="access is denied"):
        fetch("s3://images/denied", sign_request=False)


def test_unsigned_access_reads_a_public_bucket(s3, fetch, monkeypatch):
    """A public bucket is read with no credentials at hand."""
    s3.create_bucket(Bucket="public")
    allow = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*",'
        '"Action":["s3:GetObject","s3:ListBucket"],'
        '"Resource":["arn:aws:s3:::public","arn:aws:s3:::public/*"]}]}'
    )
    s3.put_bucket_policy(Bucket="public", Policy=allow)
    s3.put_object(Bucket="public", Key="a/train/good/1.png", Body=picture(1))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    fetch("s3://public", sign_request=False)

    assert sorted(tree(fetch.data)) == ["a/train/good/1.png"]


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("code", "message"),
    [("RequestTimeTooSkewed", "clock is wrong"), ("ExpiredToken", "credentials expired")],
)
def test_what_a_local_server_never_says_is_explained_too(monkeypatch, code, message):
    """A wrong clock and expired credentials are told apart."""
    with running_web(Web()) as web:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>"
        web.answers["/images"] = (403, body.encode())
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
        with pytest.raises(SourceError, match=message):
            Bucket("s3://images/x").list_objects()


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("key", ["x/../../evil.png", "x//etc/../evil.png", "x/a\\..\\evil.png"])
def test_an_unsafe_key_is_refused(fetch, monkeypatch, key):
    """A key that would climb out of the data set, as some servers allow, is refused by name."""
    entry = f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag></Contents>"
    listing = f"<ListBucketResult><Name>images</Name>{entry}</ListBucketResult>"
    with running_web(Web()) as web:
        web.answers["/images"] = (200, listing.encode())
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
        with pytest.raises(SourceError, match=r"evil\.png.*leads out"):
            fetch("s3://images/x")

    assert not fetch.data.exists()


def test_archives_in_a_bucket_are_unpacked(s3, fetch, monkeypatch):
    """An archive as an object, and VisA's from a bucket, become the layout, once."""
    put(s3, "arc", {"set.zip": pack_zip({"a/train/good/1.png": picture(1)})})
    s3.put_object(Bucket="images", Key="VisA_20220922.tar", Body=ORIGINALS["visa"]())
    visa = "s3://images/VisA_20220922.tar#sha256=record"
    monkeypatch.setenv("ONENIP_URL_VISA", visa)

    result = fetch("s3://images/arc/set.zip", "visa")

    assert result.categories == {"a": 1, "candle": 5, "pcb1": 5}
    assert not fetch("s3://images/arc/set.zip", "visa").is_changed


def test_a_local_server_tells_a_full_disk_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(local_s3, "_MIN_FREE_MEGABYTES", 2**40)
    with pytest.raises(SourceError, match=rf"{tmp_path}.*MiB are free"):
        local_s3.start_s3(tmp_path / "s3")


def test_the_inner_parts_speak_to_nobody_without_the_servers_certificate(tmp_path):
    """Over gRPC, the master and the filer end a connection that is not certified; the key is private."""
    with local_s3.running_s3(tmp_path, buckets=("images",)) as server:
        words = Path(f"/proc/{server.process_id}/cmdline").read_text().split("\0")
        ports = dict(word.split("=", 1) for word in words if ".port=" in word)
        stranger, own = ssl._create_unverified_context(), ssl._create_unverified_context()
        own.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
        for context in (stranger, own):
            context.set_alpn_protocols(["h2"])
        for kind in ("-master.port", "-filer.port"):
            address = ("127.0.0.1", int(ports[kind]) + 10_000)

            assert greet(own, address)
            with pytest.raises(ssl.SSLError):
                greet(stranger, address)
    assert (tmp_path / "tls.key").stat().st_mode & 0o077 == 0


def greet(context, address):
    """What a gRPC server answers to the first bytes of HTTP/2."""
    with (
        socket.create_connection(address, timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        return connection.recv(9)
