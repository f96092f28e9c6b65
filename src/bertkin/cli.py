"""The command line: one verb, one function. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from bertkin import __version__, asking, tasking, training, using
from bertkin.errors import UserError, disk_errors
from bertkin.looking import inspect
from bertkin.options import STDIN, said
from bertkin.overseeing import check

ROOM = re.compile(r"^--(objective|strategy)(?==|$)")
"""Written alone it means the room's kind, where the parser would read all of its fields."""
INTERRUPTED, PIPE_CLOSED = 130, 141
"""What a shell expects of a program stopped by Ctrl-C, and of one whose reader has gone."""

app = App(
    name="bertkin",
    help="Grow language models of the BERT and GPT family, on the machine you have. Start with: bertkin demo",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
VERBS: tuple[App | Callable[..., None], ...] = (
    training.demo,
    training.tokenizers,
    training.prepare,
    training.pretrain,
    training.adapt,
    training.resume,
    asking.fill,
    asking.generate,
    asking.pairs,
    asking.prompt,
    inspect,
    check,
    tasking.finetune,
    tasking.evaluate,
    using.predict,
    using.embed,
    using.merge,
)
"""In the order in which help names them."""
for place, verb in enumerate(VERBS):
    if isinstance(verb, App):
        verb.sort_key = place
        app.command(verb)
    else:
        app.command(verb, sort_key=place)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what a person did wrong is one line on standard error.

    Returns:
        The exit code: 0; 2 for a mistake; 130 after Ctrl-C; 141 when nobody reads what we print.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character must not end a run
            stream.reconfigure(errors="replace")
    try:
        with _one_line_warnings(), disk_errors("."):
            app(_arguments(tokens), exit_on_error=False, print_error=False)
            sys.stdout.flush()
    except CycloptsError as error:
        return _complain(said(error, _verbs(tokens)))
    except UserError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print(
            "\nbertkin: interrupted; what was prepared is kept, so the same command goes on from there", file=sys.stderr
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it does not complain again
        return PIPE_CLOSED
    except OSError as error:  # what no room foresaw, such as a folder that went away
        if error.filename is None:
            raise
        return _complain(UserError((error.strerror or str(error)).lower(), where=error.filename, mend="check the path"))
    except Exception as error:
        if type(error).__name__ != "Stopped":  # raised by bertkin.train.loop, which is not imported for this alone
            raise
        print(f"bertkin: {error}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _complain(error: UserError) -> int:
    print(f"bertkin: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


def _arguments(tokens: Sequence[str]) -> list[str]:
    """The arguments with a lone - before any -- made safe from the parser, and --objective in full."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    safe = [STDIN if token == "-" and i < end else token for i, token in enumerate(tokens)]
    full = [ROOM.sub(r"--\1.kind", token) if i < end else token for i, token in enumerate(safe)]
    joined: list[str] = []
    for i, token in enumerate(full):
        # A flag takes no word after it, so `--train.tensorboard true` would read a corpus called true.
        answers = i < end and token in ("true", "false") and joined and joined[-1].startswith("--")
        if answers and "=" not in joined[-1] and not Path(token).exists():
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined


def _verbs(tokens: Sequence[str]) -> list[str]:
    """The names that were possible for the first word that is no verb."""
    inside = {"tokenizer": training.tokenizers, "inspect": inspect, "check": check}.get(
        tokens[0] if tokens else "", app
    )
    return [name for name in inside if not name.startswith("-")]


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Libraries' warnings are for programmers; people see their text alone."""
    import warnings

    old = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_more: f"bertkin: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = old
