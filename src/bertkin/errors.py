"""What a user did wrong, said in one line: what, where, and how to mend it.

Every mistake that a person can make ends as a `UserError`; the command line prints its text and exits with 2. Anything
else that escapes is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake of the person who runs us.

    Args:
        what: what is wrong, without a full stop.
        where: the file, `file:line`, `file@offset` or option it is wrong in.
        mend: what to do about it, as an imperative.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | Path | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        text = f"{where}: {what}" if where is not None else what
        super().__init__(f"{text}; {mend}" if mend else text)


class MissingExtra(UserError):
    """A library that only some users need is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}", mend=f'pip install "bertkin[{extra}]"')


class NonFiniteLoss(UserError):
    """Training met a loss that is not a number; the last good checkpoint is kept."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The mend for a misspelt name: the closest known names, or all of them when none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn what a disk refuses (full, read-only, no permission, not a directory) into a line that names the path."""
    try:
        yield
    except OSError as error:
        mends = {
            errno.ENOSPC: ("the disk is full", "free some space or write elsewhere"),
            errno.EDQUOT: ("the disk quota is used up", "free some space or write elsewhere"),
            errno.EROFS: ("the folder is on a read-only disk", "write elsewhere"),
            errno.EACCES: ("no permission to write here", "write elsewhere or change the permissions"),
            errno.EPERM: ("no permission to write here", "write elsewhere or change the permissions"),
            errno.EEXIST: ("a file stands where a folder is to be", "choose another path"),
            errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another path"),
        }
        code = error.errno
        if code is None and re.search(r"requested and .* written|Not enough free space", str(error)):
            code = errno.ENOSPC  # NumPy says it in words alone
        if code not in mends:
            raise
        what, mend = mends[code]
        raise UserError(what, where=error.filename or os.fspath(path), mend=mend) from error
