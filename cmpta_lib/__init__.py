"""CMPTA: a frozen LLM reads six pseudo tokens that a small adapter makes from face and voice.

    import cmpta_lib

    run = cmpta_lib.load("published:sims")             # a trained run that is here; or a run's folder, or its name
    run.predict(samples)                               # or a recording: answers, with the probability of every legal one
    run.attention(sample)                              # where the words looked in face and voice
    cmpta_lib.plain(run).answer(sample)                # the same by the paper's equations, one clip at a time

Importing this package imports nothing heavy: a name is loaded when it is first used. `__init__.pyi` has their types.
"""

import warnings
from importlib import import_module
from typing import Any

# tqdm's, when transformers imports it in a notebook without ipywidgets: no bar of ours is a widget.
warnings.filterwarnings("ignore", "IProgress not found")

__version__ = "0.1.0"
_HOMES = {
    "Sample": "cmpta_lib.data.corpus",
    "Study": "cmpta_lib.study.study",
    "load": "cmpta_lib.study.trained",
    "plain": "cmpta_lib.study.trained",
    "read_folder": "data_prep.public_pickles",
    "register": "cmpta_lib.registry",
    "train": "cmpta_lib.study.trained",
}
__all__ = ["Sample", "Study", "load", "plain", "read_folder", "register", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cmpta_lib' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
