"""From the files of an LLM or a text encoder to the model, whatever its family, and never with code of the folder's own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmpta_lib.config import EncoderConfig, LLMConfig
from cmpta_lib.fast.llm import packs
from cmpta_lib.fast.prompted import check_reading
from cmpta_lib.files import Damaged
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm.weights import load_model, told
from cmpta_lib.method.llm import FrozenLLM

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.models.bert import BertModel

TIGHT = 0.4  # of the GPU's memory
SPARE_ROWS = 128  # of a BERT's embedding table at most: some pad it to a round number
SIGNS = "+-.0123456789"  # what answers are written in
_HEAD = r"(predictions\.(decoder|transform\.(dense|LayerNorm))|seq_relationship)\.(weight|bias|gamma|beta)"
HEADS = rf"cls\.(predictions\.bias|{_HEAD})"  # of BERT's pre-training, which its published files hold beside the encoder


def weights_fingerprint(model: torch.nn.Module) -> str:
    """First 16 hex digits of the SHA-256 over every weight's name and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class TextEncoder:
    """A BERT as it was published, frozen until its user says otherwise.

    Attributes:
        model: in eval mode, without gradients.
        dim: width of its hidden states.
    """

    def __init__(self, model: BertModel, tokenizer: Any, config: EncoderConfig) -> None:
        self.model, self.tokenizer, self.config = model.eval().requires_grad_(False), tokenizer, config
        self.dim = int(model.config.hidden_size)

    def copy(self) -> TextEncoder:
        """One that may be trained without touching this one."""
        return TextEncoder(copy.deepcopy(self.model), self.tokenizer, self.config)

    def token_ids(self, text: str) -> list[int]:
        """[CLS], the text's tokens, [SEP]: at least two."""
        return self.tokenizer(text)["input_ids"]

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """At most `limit` ids; a longer text loses its end, not its [SEP]."""
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]

    def states(self, ids: Tensor, real: Tensor) -> Tensor:
        """ids (B, L) int64, real (B, L) bool -> last hidden states (B, L, dim); those of padding mean nothing."""
        return self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state


def contextual(model: BertModel, embedded: Tensor, real: Tensor) -> Tensor:
    """What a BERT makes of embeddings that somebody may have changed; no padding is attended to.

    The mask is made here: `BertModel` would look at it, and a GPU would wait for that.

    Args:
        embedded: (B, L, dim) out of `model.embeddings`.
        real: (B, L) bool.
    Returns:
        (B, L, dim) last hidden states; those of padding mean nothing.
    """
    lowest = torch.finfo(embedded.dtype).min
    mask = torch.zeros_like(real, dtype=embedded.dtype).masked_fill(~real, lowest)
    return model.encoder(embedded, attention_mask=mask[:, None, None]).last_hidden_state


def load_encoder(config: EncoderConfig, cache: Path, device: torch.device) -> TextEncoder:
    """Load the text encoder that a config names: the tiny one from `cache`, any other BERT by folder or hub id.

    Raises:
        OSError: it is not there, or no BERT; says what to do.
        Damaged: the files are not the ones that the config names, or not of one model; names file and tensor.
    """
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = llm_files.find(config, cache)
    if (family := llm_files.family(folder)) != "bert":
        raise OSError(f"{folder}: expected a BERT, such as bert-base-chinese, not '{family}'")
    settings = _settings(folder, BertConfig, BertModel)
    model = load_model(BertModel, settings, folder, torch.float32, device, HEADS)
    tokenizer = _tokenizer(folder, BertTokenizerFast)
    encoder, rows = TextEncoder(model, tokenizer, config), len(model.embeddings.word_embeddings.weight)
    _check_vocabulary(folder, tokenizer, rows, encoder.token_ids, encoder.token_ids(""))
    if len(tokenizer) < rows - SPARE_ROWS:
        raise _not_of_one_model(folder, tokenizer, rows)
    return encoder


def load(config: LLMConfig, cache: Path, device: torch.device) -> FrozenLLM:
    """Load the LLM that a config names: the tiny one from `cache`, any other causal LM by folder or hub id.

    On the device "meta" it is only checked, as `load_model` does, and can read nothing.

    Qwen v1 and ChatGLM3 are published with code of their own; their weights go into transformers' classes instead. No
    other family's own code is run, or offered to be run, either.

    Raises:
        OSError: the model is not there, or of a family that transformers itself does not have; says what to do.
        Damaged: the files are not the ones that the config names, or not of one model; names file and tensor.
    """
    folder = llm_files.find(config, cache)
    fingerprint = config.fingerprint or llm_files.fingerprint(folder)
    model, tokenizer = _model(folder, getattr(torch, config.dtype), device)
    llm = FrozenLLM(model, tokenizer, fingerprint, config.name, gradient_checkpointing=_is_tight(model, device))
    _check_vocabulary(folder, tokenizer, len(llm.embedding.weight), llm.token_ids, llm.first_ids, SIGNS)
    if device.type != "meta":
        check_reading(llm, folder)
    return llm


