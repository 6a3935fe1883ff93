"""Lists to choose from above a picture: a choice draws it anew, in its place; where nobody can choose, the usual one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Listed = Sequence[tuple[str, Any]]  # what is shown of each choice, and its value; the usual one first


def choose(draw: Callable[..., Any], **choices: Listed | Callable[..., Listed]) -> Any:
    """Show `draw(name=value, ...)` below a list for each name, and draw again whenever another value is chosen.

    Headless, or without ipywidgets, the usual picture stands alone: an executed notebook holds the same bytes every time.

    Args:
        draw: makes the picture; the text of a ValueError is shown in its place.
        choices: a list, or what makes it of the values chosen in the lists before it, by their names.
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
        if not busy:  # else one list changes another, and is about to draw
            busy.append(True)
            try:
                handle.update(draw(**chosen()))
            except ValueError as error:
                handle.update({"text/plain": str(error)}, raw=True)
            finally:
                busy.clear()

    picture = draw(**chosen())
    message = getattr(get_ipython(), "get_parent", dict)() or {}
    if message.get("content", {}).get("allow_stdin"):  # JupyterLab says that somebody answers, papermill that nobody does
        try:
            from ipywidgets import Dropdown, HBox, Layout
        except ImportError:
            pass
        else:
            boxes |= {name: Dropdown(options=new, description=name, layout=Layout(width="auto")) for name, new in lists.items()}
            display.display(HBox([*boxes.values()], layout=Layout(flex_flow="row wrap")))
    handle = display.display(picture, display_id=True)
    for box in boxes.values():
        box.observe(redraw, "value")
    return picture
