"""From the files of an LLM or a text encoder to the model, whatever its family, and never with code of the folder's own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmpta_lib.config import EncoderConfig, LLMConfig
from cmpta_lib.fast.prompted import check_reading
from cmpta_lib.llm import files as llm_files
from cmpta_lib.method.llm import FrozenLLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.bert import BertModel

TIGHT = 0.4  # of the GPU's memory
# What transformers, torch and our own readers raise on files that are complete and wrong.
_BROKEN = (LookupError, TypeError, AttributeError, ArithmeticError, UnpicklingError, RuntimeError)


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


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block transformers shows no progress bar, which a notebook would keep; a caller's own choice comes back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _told(folder: Path, wanted: str) -> Iterator[None]:
    """Files that do not make the model raise a ValueError that names their folder."""
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (*_BROKEN, SafetensorError) as error:
        reason = "a weight file holds more than tensors" if isinstance(error, UnpicklingError) else str(error)
        raise ValueError(
            f"{folder}: config.json, vocabulary and weights do not make {wanted} ({type(error).__name__}: "
            f"{reason.partition(chr(10))[0]}); fetch them again"
        ) from error


def load_encoder(config: EncoderConfig, cache: Path, device: torch.device) -> TextEncoder:
    """Load the text encoder that a config names: the tiny one from `cache`, any other BERT by folder or hub id.

    Raises:
        OSError: it is not there, or no BERT; says what to do.
        ValueError: the files are not the ones that the config names, or damaged.
    """
    from transformers import BertModel, BertTokenizerFast
    from transformers.utils import logging

    folder = llm_files.find(config, cache)
    if (family := llm_files.family(folder)) != "bert":
        raise OSError(f"{folder}: expected a BERT, such as bert-base-chinese, not '{family}'")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # published files hold the heads of the pre-training too, which is no news
    try:
        with without_bars(), _told(folder, "a BERT"):
            tokenizer = BertTokenizerFast.from_pretrained(folder)
            model = BertModel.from_pretrained(folder, dtype=torch.float32)
    finally:
        logging.set_verbosity(verbosity)
    return TextEncoder(model.to(device), tokenizer, config)


def load(config: LLMConfig, cache: Path, device: torch.device) -> FrozenLLM:
    """Load the LLM that a config names: the tiny one from `cache`, any other causal LM by folder or hub id.

    Qwen v1 and ChatGLM3 are published with code of their own; their weights go into transformers' classes instead. No
    other family's own code is run, or offered to be run, either.

    Raises:
        OSError: the model is not there, or of a family that transformers itself does not have; says what to do.
        ValueError: the files are not the ones that the config names, are damaged, or do not fit each other.
    """
    folder = llm_files.find(config, cache)
    fingerprint = config.fingerprint or llm_files.fingerprint(folder)
    with without_bars(), _told(folder, "an LLM"):
        model, tokenizer = _model(folder, getattr(torch, config.dtype), device)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(f"{folder}: the vocabulary has {len(tokenizer)} tokens, the weights {rows}: not of one model")
    model = model.to(device)
    llm = FrozenLLM(model, tokenizer, fingerprint, config.name, gradient_checkpointing=_is_tight(model, device))
    check_reading(llm, folder)
    return llm


def _model(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer, by transformers' own class for the family: its Auto classes would offer to run code."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, TOKENIZER_MAPPING, PreTrainedTokenizerFast

    family = llm_files.family(folder)
    if family in ("qwen", "chatglm"):
        from cmpta_lib.llm import chatglm3, qwen_v1

        published = qwen_v1 if family == "qwen" else chatglm3
        return published.load_model(folder, dtype, device), published.load_tokenizer(folder / published.VOCABULARY)
    own = CONFIG_MAPPING[family] if family in CONFIG_MAPPING else None
    if own not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise OSError(f"{folder}: expected a causal LM that transformers knows without remote code, not '{family}'")
    # A folder's tokenizer.json is taken as it is: some families' classes rebuild it with a splitting rule of their own,
    # and the ids silently differ.
    if (folder / "tokenizer.json").exists():
        tokenizer_class = PreTrainedTokenizerFast
    else:
        tokenizer_class = TOKENIZER_MAPPING[own] if own in TOKENIZER_MAPPING else None
    if tokenizer_class is None:
        raise OSError(f"{folder}: expected tokenizer.json beside the weights; fetch it from the model's page")
    tokenizer = tokenizer_class.from_pretrained(folder)
    return MODEL_FOR_CAUSAL_LM_MAPPING[own].from_pretrained(folder, dtype=dtype), tokenizer


def _is_tight(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether the weights leave too little GPU memory for every layer's activations (7B on 24 GB: yes; 1.8B: no).

    Layers are then computed again in the backward pass: a third more time, the same numbers, so no part of a run's
    identity.
    """
    if device.type != "cuda":
        return False
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights > TIGHT * torch.cuda.get_device_properties(device).total_memory
