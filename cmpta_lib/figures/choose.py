"""Lists to choose from above a picture, which a choice draws anew; where nobody can choose, the usual picture alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any


def choose(draw: Callable[..., Any], **choices: Any) -> Any:
    """Show `draw(name=value, ...)` below a list for each name, and draw again whenever another value is chosen.

    Headless, or without ipywidgets, there are no lists: an executed notebook holds the same bytes every time.

    Args:
        draw: makes the picture; the text of a ValueError is shown in its place.
        choices: pairs of what is shown and its value, the usual first; or what makes them of the values chosen before it.
    Returns:
        The usual picture, to be saved.
    """
    from IPython import display, get_ipython

    lists, boxes, busy = dict[str, list[tuple[str, Any]]](), dict[str, Any](), list[bool]()

    def chosen() -> dict[str, Any]:
        values = dict[str, Any]()
        for name, given in choices.items():
            new = [*(given(**values) if callable(given) else given)]
            if new != lists.get(name) and name in boxes:
                boxes[name].options = new  # which chooses the first of them
            lists[name], values[name] = new, boxes[name].value if boxes else new[0][1]
        return values

    def redraw(change: object) -> None:
        if busy:  # one list has changed another, and draws
            return
        busy.append(True)
        try:
            handle.update(draw(**chosen()))
        except ValueError as error:
            handle.update({"text/plain": str(error)}, raw=True)
        finally:
            busy.clear()

    picture, message = draw(**chosen()), getattr(get_ipython(), "get_parent", dict)() or {}
    if message.get("content", {}).get("allow_stdin"):  # JupyterLab says that somebody answers, papermill that nobody does
        with suppress(ImportError):
            from ipywidgets import Dropdown, HBox, Layout

            auto = Layout(width="auto", flex_flow="row wrap")
            boxes |= {name: Dropdown(options=new, description=name, layout=auto) for name, new in lists.items()}
            display.display(HBox([*boxes.values()], layout=auto))
    handle = display.display(picture, display_id=True)
    for box in boxes.values():
        box.observe(redraw, "value")
    return picture
