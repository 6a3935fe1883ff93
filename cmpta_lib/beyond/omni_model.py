"""Published omni models, which hear and see a clip themselves: by transformers' own classes, never by a folder's code.

Of Qwen2.5-Omni and Qwen3-Omni the thinker alone is loaded: it reads and answers, the talker would speak. Inputs are laid
out here, from the folder's tokenizer, its image processor and its feature extractor: transformers' processor for the
whole needs torchvision for a clip's frames, which this project does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cmpta_lib.config import LLMConfig
from cmpta_lib.files import runs_folder
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm.weights import load_model, quiet, told

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXT = "{text}"  # in a prompt: the clip's words come here; without it they stand before the prompt, on a line of their own
FRAME_TOKENS = 128, 768  # least and most positions of a resized pair of frames, as both families have it
FAMILIES: Mapping[str, tuple[str, str | bool]] = {  # model type -> transformers' class, and how waveforms are padded
    "qwen2_5_omni": ("Qwen2_5OmniThinkerForConditionalGeneration", "max_length"),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerForConditionalGeneration", True),
}
SPEAKING = r"(talker|token2wav|code2wav)\..+"  # names of the weights beside the thinker's
RATE_HZ = 16_000  # of waveforms
_SETTINGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, eq=False)
class Clip:
    """What an omni model is shown of a clip. It has no place for a label.

    `audio`: (N,) float32 in [-1, 1] at 16 kHz, or None. `frames`: (T, H, W, 3) uint8, red green blue, or None.
    """

    id: str
    text: str
    audio: np.ndarray | None = None
    frames: np.ndarray | None = None
    frames_per_second: float = 2.0
    was_cut: bool = False  # the recording went on


def check(folder: Path) -> str:
    """The family of the omni model in a folder, which must bring no code of its own.

    Raises:
        OSError: another family, or code; says what was expected.
        ValueError: a settings file is no JSON object.
    """
    for name in _SETTINGS:
        if (folder / name).is_file() and "auto_map" in llm_files.read_json(folder / name):
            said = f"{folder}: {name} asks for code of the folder's own (auto_map), which is never run"
            raise OSError(f"{said}; use a model that transformers has classes for")
    if not any((folder / name).is_file() for name in _SETTINGS[2:]):
        raise FileNotFoundError(f"{folder}: expected preprocessor_config.json of an omni model; fetch it again")
    family = llm_files.family(folder)
    if family not in FAMILIES:
        raise OSError(f"{folder}: expected an omni model ({' or '.join(FAMILIES)}), not '{family}'")
    return family


class OmniLLM:
    """A frozen omni model that scores given answers to a clip, or writes one, always greedily.

    A clip's media and prompt are read once, alone, and every answer continues from their keys and values. The arguments
    are those of `OmniConfig`, and the folder of tokenizer, image processor and feature extractor.

    Raises:
        OSError: the folder names no token for something that the family's inputs are made of.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, config: LLMConfig, system: str, frame_tokens: int) -> None:
        from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer, WhisperFeatureExtractor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        family = check(folder)
        self.model, self.system, self.frame_tokens = model.eval().requires_grad_(False), system, frame_tokens
        self.name, self.fingerprint = config.name, config.fingerprint or llm_files.fingerprint(folder)
        self.device, self.num_parameters = model.device, sum(p.numel() for p in model.parameters())
        whole = (folder / "tokenizer.json").exists()
        self.tokenizer = (PreTrainedTokenizerFast if whole else Qwen2Tokenizer).from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.sound, self.sound_padding = WhisperFeatureExtractor.from_pretrained(folder), FAMILIES[family][1]
        # Spectrogram frames -> positions in the LLM, by transformers' own code for the family.
        processing = import_module(f"transformers.models.{family}.processing_{family}")
        self.sound_positions = processing._get_feat_extract_output_lengths
        known = self.tokenizer.get_vocab()
        self.special = {"start": known.get("<|im_start|>"), "end": known.get("<|im_end|>")}
        self.special |= {role: getattr(model.config, f"{role}_token_id", None) for role in ("vision_end", "audio_end")}
        if missing := [role for role, token in self.special.items() if token is None]:
            raise OSError(f"{folder}: config.json and tokenizer name no token for {' or '.join(missing)}; fetch them again")
        self.ends = {self.special["end"], self.tokenizer.eos_token_id, known.get("<|endoftext|>")} - {None}

    @torch.no_grad()
    def score(self, clip: Clip, prompt: str, choices: Sequence[str]) -> np.ndarray:
        """(C,) float64 natural logarithms of the chance of each answer behind a clip and the prompt, among these answers.

        An answer weighs what its tokens do, each given those before it; answers of different lengths compete as they are,
        without an end-of-turn token.

        Raises:
            ValueError: the clip and the prompt are longer than the model can read.
        """
        ids = [self.ids(choice) for choice in choices]
        assert all(ids), "an answer has at least one token"
        logits, cache = self._read(clip, prompt, max(map(len, ids)))
        rows = list(dict.fromkeys(tuple(tokens[:-1]) for tokens in ids))  # answers that differ in their last token share one
        steps = logits.expand(len(rows), 1, -1)
        if longest := max(map(len, rows)):
            padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.device)
            cache.batch_repeat_interleave(len(rows))
            steps = torch.cat([steps, self._step(padded, cache)], dim=1)  # padding stands behind what is asked for
        chances = steps.float().log_softmax(-1).double()
        found = [chances[rows.index(tuple(tokens[:-1])), range(len(tokens)), tokens].sum().item() for tokens in ids]
        normalised: np.ndarray = np.array(found) - np.logaddexp.reduce(found)
        return normalised

    @torch.no_grad()
    def generate(self, clip: Clip, prompt: str, max_new_tokens: int) -> str:
        """What the model writes, greedily, up to the end of its turn; raises as `score`."""
        logits, cache = self._read(clip, prompt, max_new_tokens)
        said: list[int] = []
        while len(said) < max_new_tokens and (token := int(logits.argmax())) not in self.ends:
            said.append(token)
            logits = self._step(torch.tensor([[token]], device=self.device), cache)[0, -1]
        return str(self.tokenizer.decode(said, skip_special_tokens=True)).strip()

    def _read(self, clip: Clip, prompt: str, more: int) -> tuple[Tensor, Any]:
        """Logits (V,) of the first answer token, and the keys and values of all before it; `more` tokens must fit."""
        inputs, most = self.inputs(clip, prompt), self.model.config.text_config.max_position_embeddings
        length = inputs["input_ids"].shape[1]
        if length + more > most:
            raise ValueError(f"clip {clip.id!r}: {length} positions with the prompt, and the model reads {most}; show less of it")
        made = self.model(**inputs, use_cache=True)
        return made.logits[0, -1], made.past_key_values

    def _step(self, ids: Tensor, cache: Any) -> Tensor:
        """Logits (B, S, V) behind what the cache holds; the model itself knows at which position that ends."""
        logits: Tensor = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits

    def inputs(self, clip: Clip, prompt: str) -> dict[str, Tensor]:
        """What the model reads of one clip: ids (1, L) with a placeholder for each position of media, and the media.

        Frames come first, then sound, then words, as the families' own chat templates lay out a message.
        """
        found: dict[str, Tensor] = {}
        media: list[int] = []
        token, special = self.model.config, self.special
        if clip.frames is not None and len(clip.frames):
            patches, grid = self.patches(clip.frames)
            count = int(grid.prod()) // self.images.merge_size**2
            media += [token.vision_start_token_id, *[token.video_token_id] * count, special["vision_end"]]
            pair_s = torch.tensor([self.images.temporal_patch_size / clip.frames_per_second])
            found |= {"pixel_values_videos": patches, "video_grid_thw": grid, "video_second_per_grid": pair_s}
        if clip.audio is not None:  # (N,) at 16 kHz -> log-mel features (1, F, T), and which of their frames are sound
            form = {"padding": self.sound_padding, "truncation": self.sound_padding == "max_length", "return_tensors": "pt"}
            made = self.sound(clip.audio, sampling_rate=RATE_HZ, return_attention_mask=True, **form)
            count = int(self.sound_positions(made["attention_mask"].sum()))
            media += [token.audio_start_token_id, *[token.audio_token_id] * count, special["audio_end"]]
            found |= {"input_features": made["input_features"], "feature_attention_mask": made["attention_mask"]}
        words = prompt.replace(TEXT, clip.text) if TEXT in prompt else f"{clip.text}\n{prompt}"
        start, end = special["start"], [special["end"], *self.ids("\n")]
        system = [start, *self.ids(f"system\n{self.system}"), *end] if self.system else []
        user = [start, *self.ids("user\n"), *media, *self.ids(words), *end]
        found["input_ids"] = torch.tensor([[*system, *user, start, *self.ids("assistant\n")]])
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        return {name: value.to(self.device) for name, value in found.items()}

    def ids(self, text: str) -> list[int]:
        """Of words alone: what looks like one of the model's control tokens is read as the letters it is written in."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def patches(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Frames (T, H, W, 3) uint8 -> (N, C * pair * P * P) patches, and their grid (1, 3): pairs, rows, columns.

        The image processor resizes, normalises and cuts each frame, and gives every patch as a still of `pair` equal
        pictures; in a video these are the pair's own. An odd last frame is shown twice.
        """
        pair, side, least = self.images.temporal_patch_size, self.images.patch_size, FRAME_TOKENS[0]
        square, most = (side * self.images.merge_size) ** 2, min(FRAME_TOKENS[1], self.frame_tokens)
        size = {"shortest_edge": min(least, most) * square, "longest_edge": most * square}
        shown = [*frames, *[frames[-1]] * (-len(frames) % pair)]
        made = self.images(shown, size=size, input_data_format="channels_last", return_tensors="pt")
        stills = made["pixel_values"].view(-1, pair, made["image_grid_thw"][0].prod(), 3, pair, side**2)[..., 0, :]
        pairs = stills.permute(0, 2, 3, 1, 4)  # (T / pair, N, C, pair, P * P)
        rows, columns = made["image_grid_thw"][0, 1:].tolist()
        return pairs.flatten(0, 1).flatten(1).contiguous(), torch.tensor([[len(pairs), rows, columns]])


