"""What every verb does at the terminal: flags, texts from arguments, files and standard input, who is told of progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bertkin.errors import UserError
from bertkin.options import STDIN

if TYPE_CHECKING:
    from bertkin.train.progress import Listener

Flag = Parameter(negative="", show_default=False)
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", show_default=False, help="Show no progress.")]


def leads() -> bool:
    """Whether this is the first of several processes, or the only one: it alone speaks."""
    return os.environ.get("RANK", "0") == "0"


def listener(quiet: bool) -> Listener:
    """Who is told how a training goes: a live bar, or nobody; of several processes the first alone."""
    from bertkin.train.progress import QuietListener, RichListener

    return QuietListener() if quiet or not leads() else RichListener()


def see_file(path: Path, example: str) -> None:
    """Refuse a folder where a file is to be written.

    Raises:
        UserError: it is one.
    """
    if path.is_dir():
        raise UserError("a folder", where=path, mend=f"name a file, such as {example}")


def scores_line(scores: Mapping[str, float]) -> str:
    """Scores on one line."""
    return " · ".join(f"{name} {value:.4f}" for name, value in scores.items())


def texts_of(texts: Sequence[str], file: Path | None, what: str, example: str) -> list[str]:
    """Texts from arguments, a file, and (for -, or without any) standard input."""
    wanted = [text for given in texts for text in (lines_of(None) if given == STDIN else [whole_text(given)])]
    if file is not None:
        wanted += lines_of(file)
    if not texts and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError(f"no {what}", mend=f'give one, such as "{example}", or --file')
        wanted = lines_of(None)
    if not wanted:
        raise UserError(f"no {what}", where=file or "<stdin>", mend="write one on each line")
    return wanted


def lines_of(path: Path | None, *, every: bool = False) -> list[str]:
    """The lines of a file, or of standard input, that hold something; or every one, as many as its line ends.

    The blanks around a line are none of it, but for the tabs of one whose cells they part.
    """
    try:
        content = sys.stdin.buffer.read() if path is None else path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path, mend="check the path") from None
    except UnicodeDecodeError as error:
        where = f"{path or '<stdin>'}@{error.start}"
        raise UserError("bytes that are not UTF-8", where=where, mend="convert it (iconv -t utf-8)") from None
    lines = [line.strip(" \r") if "\t" in line else line.strip() for line in text.split("\n")]
    if every:
        return lines if lines[-1] else lines[:-1]
    return [line for line in lines if line.strip()]


def whole_text(text: str) -> str:
    """An argument that is a text; bytes that are not UTF-8 are refused."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError("bytes that are not UTF-8", where=f"text@{error.start}", mend="convert the text") from None
    return text
