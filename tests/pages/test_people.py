"""Who is at the page: what a company's login says of a person."""

import pytest

from onenip.pages.people import find_address


@pytest.mark.parametrize(
    ("claims", "address"),
    [
        ({"email": "ada@plant.example", "email_verified": True}, "ada@plant.example"),
        ({"email": "ada@plant.example", "email_verified": "true"}, "ada@plant.example"),
        ({"email": "ada@plant.example"}, "ada@plant.example"),
        ({"email": "ada@plant.example", "email_verified": False}, ""),
        ({"email": "ada@plant.example", "email_verified": "false"}, ""),
        ({"email": "ada@plant.example", "email_verified": None}, ""),
        ({"email_verified": True}, ""),
        ({"email": None}, ""),
    ],
)
def test_an_address_that_is_not_verified_names_nobody(claims, address):
    """In whatever form a login says so; one that gives no address names nobody either."""
    assert find_address(claims) == address
