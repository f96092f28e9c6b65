"""The verbs that look inside a model: `bertkin inspect mask`. See `bertkin.cli`."""

from __future__ import annotations

import json as plain
from typing import Annotated

from cyclopts import App, Group, Parameter

from bertkin.config import Model, Objective
from bertkin.options import given, typed
from bertkin.terminal import Flag, whole_text

inspect = App(name="inspect", help="Look inside a model: who may see whom.")

ModelOptions, ObjectiveOptions = given(Model), given(Objective)


@inspect.command(name="mask")
def inspect_mask(
    what: str,
    /,
    *,
    text: str | None = None,
    ascii: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
    model: Annotated[ModelOptions, Parameter(group=Group("Model", sort_key=2))] = ModelOptions(),  # type: ignore[valid-type]  # noqa: B008
    objective: Annotated[ObjectiveOptions, Parameter(group=Group("Objective", sort_key=3))] = ObjectiveOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Draw who may see whom: rows look, columns are looked at. bertkin inspect mask gpt2-mini --objective.kind hybrid

    Parameters
    ----------
    what
        A preset, a run folder, a model folder, or a hub id.
    text
        What it is drawn of. [default: two short sentences]
    ascii
        Draw with # and . alone.
    json
        Write one JSON object.
    """
    from bertkin.inspect.mask import inspect_mask as draw

    masks = draw(what, text=text and whole_text(text), model=typed(model), objective=typed(objective))
    print(plain.dumps(masks.as_dict(), ensure_ascii=False) if json else masks.draw(ascii=ascii))
