"""How a method becomes known: its settings, its code, and the row in which tables show it.

A built-in method is one file of `baselines` or `beyond`, which ends with its registration; a method of your own joins in
the same way without a change to any file here:

    register(MyConfig, MyMethod, row="My method")    # in my_method.py
    CMPTA_METHODS=my_method.py cmpta reproduce       # or import my_method before making a Study

Runs are made by processes of their own, which import the same file: it must be one that can be imported.

The settings that a profile gives a method stand in its registration. Those under "paper" are the published ones; those
under "demo" and "demo/data" were chosen on validation splits by the search that notebook `12_baselines` shows.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cmpta_lib.config import CmptaConfig, MethodConfig, RunConfig, from_json, one_of
from cmpta_lib.files import expanded

if TYPE_CHECKING:
    from cmpta_lib.base import Method, Resources
    from cmpta_lib.data.corpus import Corpus, Inputs

    ENTRIES: dict[str, Entry]

PLUGINS = "CMPTA_METHODS"  # environment variable: files or modules that register methods, separated as in PATH
COMPARISONS = ("sims", "meld")  # Table 3's corpus and Table 4's
BUILT_IN = ("cmpta_lib.baselines", "cmpta_lib.beyond")  # folders with one file per method
# The built-in methods in the order of tables' rows; one that is not named here follows them.
ORDER = (
    "text_only omni constant linear bilstm soft_prompt lmf self_mm mag_bert tfn mmgcn ga2mif mse_adapter prototypes mgsi "
    "mllm_mac multimodal_transformer cmpta"
).split()

Builder: TypeAlias = "Callable[[RunConfig, Inputs, Resources], Method] | str"
# A planned config, its corpus, the cache, and the fields that were asked for -> the config with what this machine decides
# of it; raises FileNotFoundError, or ValueError of files that are no such thing, where what the run needs is not here.
Completion: TypeAlias = "Callable[[RunConfig, Corpus, Path, Mapping[str, Any]], RunConfig]"


@dataclass(frozen=True)
class Entry:
    """One method in the registry.

    Attributes:
        config: its settings class, with defaults for `name` and `recipe`.
        method: a subclass of `base.Method`, or "module:class", which is imported when one is built.
        row: the name of its line in tables; where the paper prints a line of that name, it stands in that line.
        comparisons: the corpora in whose comparison, Table 3 ("sims") or Table 4 ("meld"), it stands; a user's own clips
            are compared by all that stand in one at all.
        settings: "demo", "paper" or "smoke", "demo/data" for a user's own clips, "paper/sims/llama2-7b" for rows with
            that LLM of their own -> config fields that differ from the defaults there; the narrower says the last word.
        reads: what it looks at, in words: tables say it, as methods that see more are no like for like.
        is_reference: no rival; it stands below the methods, among the lines that any method should beat.
        is_trained: by gradient; what is only fitted has no learning rate to search.
        is_beyond: its line stands in Tables 3 and 4, and is run with everything (`cmpta reproduce --all`) only.
        complete: fills in what a machine decides of a config, and refuses what it lacks something for; see `Completion`.
        waits: says what this machine lacks of a corpus, by the corpus' name, and what to do; "" where all is there.
    """

    config: type[MethodConfig]
    method: Builder
    row: str
    comparisons: tuple[str, ...] = COMPARISONS
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reads: str = ""
    is_reference: bool = False
    is_trained: bool = True
    is_beyond: bool = False
    complete: Completion | None = None
    waits: Callable[[str], str] | None = None

    @property
    def name(self) -> str:
        return str(self.config.model_fields["name"].default)

    def defaults(self) -> MethodConfig:
        """Its settings where nothing says otherwise."""
        return self.config.model_validate({})

    @property
    def is_built_in(self) -> bool:
        return self.config.__module__.startswith("cmpta_lib.")


_ENTRIES: dict[str, Entry] = {}


def __getattr__(name: str) -> Any:
    """`ENTRIES`: every method by its name; the built-in ones are imported when it is first read."""
    if name != "ENTRIES":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    load_built_in()
    return _ENTRIES


def register(config: type[MethodConfig], method: Builder, *, row: str, **more: Any) -> None:
    """Make a method known to runs, tables and the command line.

    Args:
        config, method, row, more: the fields of `Entry`, by their names.
    Raises:
        ValueError: another method has this name or row.
    """
    entry = Entry(config, method, row, **more)
    if not entry.is_built_in:
        load_built_in()  # their names and rows are taken
    for other in _ENTRIES.values():
        same_class = (other.config.__module__, other.config.__qualname__) == (config.__module__, config.__qualname__)
        if not same_class and (other.name == entry.name or other.row == row):
            raise ValueError(f"method '{entry.name}', row '{row}': taken by '{other.name}', row '{other.row}'")
    _ENTRIES[entry.name] = entry


@functools.cache
def load_built_in() -> None:
    """Import the files of the built-in methods, which register them, and put them into the order of tables' rows."""
    for folder in map(importlib.import_module, BUILT_IN):
        for found in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
            importlib.import_module(found.name)
    places = {name: place for place, name in enumerate(ORDER)}
    ordered = sorted(_ENTRIES.items(), key=lambda one: places.get(one[0], len(places)))
    _ENTRIES.clear()
    _ENTRIES.update(ordered)


