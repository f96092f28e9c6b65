"""JSON from outside: a file, and a config.json each of whose fields is checked when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bertkin.errors import UserError


class Fields:
    """A config.json, each of whose fields is checked when it is asked for."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = values, where

    def number(self, name: str, default: float | None = None) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = "is missing" if value is None else f"expected a number, found {value!r}"
            raise UserError(found, where=f"{self.where}: {name}")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise UserError(f"expected a whole number of at least 1, found {value!r}", where=f"{self.where}: {name}")
        return value

    def text(self, name: str, default: str) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise UserError(f"expected a word, found {value!r}", where=f"{self.where}: {name}")
        return value

    def identity(self, name: str, default: int) -> int:
        """The id of a special token; of several, the first."""
        value = self.values.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        return default if type(value) is not int or value < 0 else value

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"expected true or false, found {value!r}", where=f"{self.where}: {name}")
        return value

    def choice(self, name: str, default: str, known: Iterable[str]) -> str:
        value = self.text(name, default)
        if value not in known:
            what = f"we cannot build {value!r}, only {', '.join(known)}"
            raise UserError(what, where=f"{self.where}: {name}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The first of `allowed` is the default; nothing else can be built here."""
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise UserError(f"we cannot build {value!r}, only {allowed[0]!r}", where=f"{self.where}: {name}")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read as JSON ({str(error).splitlines()[0]})", where=path) from None
