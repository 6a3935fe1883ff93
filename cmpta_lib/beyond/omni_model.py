"""Where an omni model's files lie, and whether it is one that runs without code of its own. Imports no torch.

Published omni models, which hear and see a clip themselves: by transformers' own classes, never by a folder's code.

Of Qwen2.5-Omni and Qwen3-Omni the thinker alone is loaded: it reads and answers, the talker would speak. Inputs are laid
out here, from the folder's tokenizer, its image processor and its feature extractor: transformers' processor for the
whole needs torchvision for a clip's frames, which this project does without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cmpta_lib.beyond.media import RATE_HZ, Clip
from cmpta_lib.config import LLMConfig
from cmpta_lib.files import Damaged
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm.loading import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("qwen2_5_omni", "qwen3_omni_moe")  # by the model type of config.json
_SETTINGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def locate(config: LLMConfig, caches: Sequence[Path]) -> Path:
    """The folder of a config's files: where one of the caches remembers it, or by its name.

    Raises:
        FileNotFoundError: it is not on this machine; says how to fetch it.
        Damaged: a cache remembers it, and its files changed.
        ValueError: another model bears its name.
    """
    damaged: Damaged | None = None
    for cache in caches if config.fingerprint else ():
        with suppress(FileNotFoundError):
            try:
                return llm_files.find(config, cache)
            except Damaged as error:
                damaged = damaged or error
    if damaged:
        raise damaged
    folder = llm_files.locate(config.name)
    if config.fingerprint and (found := llm_files.fingerprint(folder)) != config.fingerprint:
        raise ValueError(f"{folder}: expected '{config.name}' with fingerprint {config.fingerprint}, found {found}")
    return folder


def check(folder: Path) -> str:
    """The family of the model in a folder, which must bring no code of its own.

    Raises:
        OSError: another family, or code; says what was expected.
        ValueError: a settings file is no JSON object.
    """
    for name in _SETTINGS:
        if (folder / name).is_file() and "auto_map" in llm_files.read_json(folder / name):
            raise OSError(
                f"{folder}: {name} asks for code of the folder's own (auto_map), which is never run; use a model that "
                f"transformers has classes for"
            )
    if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(f"{folder}: expected preprocessor_config.json of an omni model; fetch it again")
    family = llm_files.family(folder)
    if family not in FAMILIES:
        raise OSError(f"{folder}: expected an omni model ({' or '.join(FAMILIES)}), not '{family}'")
    return family


TEXT = "{text}"  # in a prompt: the clip's words come here; without it they stand before the prompt, on a line of their own


@dataclass(frozen=True)
class Family:
    """What transformers' processor of a family does, beside its tokenizer, image processor and feature extractor."""

    thinker: str  # transformers' class
    audio_tokens: Callable[[int], int]  # spectrogram frames -> positions in the LLM
    audio_padding: str | bool  # of the waveform, as the feature extractor calls it
    frame_pixels: tuple[int, int]  # least and most of a resized frame, in squares of merged patches


