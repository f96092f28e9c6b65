"""What every experiment does: find its data, make each part once, write down what there is, and end like a person's tool.

data(name)                    a file or folder of $BERTKIN_DATA
once(folder, settings, make)  a part's result, made now or earlier
put(page, table, name)        a table in its place on a page
written(...)                  a record as JSON, its picture beside it, its table on a page
run(app)                      a mistake of the person is one line; Ctrl-C says how to go on
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertkin.errors import UserError


def data(name: str) -> str:
    """A file or folder of $BERTKIN_DATA."""
    folder = os.environ.get("BERTKIN_DATA")
    if not folder:
        raise UserError("no data given", mend="name them, or set BERTKIN_DATA to the folder that holds them")
    return str(Path(folder) / name)


def once(folder: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gave for these settings (or for these and more), now or earlier; it must give plain data."""
    file = folder / "done.json"
    settings = json.loads(json.dumps(settings))  # as it will be read again
    if file.exists():
        content: dict[str, Any] = json.loads(file.read_text())
        if content["settings"] | settings == content["settings"]:
            return dict(content["result"])
    folder.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    result = make()
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps({"settings": settings, "result": result}, indent=1) + "\n")
    aside.replace(file)
    return result


def put(page: Path, lines: str, name: str = "table") -> None:
    """The lines in place of what stands between a page's two marks, `<!-- NAME -->` and `<!-- end -->`.

    Raises:
        UserError: the page has no such marks.
    """
    inside = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, count = inside.subn(lambda mark: mark[1] + lines + mark[2], page.read_text())
    if not count:
        raise UserError(f"no marks <!-- {name} --> and <!-- end -->", where=page, mend="put them where the table goes")
    page.write_text(text)


def written(record: Path, content: dict[str, Any], table: str, page: Path | None, name: str) -> None:
    """Write a record and put its table on a page; show the table."""
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if page is not None:
        put(page, table, name)
    print(table, flush=True)
    print(f"written: {record}", flush=True)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    ruler = "|---|" + "---:|" * (len(head) - 1)
    head_line, *lines = ("| " + " | ".join(line) + " |" for line in [head, *rows])
    return "\n".join([head_line, ruler, *lines]) + "\n"


@contextmanager
def picture(path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (9, 4.5)) -> Iterator[Any]:
    """Axes [rows, columns] to draw on; saved at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(app: Callable[[], Any]) -> None:
    """What stands under an experiment's `if __name__ == "__main__"`."""
    from bertkin.train.loop import Stopped

    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (Stopped, KeyboardInterrupt):
        sys.exit("stopped and saved; the same command goes on")