def load_plugins() -> None:
    """Import the built-in methods, and the files and modules that the environment variable CMPTA_METHODS names, each once.

    Raises:
        ValueError: one of them is not there, or cannot be imported; says why.
    """
    load_built_in()
    for place in _places():
        try:
            _import(place)
        except (Exception, SystemExit) as error:  # whatever somebody's file raises
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"{PLUGINS} names '{place}', which cannot be imported: {said}") from error


def _import(place: str) -> None:
    name = Path(place).stem
    if Path(place).suffix != ".py":
        importlib.import_module(place)
    elif name not in sys.modules:
        if not Path(place).is_file():
            raise FileNotFoundError("there is no such file")
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]  # else the next call would take it for imported
            raise
    elif not os.path.samefile(getattr(sys.modules[name], "__file__", None) or os.devnull, place):
        raise ImportError(f"another module is called '{name}': give the file another name")


def plugins() -> str:
    """What CMPTA_METHODS must be for another process to know the methods that this one knows.

    Raises:
        ValueError: one was defined where no other process can import it, such as in a notebook's cell.
    """
    places = {str(Path(place).resolve()) if place.endswith(".py") else place: None for place in _places()}
    for entry in _ENTRIES.values():
        if entry.is_built_in:
            continue
        home = entry.config.__module__
        file = None if home == "__main__" else getattr(sys.modules.get(home), "__file__", None)
        if file is None:
            raise ValueError(
                f"method '{entry.name}' is defined in a notebook or script, where the processes that make runs cannot "
                f"import it: move it to a file of its own and import that"
            )
        if home not in places:
            places[str(Path(file).resolve())] = None
    return os.pathsep.join(places)


def _places() -> list[str]:
    return [expanded(place) for place in os.environ.get(PLUGINS, "").split(os.pathsep) if place]


def read_config(text: str) -> RunConfig:
    """The config that JSON text holds, of a built-in method or one whose file is imported; errors as of `from_json`."""
    load_built_in()
    return from_json(text)


def method_class(name: str) -> type[Method]:
    """The class behind a method's name.

    Raises:
        ValueError: it is not registered in this process.
    """
    load_built_in()
    method: Any = _ENTRIES[one_of("method", name, _ENTRIES)].method
    if isinstance(method, str):
        module, _, attribute = method.partition(":")
        method = getattr(importlib.import_module(module), attribute)
    return method


def build(config: RunConfig, inputs: Inputs, resources: Resources) -> Method:
    """The untrained method that a config names; raises as `method_class`."""
    return method_class(config.method.name)(config, inputs, resources)


def _read_by_pairs(config: RunConfig, corpus: Corpus, *_: Any) -> RunConfig:
    """The config as it is; raises ValueError where no clip has two modalities, so that all pseudo tokens would be constants."""
    table = corpus.splits["train"].table
    known = (table["text"] != "") | ((table["audio_length"] > 0) & (table["vision_length"] > 0))
    if getattr(config.method, "fusion", "") == "cross_modal" and not known.any():
        raise ValueError(
            f"no clip of '{corpus.name}' has words: CMPTA's pseudo tokens join two modalities, so sound or face alone would "
            "give every clip one answer; add transcripts, or train another: cmpta_lib.train(data, method='bilstm')"
        )
    return config


# The paper's method, whose settings `config` holds.
register(
    CmptaConfig,
    "cmpta_lib.fast.cmpta:CMPTA",
    row="CMPTA",
    settings={
        "demo": {"method.dim": 64},
        "demo/data": {"method.dim": 128, "method.dropout": 0.3},
        "smoke": {"method.dim": 16},
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
    complete=_read_by_pairs,
)
