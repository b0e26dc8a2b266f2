"""Signatures of notices, by the standard's own example."""

from __future__ import annotations

import pytest

from onenip.operation.notices import NoticeError, sign


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
