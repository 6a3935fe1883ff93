"""How a method becomes known, its code and the tables in which it stands; the built-in ones are in `registry`. No torch.

A method of your own joins without touching a file here:

    register(MyConfig, MyMethod, row="My method")    # in my_method.py
    CMPTA_METHODS=my_method.py cmpta reproduce       # or import my_method before making a Study

Runs are made by processes of their own, which import the same file: it must be one that can be imported.

The built-in methods: their code, their rows, what they read, and the settings that a profile gives them.

Settings under "paper" are the published ones; those under "demo" and "demo/data" were chosen on validation splits by the
search that notebook `12_baselines` shows. Imports no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib.baselines import settings as methods
from cmpta_lib.beyond import settings as omni_settings
from cmpta_lib.beyond import settings as prompted
from cmpta_lib.config import CmptaConfig, MethodConfig, RunConfig, TextOnlyConfig

if TYPE_CHECKING:
    from cmpta_lib.base import Method, Resources
    from cmpta_lib.data.corpus import Inputs
if TYPE_CHECKING:
    from cmpta_lib.base import Method, Resources
    from cmpta_lib.data.corpus import Inputs

PLUGINS = "CMPTA_METHODS"  # environment variable: files or modules that register methods, separated as in PATH
COMPARISONS = ("sims", "meld")  # Table 3's corpus and Table 4's


@dataclass(frozen=True)
class Entry:
    """One method in the registry.

    `row` heads its lines in tables; where the paper prints a line of that name, it stands in that line. `comparisons`:
    the corpora in whose comparison, Table 3 ("sims") or Table 4 ("meld"), it stands; on a user's own clips all do that
    stand in one at all.
    """

    config: type[MethodConfig]
    method: Callable[[RunConfig, Inputs, Resources], Method] | str  # the class, or "module:class" to import when it is built
    row: str
    comparisons: tuple[str, ...] = COMPARISONS
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reads: str = ""  # what it looks at, in words: tables say it, as methods that see more are no like for like
    is_reference: bool = False  # no rival, but a line that keeps rivals honest
    is_trained: bool = True  # by gradient
    is_beyond: bool = False  # the paper's reproduction shows its line and runs it with everything (`--all`) only

    @property
    def name(self) -> str:
        return str(self.config.model_fields["name"].default)

    def defaults(self) -> MethodConfig:
        """Its settings where nothing says otherwise."""
        return self.config.model_validate({})

    @property
    def is_built_in(self) -> bool:
        return self.config.__module__.partition(".")[0] == MethodConfig.__module__.partition(".")[0]


ENTRIES: dict[str, Entry] = {}


def register(
    config: type[MethodConfig],
    method: Callable[[RunConfig, Inputs, Resources], Method] | str,
    *,
    row: str,
    comparisons: tuple[str, ...] = COMPARISONS,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    reads: str = "",
    is_reference: bool = False,
    is_trained: bool = True,
    is_beyond: bool = False,
) -> None:
    """Make a method known to runs, tables and the command line.

    Args:
        config: its settings class, with defaults for `name` and `recipe`.
        method: a subclass of `methods.base.Method`, or "module:class".
        settings: "demo", "paper" or "smoke", "demo/data" for a user's own clips, "paper/sims/llama2-7b" for rows with
            that LLM of their own -> config fields that differ from the defaults there; the narrower says the last word.
        reads: what it looks at, in words, for the table that compares methods.
        is_reference: it stands below the methods, among the lines that any method should beat.
        is_trained: by gradient; what is only fitted has no learning rate to search.
        is_beyond: its line stands in Tables 3 and 4, and is run with everything (`cmpta reproduce --all`) only.
    Raises:
        ValueError: another method has this name or row.
    """
    entry = Entry(config, method, row, comparisons, settings or {}, reads, is_reference, is_trained, is_beyond)
    for other in ENTRIES.values():
        same_class = (other.config.__module__, other.config.__qualname__) == (config.__module__, config.__qualname__)
        if not same_class and (other.name == entry.name or other.row == row):
            raise ValueError(f"method '{entry.name}', row '{row}': taken by '{other.name}', row '{other.row}'")
    ENTRIES[entry.name] = entry


def load_plugins() -> None:
    """Import the files and modules that the environment variable CMPTA_METHODS names, each once.

    Raises:
        ValueError: one of them is not there.
    """
    for place in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
        name = Path(place).stem if place.endswith(".py") else place
        if name in sys.modules:
            continue
        if not place.endswith(".py"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise ValueError(f"{PLUGINS} names the module '{place}', and it cannot be imported: {error}") from error
            continue
        if not Path(place).is_file():
            raise ValueError(f"{PLUGINS} names {place}, and there is no such file")
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def plugins() -> str:
    """What CMPTA_METHODS must be for another process to know the methods that this one knows.

    Raises:
        ValueError: one was defined where no other process can import it, such as in a notebook's cell.
    """
    places = [place for place in os.environ.get(PLUGINS, "").split(os.pathsep) if place]
    for entry in ENTRIES.values():
        if entry.is_built_in:
            continue
        home = entry.config.__module__
        file = None if home == "__main__" else getattr(sys.modules.get(home), "__file__", None)
        if file is None:
            raise ValueError(
                f"method '{entry.name}' is defined in a notebook or script, where the processes that make runs cannot "
                f"import it: move it to a file of its own and import that"
            )
        if not any(Path(place).resolve() == Path(file).resolve() for place in places):
            places.append(file)
    return os.pathsep.join(str(Path(place).resolve()) if place.endswith(".py") else place for place in places)


__all__ = ["COMPARISONS", "ENTRIES", "PLUGINS", "Entry", "build", "load_plugins", "method_class", "plugins", "register"]

_SMALL_DIALOGUES = {"method.audio_width": 32, "method.vision_width": 32, "training.batch_size": 8, "training.epochs": 8}
_TINY_DIALOGUES = {"method.audio_width": 8, "method.vision_width": 8, "method.dim": 8}
_NO_WARM_UP = {"training.schedule": "constant", "training.warmup_fraction": 0.0, "training.gradient_clip": None}
_AS_IN_MMSA = _NO_WARM_UP | {"training.optimizer": "adam", "training.patience": 8}
_MSE_PAPER = {"training.epsilon": 1e-4, "training.gradient_clip": None}

register(
    TextOnlyConfig,
    "cmpta_lib.fast.prompted:PromptedLM",
    row="text only",
    reads="one utterance: words by the frozen LLM as it is, without pseudo tokens (zero-shot)",
    is_reference=True,
    is_trained=False,
)
register(
    omni_settings.OmniConfig,
    "cmpta_lib.beyond.omni:Omni",
    row="omni model",
    comparisons=(),  # a model of another size that reads recordings, not features: no line of the paper's tables
    reads="one utterance: words, sound and pictures of the recording by a published omni model as it is (zero-shot)",
    is_trained=False,
    is_beyond=True,
)
register(
    methods.ConstantConfig,
    "cmpta_lib.baselines.reference:Constant",
    row="constant",
    reads="nothing: the median or majority of the training labels",
    is_reference=True,
    is_trained=False,
)
register(
    methods.LinearConfig,
    "cmpta_lib.baselines.reference:Linear",
    row="linear",
    settings={"demo/data": {"method.svm_c": 1.0}},
    reads="one utterance: ridge or SVM on the mean state of a frozen BERT, mean and deviation of voice and face",
    is_reference=True,
    is_trained=False,
)
register(
    methods.BilstmConfig,
    "cmpta_lib.baselines.reference:BiLSTM",
    row="BiLSTM",
    reads="one utterance: words by a frozen BERT, all frames of voice and face",
    is_reference=True,
    settings={"demo": {"method.hidden": 32}, "smoke": {"method.hidden": 8}},
)
register(
    prompted.SoftPromptConfig,
    "cmpta_lib.baselines.reference:SoftPrompt",
    row="soft prompt",
    reads="one utterance: words by the frozen LLM, behind tuned vectors that are the same for every clip",
    is_reference=True,
)
register(
    methods.LmfConfig,
    "cmpta_lib.baselines.lmf:LMF",
    row="LMF",
    comparisons=("sims",),
    settings={
        "demo": {  # its LSTM needs longer than two epochs to find words, and mean frames are mostly noise there
            "training.epochs": 6,
            "method.factor_rate": 1.0,
            "method.audio_hidden": 8,
            "method.vision_hidden": 8,
            "method.audio_dropout": 0.5,
            "method.vision_dropout": 0.5,
        },
        "demo/data": {
            "training.epochs": 30,
            "method.audio_hidden": 32,
            "method.vision_hidden": 64,
            "method.audio_dropout": 0.3,
            "method.vision_dropout": 0.3,
        },
        "paper": _AS_IN_MMSA
        | {
            "training.batch_size": 32,
            "training.learning_rate": 2e-3,
            "training.weight_decay": 1e-4,
        },
        "smoke": {"method.audio_hidden": 4, "method.vision_hidden": 4, "method.text_hidden": 8, "method.text_out": 4},
    },
    reads="one utterance: words by a frozen BERT, the mean frame of voice and of face",
)
register(
    methods.SelfMMConfig,
    "cmpta_lib.baselines.self_mm:SelfMM",
    row="Self-MM",
    comparisons=("sims",),
    settings={
        # Generated labels first act in the third epoch.
        "demo": {"training.epochs": 3, "training.learning_rate": 5e-3, "method.bert_rate": 0.3},
        "demo/data": {
            "training.epochs": 30,
            "training.learning_rate": 3e-3,
            "method.bert_rate": 0.03,
            "method.audio_hidden": 128,
            "method.audio_size": 64,
        },
        "paper": _AS_IN_MMSA
        | {
            "training.batch_size": 64,  # 4 batches of 16, whose gradients the public code sums
            "training.learning_rate": 1e-3,
            "training.weight_decay": 1e-3,
        },
        "smoke": {f"method.{space}_features": 8 for space in ("fusion", "text", "audio", "vision")},
    },
    reads="one utterance: words by a BERT that is trained too, all frames of voice and face",
)
register(
    methods.MagBertConfig,
    "cmpta_lib.baselines.mag_bert:MagBert",
    row="MAG-BERT",
    comparisons=("sims",),
    settings={
        "demo": {"training.learning_rate": 1e-3, "training.gradient_clip": None, "method.gate_rate": 3.0},
        "demo/data": {"training.learning_rate": 1e-3},
        "paper": _AS_IN_MMSA
        | {
            "training.batch_size": 32,
            "training.learning_rate": 5e-5,
            "training.weight_decay": 0.0,
        },
    },
    reads="one utterance: words by a BERT that is trained too, frames pooled to the words",
)
register(
    methods.TfnConfig,
    "cmpta_lib.baselines.tfn:TFN",
    row="TFN",
    comparisons=("meld",),
    settings={
        "demo": {
            "method.audio_hidden": 16,
            "method.vision_hidden": 16,
            "method.text_hidden": 64,
            "method.text_out": 32,
        },
        "paper": _AS_IN_MMSA
        | {
            "training.batch_size": 128,
            "training.learning_rate": 2e-3,
            "training.weight_decay": 0.0,
        },
        "smoke": {
            "method.audio_hidden": 4,
            "method.vision_hidden": 4,
            "method.text_hidden": 8,
            "method.text_out": 4,
            "method.post_hidden": 8,
        },
    },
    reads="one utterance: words by a frozen BERT, the mean frame of voice and of face",
)
register(
    methods.MmgcnConfig,
    "cmpta_lib.baselines.mmgcn:MMGCN",
    row="MMGCN",
    comparisons=("meld",),
    settings={
        "demo": _SMALL_DIALOGUES
        | {"method.dim": 64, "method.graph_dim": 64, "method.layers": 4, "method.dropout": 0.1},
        "demo/data": {"training.epochs": 30, "training.learning_rate": 3e-3},
        "paper": _NO_WARM_UP
        | {"training.optimizer": "adam", "training.learning_rate": 1e-3, "training.weight_decay": 0.0}
        | {"training.batch_size": 16, "training.epochs": 60},
        "smoke": _TINY_DIALOGUES | {"method.graph_dim": 8, "method.layers": 2},
    },
    reads="the whole dialogue and who speaks: words by a frozen BERT, all frames of voice and face",
)
register(
    methods.Ga2mifConfig,
    "cmpta_lib.baselines.ga2mif:GA2MIF",
    row="GA2MIF",
    comparisons=("meld",),
    settings={
        # A speaker table of unit variance times 1.6 drowns utterance vectors that have yet to be learned.
        "demo": _SMALL_DIALOGUES
        | {"method.speaker_weight": 0.1, "method.dim": 32, "method.heads": 4, "method.graph_layers": 1}
        | {"method.cross_layers": 1, "method.dropout": 0.3},
        "demo/data": {"training.epochs": 30, "training.learning_rate": 1e-3},
        # The published rate is for finished utterance vectors; the LSTMs that make them here learn 100 times as fast.
        "paper": _NO_WARM_UP
        | {"training.optimizer": "adamw_amsgrad", "training.learning_rate": 1e-5, "training.weight_decay": 1e-5}
        | {"training.batch_size": 8, "training.epochs": 100, "method.frames_rate": 100.0},
        "smoke": _TINY_DIALOGUES | {"method.heads": 2, "method.graph_heads": 2, "method.cross_layers": 1},
    },
    reads="the whole dialogue and who speaks: words by a frozen BERT, all frames of voice and face",
)
register(
    prompted.MseAdapterConfig,
    "cmpta_lib.baselines.mse_adapter:MseAdapter",
    row="MSE-Adapter",
    settings={
        "demo": {
            "method.audio_hidden": 32,
            "method.vision_hidden": 32,
            "method.dim": 64,
            "method.token_scale": "embedding_norm",  # at the published one it learns slowly; chosen on validation clips
        },
        "demo/meld": {"training.learning_rate": 1e-2},
        "smoke": {"method.audio_hidden": 8, "method.vision_hidden": 8, "method.dim": 16},
        "paper": _MSE_PAPER | {"training.epochs": 30, "training.patience": 10},
        "paper/meld": {
            "method.audio_hidden": 32, "method.vision_hidden": 16, "method.num_pseudo_tokens": 2,
            "training.epochs": 50, "training.patience": 8,
        },
        "paper/sims/llama2-7b": {"training.learning_rate": 5e-5, "training.batch_size": 8, "training.epochs": 40},
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
)
register(
    prompted.PrototypesConfig,
    "cmpta_lib.beyond.prototypes:Prototypes",
    row="prototype prompt",
    settings={
        # The embedded clips' frames are given one by one, without what published features know of their neighbours: as a
        # set they tell little. Chosen on validation clips, as its width and learning rate.
        "demo": {"method.dim": 64, "method.frames": "bilstm"},
        "smoke": {"method.dim": 16},
        "paper": {"training.patience": 10},  # of its optimiser and learning rate nothing is known
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
    is_beyond=True,
)
register(
    prompted.MgsiConfig,
    "cmpta_lib.beyond.mgsi:Mgsi",
    row="MGSI",
    settings={
        "demo": {"method.dim": 64},
        "smoke": {"method.dim": 16},
        "paper": {"training.learning_rate": 5e-5, "training.batch_size": 8, "training.epochs": 30},
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
    is_beyond=True,
)
register(
    prompted.MllmMacConfig,
    "cmpta_lib.beyond.mllm_mac:MllmMac",
    row="MLLM-MAC",
    is_beyond=True,
    settings={
        "demo": {
            "method.dim": 64, "method.perception_epochs": 3, "method.perception_rate": 3e-3, "method.speech_rank": 16,
            "method.facts": ("course",), "method.courses": 1, "method.wording": "signs",
            "method.statements": 1, "method.max_new_tokens": 14,
            "training.epochs": 1, "training.learning_rate": 1e-3,
        },
        "demo/meld": {"method.courses": 2, "method.steady_share": 0.5},
        "demo/data": {"method.dim": 128, "method.perception_epochs": 10},
        "smoke": {"method.dim": 16, "method.perception_epochs": 1},
        "paper": {"training.learning_rate": 1.1e-4, "training.epochs": 30},
    },
    reads="one utterance: words by an LLM that is fine-tuned too, all frames of voice and face, and a statement about them",
)
register(
    methods.MultimodalTransformerConfig,
    "cmpta_lib.beyond.multimodal_transformer:MultimodalTransformer",
    row="MM-Transformer",
    settings={
        "demo": {
            "method.dim": 48, "method.layers": 1, "method.feedforward": 2, "method.dropout": 0.0,
            "method.frame_window": 8, "method.frame_stride": 4,  # a cue in one window: a quarter of the tokens
            "method.pretraining_epochs": 4, "method.pretraining_rate": 1e-3, "method.body_rate": 1.0,
            "training.epochs": 2, "training.batch_size": 32,
        },
        "demo/meld": {"method.pretraining_rate": 3e-3},
        "demo/data": {"training.epochs": 30},
        "smoke": {"method.dim": 16, "method.layers": 1, "method.pretraining_epochs": 1},
        "paper": {"training.learning_rate": 1e-4, "method.body_rate": 0.2},
    },
    reads="one utterance: words by BERT's word embeddings, all frames of voice and face; pre-trained without labels",
    is_beyond=True,
)
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
)


def build(config: RunConfig, inputs: Inputs, resources: Resources) -> Method:
    """The untrained method that a config names.

    Raises:
        ValueError: it is not registered in this process.
    """
    return method_class(config.method.name)(config, inputs, resources)


def method_class(name: str) -> type[Method]:
    """The class behind a method's name, imported now.

    Raises:
        ValueError: it is not registered in this process.
    """
    if name not in ENTRIES:
        raise ValueError(f"method '{name}' is not registered; known: {', '.join(ENTRIES)}; see {PLUGINS}")
    method: Any = ENTRIES[name].method
    if isinstance(method, str):
        module, _, attribute = method.partition(":")
        method = getattr(importlib.import_module(module), attribute)
    found: type[Method] = method
    return found
