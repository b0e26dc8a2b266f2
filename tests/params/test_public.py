"""What params say where others read them: nothing that grants access."""

import json

import pytest

from onenip.addresses import hide_secrets
from onenip.params import Params


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://bucket/set", "s3://bucket/set"),
        ("../images", "../images"),
        ("https://me:word@host:8/a.zip", "https://***@host:8/a.zip"),
        ("https://host/a.zip?X-Amz-Signature=1#x", "https://host/a.zip?***"),
        ("http://[broken", "***"),
    ],
)
def test_an_address_is_shown_without_what_grants_access(address, shown):
    """Password, token, signature and fragment go; the rest stays, so that a person knows which it is."""
    assert hide_secrets(address) == shown


def test_params_that_are_tracked_hold_no_secret():
    """Neither a webhook nor a password in an address reaches MLflow; a name of a variable does."""
    secret = {
        "notify": {"webhook": "https://hooks.example/T0/secret"},
        "retrain": {"inbox": "s3://key:secret@bucket/in"},
        "download": {"urls": {"visa": "https://mirror.example/visa.tar?sig=secret"}},
    }

    assert "secret" not in json.dumps(Params.parse(secret).dump_public())
    named = Params.parse({"notify": {"webhook": "$TEAM_HOOK"}}).dump_public()
    assert named["notify"]["webhook"] == "$TEAM_HOOK"