def open_once(config: LLMConfig | EncoderConfig, cache: Path) -> None:
    """Open it and let go of it, to say what is wrong before any run starts; raises as `load` and `load_encoder`.

    Families that pack take no memory here: tests hold them to being read right, and 7B in another type than the files'
    would be 13 GB and a minute on a CPU. Their runs still look.
    """
    with torch.random.fork_rng(devices=[]):
        if isinstance(config, EncoderConfig):
            load_encoder(config, cache, torch.device("cpu"))
        elif not packs(load(config, cache, torch.device("meta")).model):
            load(config, cache, torch.device("cpu"))


def _model(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer, by transformers' own class for the family: its Auto classes would offer to run code."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, TOKENIZER_MAPPING, PreTrainedTokenizerFast

    family = llm_files.family(folder)
    if family in ("qwen", "chatglm"):
        from cmpta_lib.llm import chatglm3, qwen_v1

        published = qwen_v1 if family == "qwen" else chatglm3
        tokenizer = published.load_tokenizer(folder / published.VOCABULARY)
        model = published.load_model(folder, dtype, device)
        if len(tokenizer) > (rows := len(model.get_input_embeddings().weight)):  # their special tokens have rows too
            raise _not_of_one_model(folder, tokenizer, rows)
        return model, tokenizer
    own = CONFIG_MAPPING[family] if family in CONFIG_MAPPING else None
    if own is None or own not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise OSError(f"{folder}: expected a causal LM that transformers knows without remote code, not '{family}'")
    # A folder's tokenizer.json is taken as it is: some families' classes rebuild it with a splitting rule of their own,
    # and the ids silently differ.
    if (folder / "tokenizer.json").exists():
        tokenizer_class = PreTrainedTokenizerFast
    else:
        tokenizer_class = TOKENIZER_MAPPING[own] if own in TOKENIZER_MAPPING else None
    if tokenizer_class is None:
        raise OSError(f"{folder}: expected tokenizer.json beside the weights; fetch it from the model's page")
    settings = _settings(folder, own, MODEL_FOR_CAUSAL_LM_MAPPING[own])
    tokenizer = _tokenizer(folder, tokenizer_class)
    return load_model(MODEL_FOR_CAUSAL_LM_MAPPING[own], settings, folder, dtype, device), tokenizer


def _settings(folder: Path, kind: type[PreTrainedConfig], model: type[PreTrainedModel]) -> Any:
    """config.json as this class has it; raises Damaged where it is, OSError where it says that it is of another kind."""
    import transformers

    path, is_encoder = folder / "config.json", model is transformers.BertModel  # the encoder of every class for BERT
    with told(path, f"settings of {model.__name__}"):
        config = kind.from_json_file(path)  # which knows how transformers writes what JSON cannot, such as infinity
        named = {name: getattr(transformers, name, model) for name in map(str, config.architectures or ())}
        other = [name for name, one in named.items() if one is not model and not (is_encoder and one.config_class is kind)]
    if kind in transformers.MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", False) == is_encoder:
        other.append("is_decoder=true, a decoder" if is_encoder else "is_decoder=false, an encoder")
    if other:
        raise OSError(f"{path}: expected the settings of {model.__name__}, and it says {other[0]}; use another model")
    return config


def _vocabulary(folder: Path) -> Path:
    return next(folder / name for name in llm_files.VOCABULARIES if (folder / name).is_file())


def _tokenizer(folder: Path, kind: Any) -> Any:
    for name in llm_files.BESIDE:
        if name.endswith(".json") and (folder / name).is_file():
            llm_files.read_json(folder / name)
    with told(_vocabulary(folder), "the model's vocabulary"):
        return kind.from_pretrained(folder)


def _check_vocabulary(
    folder: Path, tokenizer: Any, rows: int, read: Callable[[str], list[int]], always: Sequence[int], needed: str = ""
) -> None:
    """Raise Damaged unless every id of `always` and of what `read` makes of a text is a row of the embedding table.

    Many copies have more names than rows: `<pad>` behind Llama 2's 32,000. Such a token stays, and in a text is letters.
    """
    from transformers import AddedToken

    beyond = [name for name, token in getattr(tokenizer, "get_vocab", dict)().items() if token >= rows]
    if spare := [name for name in beyond if name in tokenizer.added_tokens_encoder]:
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in spare], special_tokens=True)
    if len(spare) < len(beyond) or max((*always, *(i for name in spare for i in read(name))), default=0) >= rows:
        raise _not_of_one_model(folder, tokenizer, rows)
    if not (ids := read(needed)) and needed or getattr(tokenizer, "unk_token_id", None) in ids:
        raise Damaged(f"{_vocabulary(folder)}: expected a vocabulary that spells '{needed}', as answers need; fetch it again")


def _not_of_one_model(folder: Path, tokenizer: Any, rows: int) -> Damaged:
    said = f"the vocabulary has {len(tokenizer)} tokens, the weights {rows}: not of one model"
    return Damaged(f"{folder}: {said}; fetch {_vocabulary(folder).name} and weights again")


def _is_tight(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether the weights leave too little GPU memory for every layer's activations (7B on 24 GB: yes; 1.8B: no).

    Layers are then computed again in the backward pass: a third more time, the same numbers, so no part of a run's
    identity.
    """
    if device.type != "cuda":
        return False
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights > TIGHT * torch.cuda.get_device_properties(device).total_memory
