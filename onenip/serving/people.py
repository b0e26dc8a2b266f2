"""Who may do what: a list of people with hashed passwords and roles, or the name that a trusted proxy gives.

Reading is open; feedback and review need an inspector, decisions about models an approver. Without a list
feedback over HTTP takes the name that is given, and HTTP refuses decisions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from onenip.data.outputs import OUTPUTS
from onenip.errors import DataError, OneNIPError
from onenip.folders import write_whole
from onenip.review.items import check_person

Role = Literal["viewer", "inspector", "approver"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
ALL = "*"  # every category

_MIN_PASSWORD = 8
_MAX_PASSWORD = 200
_COST, _BLOCK, _SALT_BYTES = 1 << 14, 8, 16  # of scrypt: 16 MB, some 50 ms


class NotAllowedError(OneNIPError):
    """This person may not do that, or nobody said who asks; `status` is that of HTTP, 401 or 403."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Person:
    """A person and their roles.

    Attributes:
        name: as it stands in records.
        roles: by category; `*` holds for all.
    """

    name: str
    roles: Mapping[str, Role]

    def may(self, role: Role, category: str) -> bool:
        """Whether the person has a role, or a higher one, for a category."""
        held = [self.roles[name] for name in (ALL, category) if name in self.roles]
        return any(ROLES.index(one) >= ROLES.index(role) for one in held)

    def require(self, role: Role, category: str) -> None:
        """Make sure that they may.

        Raises:
            NotAllowedError: if they may not.
        """
        if not self.may(role, category):
            raise NotAllowedError(f"{self.name} is no {role} of {category}", status=403)


class People:
    """The list of people, a JSON file that its owner alone can read.

    Args:
        path: the file; may not exist.
    """

    def __init__(self, path: Path = OUTPUTS.people) -> None:
        self._path = path

    @property
    def is_listed(self) -> bool:
        """Whether there is a list: then people are asked for a password."""
        return self._path.exists()

    def list_all(self) -> list[Person]:
        """Everybody, by name.

        Raises:
            DataError: if the file is damaged.
        """
        return [Person(name, row["roles"]) for name, row in sorted(self._read().items())]

    def find(self, name: str) -> Person | None:
        """A person whom somebody else has recognised, such as a proxy; None if they are not listed."""
        row = self._read().get(name)
        return None if row is None else Person(name, row["roles"])

    def check(self, name: str, password: str) -> Person | None:
        """The person, if the password is theirs; takes some 50 ms either way."""
        row = self._read().get(name)
        kept = row["password"] if row else None  # a login elsewhere needs none
        kept = kept or f"{'00' * _SALT_BYTES}${'00' * 32}"
        salt, _, wanted = kept.partition("$")
        found = _hash(password[:_MAX_PASSWORD], bytes.fromhex(salt))
        is_right = secrets.compare_digest(found, bytes.fromhex(wanted))
        return Person(name, row["roles"]) if row and is_right else None

    def add(
        self, name: str, role: Role, *, category: str = ALL, password: str | None = ""
    ) -> Person:
        """List a person, or give them another role or password.

        Args:
            name: as it shall stand in records, and as a proxy or a login gives it.
            role: viewer, inspector or approver.
            category: that the role is for; `*` is all.
            password: empty leaves that of a listed person; None: none, they log in elsewhere.

        Raises:
            DataError: if the role is unknown or the password too short.
        """
        name, rows = check_person(name), self._read()
        if role not in ROLES:
            raise DataError(f"role {role!r}: {', '.join(ROLES)}")
        is_kept = password is None or (name in rows and not password)
        if not (is_kept or _MIN_PASSWORD <= len(password or "") <= _MAX_PASSWORD):
            raise DataError(f"password: {_MIN_PASSWORD} to {_MAX_PASSWORD} characters")
        row = rows.setdefault(name, {"roles": {}})
        row["roles"][category] = role
        if password is None:
            row["password"] = None
        elif password:
            salt = secrets.token_bytes(_SALT_BYTES)
            row["password"] = f"{salt.hex()}${_hash(password, salt).hex()}"
        self._write(rows)
        return Person(name, row["roles"])

    def remove(self, name: str) -> None:
        """Take a person off the list; what they decided stays on record.

        Raises:
            DataError: if they are not on it.
        """
        rows = self._read()
        if rows.pop(name, None) is None:
            raise DataError(f"{name}: not on the list of people")
        self._write(rows)

    def identify(self, authorization: str, proxied: str) -> Person | None:
        """The person behind a request; None if it names nobody.

        Args:
            authorization: header of HTTP Basic, or empty.
            proxied: name that a trusted proxy gives, or empty.

        Raises:
            NotAllowedError: if the password is wrong or the person is not listed.
        """
        if proxied:
            person = self.find(proxied)
            if person is None:
                raise NotAllowedError(f"{proxied[:60]!a}: not on the list of people", status=403)
            return person
        if not authorization:
            return None
        kind, _, packed = authorization.partition(" ")
        try:
            name, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            name, password = "", ""
        person = self.check(name, password) if kind.lower() == "basic" and name else None
        if person is None:
            raise NotAllowedError("wrong name or password", status=401)
        return person

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            rows = dict(json.loads(self._path.read_bytes())["people"])
            for name, row in rows.items():
                salt, _, kept = ("00$00" if row["password"] is None else row["password"]).partition(
                    "$"
                )
                if not (bytes.fromhex(salt) and bytes.fromhex(kept)):
                    raise ValueError(f"{name!a} has no whole password")
                if not set(row["roles"].values()) <= set(ROLES):
                    raise ValueError(f"{name!a} has a role that is none of {', '.join(ROLES)}")
        except FileNotFoundError:
            return {}
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise DataError(f"{self._path}: not a list of people: {error}") from error
        return rows

    def _write(self, rows: Mapping[str, Any]) -> None:
        with write_whole(self._path) as draft:
            draft.touch()
            os.chmod(draft, 0o600)  # noqa: PTH101
            text = json.dumps({"people": rows}, indent=2, sort_keys=True, ensure_ascii=False)
            draft.write_text(text + "\n", encoding="utf-8")


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_COST, r=_BLOCK, p=1)
