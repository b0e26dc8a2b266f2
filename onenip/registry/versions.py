"""Registered models `onenip-<category>`: their versions and aliases.

Reading, and the small writes that need no decision. Who may become champion is decided in
`approval`.
"""

from __future__ import annotations

import re
import shlex
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from onenip.errors import DataError, RegistryError, UnknownCategoryError
from onenip.registry import store
from onenip.registry.tags import (
    PREFIX,
    GateResult,
    Version,
    dump_gate_result,
    is_ours,
    registered_name,
    to_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS = "previous"
PROVISIONAL = "provisional"

_ALL = f"name LIKE '{PREFIX}%'"
_PAGE = 1000  # models at a time
_SPANS = 4  # searches for versions, at most


@dataclass(frozen=True)
class Standing:
    """What the registry holds of one category: its registered model, and the versions with an alias.

    Attributes:
        category: the product category.
        aliases: version numbers by alias.
        tags: of the registered model.
        found: those of champion, challenger and the provisional version, as MLflow holds them, by number.
    """

    category: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    found: Mapping[int, ModelVersion]

    @property
    def champion(self) -> Version | None:
        """The version that serves, None if nothing was approved yet."""
        return self.version(CHAMPION)

    @property
    def challenger(self) -> Version | None:
        """The version that waits for a decision, None if none does."""
        return self.version(CHALLENGER)

    @property
    def provisional(self) -> Version | None:
        """The version that stands in while there is no champion, None if none does."""
        return self.version(PROVISIONAL)

    @property
    def serving(self) -> Version | None:
        """The version that answers: the champion, else the provisional one, None if there is neither."""
        return self.champion or self.provisional

    def version(self, alias: str) -> Version | None:
        """The version that one of these aliases names, None if none does.

        Raises:
            RegistryError: if it was not made by `onenip register`, its tags were damaged, or it is gone.
        """
        number = self.aliases.get(alias)
        if number is None:
            return None
        if number not in self.found:
            raise RegistryError(f"{self.category}: version {number}, the {alias}, is gone")
        return to_version(self.category, self.found[number], self.aliases)


@dataclass(frozen=True)
class Snapshot:
    """The registry at one moment, read in a few requests, however many categories there are.

    Attributes:
        standings: by category, sorted.
        asked_at: reading of the steady clock when the registry was asked.
    """

    standings: Mapping[str, Standing]
    asked_at: float

    @property
    def age_seconds(self) -> float:
        """Time since the registry was asked."""
        return time.monotonic() - self.asked_at

    @property
    def champions(self) -> list[Version]:
        """The champions of all categories, sorted by category."""
        found = (one.champion for one in self.standings.values())
        return [version for version in found if version is not None]

    def only(self, category: str) -> Snapshot:
        """The same of one category."""
        return replace(self, standings={category: self.standing(category)})

    def standing(self, category: str) -> Standing:
        """A category's standing; one of nothing if it is not registered."""
        return self.standings.get(category) or Standing(category, {}, {}, {})


def approval_command(category: str) -> str:
    """What to type to approve a category's challenger, but for who and why."""
    return f"onenip approve {shlex.quote(category)} --by NAME --reason TEXT"


def read_snapshot(category: str | None = None) -> Snapshot:
    """What the registry holds now of all categories, or of one.

    Args:
        category: only this one; the snapshot is empty if it is not registered.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    asked_at = time.monotonic()
    if store.is_absent():
        return Snapshot({}, asked_at)
    client = store.connect()
    named = _ALL if category is None else _name_is(category)
    with store.refusals("registered models"):
        models = _search_models(client, named)
        roles = (CHAMPION, CHALLENGER, PROVISIONAL)
        named_numbers = (model.aliases.get(role) for model in models for role in roles)
        numbers = {int(number) for number in named_numbers if number is not None}
        found: dict[str, dict[int, ModelVersion]] = {}
        for first, last in _span(numbers):
            wanted = f"{named} AND version_number >= {first} AND version_number <= {last}"
            for version in _search_versions(client, wanted):
                found.setdefault(version.name, {})[int(version.version)] = version
    standings = [
        Standing(
            category=_to_category(model.name),
            aliases=_read_aliases(model),
            tags=model.tags,
            found=found.get(model.name, {}),
        )
        for model in models
    ]
    standings.sort(key=lambda one: one.category)
    return Snapshot({one.category: one for one in standings}, asked_at)


def read_standing(category: str) -> Standing:
    """What the registry holds now of one category; nothing if it is not registered.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    return read_snapshot(category).standing(category)


def list_categories() -> list[str]:
    """Categories that have a registered model, sorted.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    if store.is_absent():
        return []
    with store.refusals("registered models"):
        models = _search_models(store.connect(), _ALL)
    return sorted(_to_category(model.name) for model in models)


def require_category(category: str) -> None:
    """Make sure that a category is registered.

    Raises:
        RegistryError: if it is not; names the closest one, or all.
    """
    known = list_categories()
    if category not in known:
        raise RegistryError(str(UnknownCategoryError(category, known, kind="registered")))


def list_versions(category: str | None = None) -> list[Version]:
    """All versions of a category, or of all, by category and oldest first; empty if it is unknown.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    if store.is_absent():
        return []
    client = store.connect()
    named = _ALL if category is None else _name_is(category)
    with store.refusals(f"versions of {category or 'all categories'}"):
        found = _search_versions(client, named)
        aliases = {model.name: _read_aliases(model) for model in _search_models(client, named)}
    versions = [
        to_version(_to_category(one.name), one, aliases.get(one.name, {}))
        for one in found
        if is_ours(one)
    ]
    return sorted(versions, key=lambda version: (version.category, version.number))


def find_version(category: str, number: int) -> Version:
    """One version of a category.

    Raises:
        RegistryError: if there is no such category or version, or the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    client = store.connect()
    name = registered_name(category)
    with store.refusals(f"version {number} of {name}"):
        try:
            found = client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise _no_version(category, number) from error
        return to_version(category, found, read_aliases(category))


def aliased_version(category: str, alias: str) -> Version | None:
    """The version that an alias names, None if none does.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    number = read_aliases(category).get(alias)
    return None if number is None else find_version(category, number)


def find_addressed(address: str) -> Version:
    """The version that `models:/onenip-C@ALIAS` or `models:/onenip-C/NUMBER` names.

    Raises:
        DataError: if it is no such address.
        RegistryError: if there is no such category or version, or the registry cannot be reached.
    """
    parts = re.fullmatch(rf"models:/{PREFIX}(.+?)(?:@(\w+)|/(\d+))", address)
    if parts is None:
        raise DataError(
            f"{address}: neither models:/{PREFIX}CATEGORY@champion nor models:/{PREFIX}CATEGORY/NUMBER"
        )
    category, alias, number = urllib.parse.unquote(parts[1]), parts[2], parts[3]
    if number:
        return find_version(category, int(number))
    version = aliased_version(category, alias)
    if version is None:
        require_category(category)
        raise RegistryError(f"{address}: {category} has no {alias}; see `onenip status`")
    return version


def champion(category: str) -> Version | None:
    """The version that serves, None if none was approved yet."""
    return read_standing(category).champion


def challenger(category: str) -> Version | None:
    """The version that waits for a decision, None if none does."""
    return read_standing(category).challenger


def provisional(category: str) -> Version | None:
    """The version that stands in while there is no champion, None if there is none."""
    return read_standing(category).provisional


def read_aliases(category: str) -> dict[str, int]:
    """Version numbers by alias; empty if the category is unknown.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    if store.is_absent():
        return {}
    with store.refusals(f"aliases of {category}"):
        models = _search_models(store.connect(), _name_is(category))
    return _read_aliases(models[0]) if models else {}


def set_alias(category: str, alias: str, number: int | None) -> None:
    """Point an alias at a version, or remove it with None; the same again changes nothing.

    Raises:
        RegistryError: if there is no such version, or the registry cannot be reached.
    """
    client = store.connect()
    name = registered_name(category)
    with store.refusals(f"alias {alias} of {name}"):
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, str(number))


def set_tags(category: str, number: int, tags: dict[str, str]) -> None:
    """Set tags of a version, in order.

    Raises:
        RegistryError: if there is no such version, or the registry cannot be reached.
    """
    client = store.connect()
    name = registered_name(category)
    with store.refusals(f"version {number} of {name}"):
        for key, value in tags.items():
            client.set_model_version_tag(name, str(number), key, value)


def set_gate_result(category: str, number: int, result: GateResult) -> None:
    """Store what the gate found beside the version that it judged.

    Raises:
        RegistryError: if there is no such version, or the registry cannot be reached.
    """
    set_tags(category, number, dump_gate_result(result))


def _no_version(category: str, number: int) -> RegistryError:
    known = [version.number for version in list_versions(category)]
    if not known:
        try:
            require_category(category)
        except RegistryError as error:
            return error
    there = ", ".join(map(str, known)) or "none"
    return RegistryError(f"{category}: there is no version {number}; there are: {there}")


def _read_aliases(model: RegisteredModel) -> dict[str, int]:
    return {alias: int(number) for alias, number in model.aliases.items()}


def _search_models(client: MlflowClient, condition: str) -> list[RegisteredModel]:
    return store.read_pages(
        lambda token: client.search_registered_models(condition, _PAGE, page_token=token)
    )


def _search_versions(client: MlflowClient, condition: str) -> list[ModelVersion]:
    return store.read_pages(lambda token: client.search_model_versions(condition, page_token=token))


def _name_is(category: str) -> str:
    return f'name = "{registered_name(category)}"'


def _to_category(name: str) -> str:
    return urllib.parse.unquote(name.removeprefix(PREFIX))


def _span(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last numbers of a few ranges that hold all numbers, parted where the gaps are widest."""
    ordered = sorted(numbers)
    gaps = [i for i in range(1, len(ordered)) if ordered[i] - ordered[i - 1] > 1]
    gaps.sort(key=lambda i: ordered[i - 1] - ordered[i])
    cuts = [0, *sorted(gaps[: _SPANS - 1]), len(ordered)]
    return [(ordered[a], ordered[b - 1]) for a, b in pairwise(cuts) if a < b]
