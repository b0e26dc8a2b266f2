"""Signatures of notices, by the standard's own example."""

from __future__ import annotations

import email
import socketserver
import threading

import pytest
from PIL import Image

from onenip.addresses import HIDDEN
from onenip.operation.notices import NoticeError, notify, sign
from onenip.params import NotifyParams, Params
from tests.receiver import receiving


def test_signatures_are_those_of_the_standard():
    """Secret, identifier, time, body and signature as standardwebhooks.com publishes them."""
    headers = sign(
        '{"test": 2432232314}',
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        identifier="msg_p5jXN8AQM9LWM0D4loKWxJek",
        moment=1614265330,
    )

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_secret_that_only_looks_like_the_standards_is_refused():
    """A receiver could never check it."""
    with pytest.raises(NoticeError, match="ONENIP_WEBHOOK_SECRET"):
        sign("{}", secret="whsec_short", identifier="msg_1", moment=0)


def test_people_get_a_notice_once_with_its_picture(tmp_path):
    """An address of apprise gets title, sentence and picture; the same again within the time is not sent."""
    picture = tmp_path / "part.png"
    Image.new("RGB", (4, 4)).save(picture)
    with receiving() as receiver:
        port = receiver.address.rsplit(":", 1)[1].strip("/")
        params = NotifyParams(addresses=(f"json://127.0.0.1:{port}", "mailto://nobody@127.0.0.1:9"))
        values = {"facts": {}, "params": params, "memory": tmp_path / "notices.json"}
        first = notify("champion-drifts", "bottle drifts", picture=picture, **values)
        again = notify("champion-drifts", "bottle drifts", picture=picture, **values)
        other = notify("champion-drifts", "cap drifts", **values)

    assert first
    assert again
    assert other
    told, second = receiver.deliveries
    assert (told.content["title"], told.content["message"]) == (
        "onenip: champion drifts",
        "bottle drifts",
    )
    assert told.content["attachments"][0]["filename"] == "part.png"
    assert second.content["message"] == "cap drifts"


class Mailbox(socketserver.StreamRequestHandler):
    """Takes mail; the server's `letters` hold it."""

    def handle(self):
        """Take one letter."""
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().upper().strip():
            if line == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                content = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.letters.append(email.message_from_bytes(content))
            self.wfile.write(b"250 well\r\n")
            if line == b"QUIT":
                return


def test_a_mail_keeps_lines_signs_and_picture(tmp_path):
    """A summary by mail reads as in the terminal, whatever a category is called."""
    picture = tmp_path / "part.png"
    Image.new("RGB", (4, 4)).save(picture)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        server.letters, server.daemon_threads = [], True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"mailto://127.0.0.1:{server.server_address[1]}?from=a@b.example&to=c@d.example"
        text, params = "bottle: 3\n<cap> & *x*: 2", NotifyParams(addresses=(address,))
        sent = notify(
            "summary", text, facts={}, params=params, picture=picture, memory=tmp_path / "sent"
        )
        server.shutdown()

    assert sent
    parts = {
        part.get_content_type(): part.get_payload(decode=True)
        for part in server.letters[0].walk()
        if not part.is_multipart()
    }
    assert parts["text/plain"].decode().split() == text.split()
    assert b"3<br" in parts["text/html"]
    assert b"&lt;cap&gt;" in parts["text/html"]
    assert parts["image/png"] == picture.read_bytes()


def test_addresses_are_secrets():
    """What is kept of params where others read them shows no address, but names of variables."""
    params = Params.parse({"notify": {"addresses": ["slack://a/b/c", "$MAIL"]}})

    assert params.dump_public()["notify"]["addresses"] == [HIDDEN, "$MAIL"]


def test_a_webhook_whose_host_is_none_stops_nothing(tmp_path, caplog):
    """A part of 300 letters, which no resolver takes, is logged as any other that is down."""
    params = NotifyParams(webhook=f"http://{'a' * 300}.example/")

    assert not notify("run-failed", "it failed", facts={}, params=params, memory=tmp_path / "sent")
    assert "nobody was told that it failed" in caplog.text