FAMILIES_omni: Mapping[str, Family] = {
    "qwen2_5_omni": Family(
        "Qwen2_5OmniThinkerForConditionalGeneration", lambda n: ((n - 1) // 2 + 1 - 2) // 2 + 1, "max_length", (128, 768)
    ),
    "qwen3_omni_moe": Family(
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        lambda n: 13 * (n // 100) + ((((n % 100 - 1) // 2 + 1) - 1) // 2 + 1 - 1) // 2 + 1,  # in chunks of 100
        True,
        (128, 768),
    ),
}


class OmniLLM:
    """A frozen omni model that scores given answers to a clip, or writes one, always greedily.

    Each clip is a forward pass of its own, so no answer depends on its batch mates; its media and prompt are read once,
    and every answer continues from their keys and values.

    Args:
        system: what stands in the system message; "" = no such message.
        frame_tokens: most positions in the LLM that one pair of frames may take, the model's own limit where it is lower.
    """

    def __init__(
        self, model: PreTrainedModel, parts: Parts, fingerprint: str, name: str, system: str = "", frame_tokens: int = 128
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.parts, self.fingerprint, self.name, self.system = parts, fingerprint, name, system
        self.frame_tokens = frame_tokens
        self.device = next(model.parameters()).device
        self.num_parameters = sum(p.numel() for p in model.parameters())

    @torch.no_grad()
    def score(self, clips: Sequence[Clip], prompt: str, choices: Sequence[str]) -> np.ndarray:
        """(B, C) float64 natural logarithms of the chance of each answer behind a clip and the prompt, among these answers.

        An answer weighs what its tokens do, each given those before it; answers of different lengths compete as they are,
        without an end-of-turn token.

        Raises:
            ValueError: an answer has no tokens, or a clip and the prompt are longer than the model can read.
        """
        ids = [self.parts.ids(choice) for choice in choices]
        if empty := [choice for choice, tokens in zip(choices, ids, strict=True) if not tokens]:
            raise ValueError(f"expected answers with at least one token, but {empty[0]!r} came")
        found = np.array([self._scores(clip, prompt, ids) for clip in clips], np.float64).reshape(len(clips), len(choices))
        chances: np.ndarray = found - np.logaddexp.reduce(found, axis=1, keepdims=True)
        return chances

    def _scores(self, clip: Clip, prompt: str, choices: Sequence[Sequence[int]]) -> list[float]:
        """Answers that differ in their last token only share a row."""
        logits, cache = self._read(clip, prompt, max(map(len, choices)))
        rows = list(dict.fromkeys(tuple(tokens[:-1]) for tokens in choices if len(tokens) > 1))
        first = logits.float().log_softmax(-1)
        if not rows:
            return [first[tokens[0]].item() for tokens in choices]
        longest = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
        cache.batch_repeat_interleave(len(rows))
        after = self._step(padded, cache).float().log_softmax(-1)  # padding stands behind what is asked for
        place = {row: number for number, row in enumerate(rows)}
        found = []
        for tokens in choices:
            steps = [after[place[tuple(tokens[:-1])], step, token] for step, token in enumerate(tokens[1:])]
            found.append(sum((step.double() for step in steps), first[tokens[0]].double()).item())
        return found

    @torch.no_grad()
    def generate(self, clips: Sequence[Clip], prompt: str, max_new_tokens: int) -> list[str]:
        """What the model writes, greedily, up to the end of its turn; raises as `score`."""
        return [self._written(clip, prompt, max_new_tokens) for clip in clips]

    def _written(self, clip: Clip, prompt: str, most: int) -> str:
        logits, cache = self._read(clip, prompt, most)
        said: list[int] = []
        while len(said) < most and (token := int(logits.argmax())) not in self.parts.ends:
            said.append(token)
            logits = self._step(torch.tensor([[token]], device=self.device), cache)[0, -1]
        return self.parts.tokenizer.decode(said, skip_special_tokens=True).strip()

    def inputs(self, clip: Clip, prompt: str) -> dict[str, Tensor]:
        """What the model reads of one clip: ids (1, L) with a hole for each position of media, and the media.

        Frames come first, then sound, then words, as the families' own chat templates lay out a message.
        """
        found: dict[str, Tensor] = {}
        ids: list[int] = []
        token, special = self.model.config, self.parts.special
        if clip.frames is not None and len(clip.frames):
            patches, grid = self.parts.patches(clip.frames, self.frame_tokens)
            merged = int(grid.prod()) // self.parts.merge**2
            ids += [token.vision_start_token_id, *[token.video_token_id] * merged, special["vision_end"]]
            pair_s = self.parts.pair / clip.frames_per_second
            found |= {"pixel_values_videos": patches, "video_grid_thw": grid, "video_second_per_grid": torch.tensor([pair_s])}
        if clip.audio is not None:
            features, mask = self.parts.spectrogram(clip.audio)
            count = self.parts.family.audio_tokens(int(mask.sum()))
            ids += [token.audio_start_token_id, *[token.audio_token_id] * count, special["audio_end"]]
            found |= {"input_features": features, "feature_attention_mask": mask}
        words = prompt.replace(TEXT, clip.text) if TEXT in prompt else f"{clip.text}\n{prompt}"
        start, end, line = special["start"], special["end"], self.parts.ids("\n")
        system = [start, *self.parts.ids(f"system\n{self.system}"), end, *line] if self.system else []
        whole = [*system, start, *self.parts.ids("user\n"), *ids, *self.parts.ids(words), end, *line]
        whole += [start, *self.parts.ids("assistant\n")]
        found["input_ids"] = torch.tensor([whole])
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        return {name: value.to(self.device) for name, value in found.items()}

    def _read(self, clip: Clip, prompt: str, more: int) -> tuple[Tensor, Any]:
        """Logits (V,) of the first answer token, and the keys and values of all before it; `more` tokens must fit."""
        inputs = self.inputs(clip, prompt)
        length, most = inputs["input_ids"].shape[1], self.model.config.text_config.max_position_embeddings
        if length + more > most:
            raise ValueError(f"clip {clip.id!r}: {length} positions with the prompt, and the model reads {most}; show less of it")
        made = self.model(**inputs, use_cache=True)
        return made.logits[0, -1], made.past_key_values

    def _step(self, ids: Tensor, cache: Any) -> Tensor:
        """Logits (B, S, V) behind what the cache holds; the model itself knows at which position that ends."""
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits


class Parts:
    """What stands around the model in its folder: tokenizer, image processor, feature extractor.

    Raises:
        OSError: the tokenizer lacks a token that the family's inputs are made of.
    """

    def __init__(self, folder: Path, family: Family, config: Any) -> None:
        from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer, WhisperFeatureExtractor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        whole = (folder / "tokenizer.json").exists()
        self.family = family
        self.tokenizer = (PreTrainedTokenizerFast if whole else Qwen2Tokenizer).from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.sound = WhisperFeatureExtractor.from_pretrained(folder)
        self.merge, self.pair = self.images.merge_size, self.images.temporal_patch_size
        known = self.tokenizer.get_vocab()
        names = {"start": "<|im_start|>", "end": "<|im_end|>"}
        self.special = {role: known[name] for role, name in names.items() if name in known}
        for role in ("vision_end", "audio_end"):
            if (told := getattr(config, f"{role}_token_id", None)) is not None:
                self.special[role] = told
        if lacking := [role for role in (*names, "vision_end", "audio_end") if role not in self.special]:
            raise OSError(f"{folder}: config.json and tokenizer name no token for {' or '.join(lacking)}; fetch them again")
        ends = {self.special["end"], self.tokenizer.eos_token_id, known.get("<|endoftext|>")}
        self.ends = frozenset(ends - {None})

    def ids(self, text: str) -> list[int]:
        """Of words alone: what looks like one of the model's control tokens is read as the letters it is written in."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def patches(self, frames: np.ndarray, frame_tokens: int) -> tuple[Tensor, Tensor]:
        """Frames (T, H, W, 3) uint8 -> (N, C * pair * P * P) patches, and their grid (1, 3): pairs, rows, columns.

        The image processor resizes, normalises and cuts each frame, and gives every patch as a still of `pair` equal
        pictures; in a video these are the pair's own. An odd last frame is shown twice.
        """
        square = (self.images.patch_size * self.merge) ** 2
        least, most = self.family.frame_pixels
        most = min(most, frame_tokens)
        size = {"shortest_edge": min(least, most) * square, "longest_edge": most * square}
        made = self.images(list(frames), size=size, input_data_format="channels_last", return_tensors="pt")
        grid, stills = made["image_grid_thw"], made["pixel_values"]
        frames_made = stills.view(len(frames), -1, 3, self.pair, self.images.patch_size**2)[:, :, :, 0]  # (T, N, C, P * P)
        if spare := -len(frames) % self.pair:
            frames_made = torch.cat([frames_made, frames_made[-1:].expand(spare, -1, -1, -1)])
        pairs = frames_made.unflatten(0, (-1, self.pair)).permute(0, 2, 3, 1, 4)  # (T / pair, N, C, pair, P * P)
        rows, columns = grid[0, 1:].tolist()
        return pairs.flatten(0, 1).flatten(1).contiguous(), torch.tensor([[len(pairs), rows, columns]])

    def spectrogram(self, audio: np.ndarray) -> tuple[Tensor, Tensor]:
        """Waveform (N,) at 16 kHz -> log-mel features (1, F, T) and which of their frames are sound (1, T)."""
        made = self.sound(
            audio,
            sampling_rate=RATE_HZ,
            padding=self.family.audio_padding,
            truncation=self.family.audio_padding == "max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return made["input_features"], made["attention_mask"]


def load(
    config: LLMConfig, caches: Sequence[Path], device: torch.device, system: str = "", frame_tokens: int = 128
) -> OmniLLM:
    """The omni model that a config names, from the folder that one of these caches remembers, or by its name.

    Raises:
        OSError: it is not on this machine, of a family that is not known here, or brings code of its own.
        ValueError: its files are not those of the config's fingerprint, or do not make a model.
    """
    import transformers

    folder = locate(config, caches)
    family = FAMILIES_omni[check(folder)]
    if bare := [path.name for path in llm_files.weight_files(folder) if path.suffix != ".safetensors"]:
        raise OSError(f"{folder}: expected weights as safetensors, found {', '.join(bare)}; fetch those")
    thinker = getattr(transformers, family.thinker)
    try:
        with without_bars(), torch.random.fork_rng(devices=[]):  # whoever asks has seeded the generator
            model, loading = thinker.from_pretrained(
                folder, dtype=getattr(torch, config.dtype), local_files_only=True, output_loading_info=True
            )
            parts = Parts(folder, family, model.config)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder}: the files do not make an omni model ({type(error).__name__}: {reason}); fetch them again"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{folder}: the weights lack {len(missing)} of the model's, such as {missing[0]}; fetch them again")
    fingerprint = config.fingerprint or llm_files.fingerprint(folder)
    return OmniLLM(model.to(device), parts, fingerprint, config.name, system, frame_tokens)
