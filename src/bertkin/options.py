"""Config dataclasses as command-line options, and what went wrong with options said in one line.

`given(Train)` is a dataclass like `Train` in which every field may be absent, so that what a person typed can be told
from what is there by default. The docstring under a field of `bertkin.config` becomes its help.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable
from dataclasses import fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from bertkin.config import AUTO
from bertkin.errors import UserError

if TYPE_CHECKING:
    from cyclopts.exceptions import CycloptsError

STDIN = "\0stdin"
"""Stands for a lone - among the arguments, which the parser would take for an option."""


def given(cls: type, *, leave_out: Iterable[str] = (), short: Iterable[str] = (), bare: bool = False) -> type:
    """A dataclass with the fields of a config dataclass, each None unless it is typed.

    Args:
        leave_out: fields that are no options.
        short: fields that may also be written without their room: --encoding-errors for --data.encoding-errors. A
            field `kind` may be written as its room alone: --objective causal.
        bare: all are written without their room, and only so.
    """
    from cyclopts import Parameter

    hints, helps, room = typing.get_type_hints(cls), field_docs(cls), cls.__name__.lower()
    made: list[Any] = []
    for f in fields(cls):
        if f.name in leave_out:
            continue
        text = helps.get(f.name, "")
        told = f.default is not AUTO and f.default != "" and not isinstance(f.default, tuple)
        default = f" [default: {_shown(f.default)}]" if told else ""
        dashed = f.name.replace("_", "-")
        name: tuple[str, ...] | None = (f"--{room}.{dashed}", f"--{dashed}") if f.name in short else None
        name = (f"--{room}.{dashed}", f"--{room}") if f.name == "kind" else name
        name = (f"--{dashed}",) if bare else name
        whole = _whole if hints[f.name] is int else None
        parameter = Parameter(help=text + default, name=name, show_default=False, converter=whole)
        made.append((f.name, Annotated[hints[f.name] | None, parameter], AUTO))
    new = make_dataclass(cls.__name__, made, frozen=True, kw_only=True)
    new.__module__ = __name__  # the parser does not look into classes of the module `types`
    return new


def _shown(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def typed(options: Any) -> dict[str, Any]:
    """The fields of a `given` that were typed."""
    return {f.name: value for f in fields(options) if (value := getattr(options, f.name)) is not None}


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a class, on one line."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):  # installed without its source
        return {}
    docs: dict[str, str] = {}
    assert isinstance(body, ast.ClassDef)
    for one, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[one.target.id] = " ".join(value.value.split())
    return docs


def _whole(_type: Any, tokens: Any) -> int:
    """A whole number, also as people write large ones: 1_000, 1,000 or 1e6."""
    text = tokens[0].value.replace(",", "").replace("_", "")
    number = float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?e\+?\d{1,2}", text, re.IGNORECASE) else int(text)
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def said(error: CycloptsError, verbs: Iterable[str]) -> UserError:
    """A mistake in the arguments, as one line with its mend.

    Args:
        verbs: the names of the commands that were possible where the mistake is.
    """
    from cyclopts.exceptions import (
        CoercionError,
        MissingArgumentError,
        UnknownCommandError,
        UnknownOptionError,
        UnusedCliTokensError,
    )

    chain = " ".join(error.command_chain or ())
    help_line = f"see bertkin {chain} --help" if chain else "see bertkin --help"
    if isinstance(error, UnknownOptionError):
        name = (error.token.keyword or error.token.value).split("=")[0]
        known = {n for argument in error.argument_collection for n in argument.names if n.startswith("--")}
        return UserError(f"unknown option {name}", mend=_close(name, known) or help_line)
    if isinstance(error, UnknownCommandError):
        word = (error.unused_tokens or ["?"])[0]
        kind = "option" if word.startswith("-") else "verb"
        return UserError(f"unknown {kind} {word}", mend=_close(word, verbs) or help_line)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name if error.argument.name.startswith("-") else error.argument.name.upper()
        return UserError(f"{name} is missing" if error.keyword is None else f"{name} needs a value", mend=help_line)
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        choices = typing.get_args(_bare(error.argument.hint))
        name, value = error.argument.name.upper().lstrip("-"), error.token.value
        name = error.argument.name if error.argument.name.startswith("-") else name
        if choices and all(isinstance(choice, str) for choice in choices):
            return UserError(f"{value!r} is not a choice", where=name, mend=_close(value, choices) or _any_of(choices))
        return UserError(f"expected {_kind(error.argument.hint)}, found {value!r}", where=name, mend=help_line)
    if isinstance(error, UnusedCliTokensError):
        return UserError(f"nothing to do with {' '.join(map(repr, error.unused_tokens or []))}", mend=help_line)
    text = " ".join(str(error).split()).rstrip(".")
    return UserError(text[:1].lower() + text[1:], mend=help_line)


def _close(word: str, known: Iterable[str]) -> str:
    """The mend that names what is nearest to a misspelt word, or nothing."""
    known = sorted(known)
    if word.startswith("--"):
        word = word.replace("_", "-")
        bare = word.lstrip("-")
        found = [name for name in known if name.rsplit(".", 1)[-1] == bare]  # the room forgotten: --train.minutes
        if found:
            return f"did you mean {' or '.join(found)}?"
    alike = [(difflib.SequenceMatcher(None, word, name).ratio(), name) for name in known]
    best = max(alike, default=(0.0, ""))[0]
    close = [name for ratio, name in sorted(alike, reverse=True) if ratio >= max(0.6, best - 0.05)][:3]
    return f"did you mean {' or '.join(close)}?" if close else ""


def _any_of(choices: Iterable[Any]) -> str:
    return f"choose one of {', '.join(map(str, choices))}"


def _bare(hint: Any) -> Any:
    """The hint without Annotated and | None."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    return inner[0] if type(None) in typing.get_args(hint) and len(inner) == 1 else hint


def _kind(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "yes or no"}.get(_bare(hint), "something else")