def load(config: LLMConfig, device: torch.device, system: str = "", frame_tokens: int = 128) -> OmniLLM:
    """The omni model that a config names, from the folder that this machine's caches remember, or by its name.

    Raises:
        OSError: it is not on this machine, of a family that is not known here, or brings code of its own.
        ValueError: its files are not those of the config's fingerprint, or do not make a model.
    """
    import transformers

    folder = _folder(config)
    thinker = getattr(transformers, FAMILIES[check(folder)][0])
    if bare := [path.name for path in llm_files.weight_files(folder) if path.suffix != ".safetensors"]:
        raise OSError(f"{folder}: expected weights as safetensors, found {', '.join(bare)}; fetch those")
    path = folder / "config.json"
    with quiet(), torch.random.fork_rng(devices=[]):  # whoever asks has seeded the generator
        with told(path, f"settings of {thinker.__name__}"):
            settings = thinker.config_class.from_dict(llm_files.read_json(path)["thinker_config"])
        model = load_model(thinker, settings, folder, getattr(torch, config.dtype), device, SPEAKING)
        with told(folder, "the files of an omni model"):
            return OmniLLM(model, folder, config, system, frame_tokens)


def _folder(config: LLMConfig) -> Path:
    """Where a config's files lie, unchanged; raises as `llm.files.find` and `locate`."""
    for runs in (runs_folder(), runs_folder() / "smoke") if config.fingerprint else ():
        with suppress(FileNotFoundError):
            return llm_files.find(config, runs / "cache" / "llm")
    folder = llm_files.locate(config.name)
    if config.fingerprint and (found := llm_files.fingerprint(folder)) != config.fingerprint:
        raise ValueError(f"{folder}: expected '{config.name}' with fingerprint {config.fingerprint}, found {found}")
    return folder
