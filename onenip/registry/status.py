"""How things stand per category, for a table that a person reads before deciding."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from onenip.registry.versions import Version, challenger, champion, list_categories, provisional


@dataclass(frozen=True)
class Standing:
    """One category.

    Attributes:
        category: the product category.
        champion: what serves, None if nothing was approved yet.
        challenger: what waits for a decision, None if nothing does.
        provisional: what stands in while there is no champion, None if nothing does.
    """

    category: str
    champion: Version | None
    challenger: Version | None
    provisional: Version | None = None

    @property
    def waiting_since(self) -> datetime | None:
        """When the challenger was registered, UTC; None if none waits."""
        return self.challenger.created_at if self.challenger else None


def read_standings() -> list[Standing]:
    """Every registered category, sorted.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    return [
        Standing(name, champion(name), challenger(name), provisional(name))
        for name in list_categories()
    ]
