"""What every experiment does: find its data, make each part once, write down what there is, and end like a person's tool.

data(name)                    a file or folder of $BERTKIN_DATA
once(folder, settings, make)  a part's result, made now or earlier
goes_on(folder, settings, at) whether what was stopped there is a part's beginning
joined(old, new)              a record with what is new in it
put(page, table, name)        a table in its place on a page
machine()                     what computes, in words
written(...)                  a record as JSON, its picture beside it, its table on a page
run(app)                      a mistake of the person is one line; Ctrl-C says how to go on
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from bertkin.errors import UserError


def data(name: str) -> str:
    """A file or folder of $BERTKIN_DATA, from the root, so that the same data have one name."""
    folder = os.environ.get("BERTKIN_DATA")
    if not folder:
        raise UserError("no data given", mend="name them, or set BERTKIN_DATA to the folder that holds them")
    return str((Path(folder) / name).resolve())


def made(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What is kept of these settings (or of these and others beside them), if anything."""
    file = folder / "done.json"
    if not file.exists():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    settings = json.loads(json.dumps(settings))  # as it was written down
    return dict(content["result"]) if content["settings"] | settings == content["settings"] else None


def once(folder: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gave for these settings (or for these and others beside them), now or earlier; it must give plain data."""
    file = folder / "done.json"
    if (found := made(folder, settings)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    result = make()
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps({"settings": settings, "result": result}, indent=1) + "\n")
    aside.replace(file)
    return result


def goes_on(folder: Path, settings: Any, at: Path) -> bool:
    """Whether a part with these settings was begun in a folder; what was begun there with others is cleared away.

    Args:
        at: where its beginnings lie.
    """
    mark, told = folder / "begun.json", json.loads(json.dumps(settings))  # as it was written down
    if mark.exists() and json.loads(mark.read_text()) == told:
        return True
    shutil.rmtree(at, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(told))
    return False


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old record with all that is new, table by table; a row that is there again takes the place of the old one.

    A mapping is a table where it holds nothing but mappings and lists, and a row where it holds a word or a number.
    """
    found = dict(old)
    for name, value in new.items():
        before = old.get(name, {})
        found[name] = joined(before, value) if _is_table(before) and _is_table(value) else value
    return found


def _is_table(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(one, dict | list) for one in value.values())


def put(page: Path, lines: str, name: str = "table") -> None:
    """The lines in place of what stands between a page's two marks, `<!-- NAME -->` and `<!-- end -->`.

    Raises:
        UserError: there is no such page, or it has no such marks.
    """
    if not page.is_file():
        raise UserError(
            "no such page", where=page, mend=f"make it, with <!-- {name} --> and <!-- end --> where the table goes"
        )
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


def machine() -> str:
    """What computes, in words: what was made for so many minutes on one machine is not what another would have made."""
    from bertkin.models import kernels

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    dots = "bf16 dot products" if kernels.has_dots() else "no bf16"
    return f"{name}, {'matrix tiles' if kernels.has_tiles() else dots}"


def run(app: Callable[[], Any]) -> None:
    """What stands under an experiment's `if __name__ == "__main__"`."""
    from bertkin.train.loop import Stopped

    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (Stopped, KeyboardInterrupt):
        sys.exit("stopped and saved; the same command goes on")
