"""Published weight files -> a model of transformers' own classes whose weights are those of the files, all and no others.

safetensors shards are memory-mapped and their tensors become the model's parameters as they are, so on a CPU loading
costs no copy at all, and on a GPU one tensor of host memory at a time.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmpta_lib.llm.files import index_of, read_json, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_COMPUTED = re.compile(r"(.*\.)?(inv_freq|masked_bias|position_ids)")  # buffers that old files hold and no class reads


@dataclass(frozen=True)
class Published:
    """A family's own names of weights and settings -> those of transformers' class, which is the same network.

    `layer` matches a layer's weights, with its number and the name within; `fused` holds query, key and value, in this
    order. Unknown names stay, so that `load` tells of them.
    """

    model: type[PreTrainedModel]
    config_of: Callable[[dict[str, Any]], Any]  # of the published config.json
    layer: str
    in_layer: Mapping[str, str]
    outside: Mapping[str, str]
    fused: str

    def renamed(self, name: str, tensor: Tensor, rows: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        """The parameters that a published tensor holds, as views where it holds several; `rows` of each fused one."""
        if not (found := re.fullmatch(self.layer, name)):
            yield self.outside.get(name, name), tensor
            return
        prefix, inner = f"model.layers.{found[1]}", found[2]
        if inner.startswith(f"{self.fused}."):
            if len(tensor) != sum(rows):
                raise ValueError(f"{name} has {len(tensor)} rows, config.json asks for {sum(rows)}")
            for part, own in zip("qkv", tensor.split(rows), strict=True):
                yield f"{prefix}.self_attn.{part}_proj.{inner.rsplit('.')[-1]}", own
        else:
            yield f"{prefix}.{self.in_layer.get(inner, inner)}", tensor

    def load(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The model of a folder with config.json and weights as published, whose parameters are the folder's tensors.

        Raises:
            FileNotFoundError: as `weight_files`.
            ValueError: the config asks for what the class cannot do, or a tensor is missing, not known, or of another shape
                than the config says; names the first ones.
        """
        content = read_json(folder / "config.json")
        with told(folder / "config.json", f"settings for {self.model.__name__}"):
            config = self.config_of(content)
        rows = [heads * config.head_dim for heads in (config.num_attention_heads, *2 * [config.num_key_value_heads])]
        with torch.device("meta"):  # where new parameters take no memory
            model: Any = self.model(config)
        stored, expected, state, places = read_tensors(folder), model.state_dict(), dict[str, Tensor](), dict[str, str]()
        with told(folder, "their model"):
            for name, (tensor, path) in stored.items():
                for own, part in self.renamed(name, tensor, rows):
                    state[own], places[own] = part, path
        shapes = ((name, state[name].shape, wanted.shape) for name, wanted in expected.items() if name in state)
        check_fit(folder, places, expected.keys() - state, state.keys() - expected, [one for one in shapes if one[1] != one[2]])
        check_values(stored)
        model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
        for module in model.modules():  # rotary frequencies are computed, not stored: on "meta" they have no values
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                for name, buffer in type(module)(config=model.config).to(device).named_buffers(recurse=False):
                    module.register_buffer(name, buffer, persistent=False)
        return model


def expect(published: Mapping[str, Any], expected: Mapping[str, Any], family: str) -> None:
    """Raise ValueError where a config.json asks for something that transformers' class of the family cannot do."""
    if odd := [name for name, value in expected.items() if published.get(name, value) != value]:
        found = ", ".join(f"{name}={published[name]}, expected {expected[name]}" for name in odd)
        raise ValueError(f"{family} with {found}: transformers' class of the family cannot do that")


@contextmanager
def told(path: Path, wanted: str) -> Iterator[None]:
    """What transformers, torch and tokenizers raise on files that are there and wrong becomes one line that names the file.

    Raises:
        ValueError: of any error within but of memory; `path`, what it was to be, the first lines of why.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raise it as such, and damaged files lead to nearly every other
        lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith(":")] or [type(error).__name__]
        reason = f"no entry {lines[0]}" if isinstance(error, KeyError) else shorten(lines[0], 120, placeholder=" ...")
        if isinstance(error, UnpicklingError):
            reason = "it holds more than tensors"
        raise ValueError(f"{path}: expected {wanted} ({reason.rstrip('.')}); fetch it again") from error


def load_model(
    model: type[PreTrainedModel], config: Any, folder: Path, dtype: torch.dtype, surplus: str = ""
) -> PreTrainedModel:
    """The model of this class and config whose weights are those of a folder, on the CPU.

    transformers is handed the tensors, not the folder, where it would follow other files too (adapters, a second form of
    the weights) that no fingerprint is of.

    Args:
        surplus: expression of the names of tensors that the files may hold and this class has no place for.
    Raises:
        FileNotFoundError: as `weight_files`.
        ValueError: a file is damaged, or tensors and config are not of one model; names file and tensor.
    """
    from transformers.utils import logging

    stored = {name: found for name, found in read_tensors(folder).items() if not re.fullmatch(surplus, name)}
    names: dict[str, str] = {}  # transformers takes a name with and without the class's prefix, and BERT's of its first years
    for name in stored:
        plain = name.removeprefix(f"{model.base_model_prefix}.")
        plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if (other := names.setdefault(plain, name)) != name:
            raise ValueError(f"{stored[name][1]}: {name} is there twice, also as {other}; fetch it again")
    places = {name: path for name, (_, path) in stored.items()}
    _check_experts(folder, stored)

    def made(place: str | None) -> tuple[PreTrainedModel, dict[str, Any]]:
        state = {name: tensor.to(place or "cpu") for name, (tensor, _) in stored.items()}
        return model.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, device_map=place, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its tables of what does not fit are said below
    try:
        with told(folder / "config.json", f"settings of these weights for {model.__name__}"):
            empty, info = made("meta")  # transformers would draw what is missing: where that takes neither time nor memory
        buffers = {name for name, _ in empty.named_buffers()}  # some files hold what their class computes
        unknown = {name for name in info["unexpected_keys"] if not {name, f"{model.base_model_prefix}.{name}"} & buffers}
        check_fit(folder, places, info["missing_keys"], unknown, info["mismatched_keys"])
        loaded, _ = made(None)
    finally:
        logging.set_verbosity(verbosity)
    for name, source in loaded.get_expanded_tied_weights_keys(all_submodels=True).items():
        if loaded.get_parameter(name) is not loaded.get_parameter(source):
            raise ValueError(
                f"{places.get(name, folder)}: {name} differs from {source}, and config.json says that they are one "
                f"(tie_word_embeddings); fetch both again"
            )
    check_values(stored)
    return loaded


def check_fit(
    folder: Path,
    places: Mapping[str, Path],
    missing: Collection[str],
    unknown: Collection[str],
    shapes: Collection[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    """Raise ValueError, with file and tensor, unless the tensors of the files are those that config.json describes.

    Args:
        places: the file of each tensor.
        missing: names of the model's tensors that are in no file.
        unknown: names of tensors that the model has no place for.
        shapes: name, stored shape, the model's shape of each that is of another.
    """
    if not (missing or unknown or shapes):
        return
    said, first = [], ""
    if shapes:
        first, found, wanted = min(shapes)
        said.append(f"{first} is {list(found)}, not {list(wanted)}{_more(shapes)}")
    if unknown:
        first = first or min(unknown)
        said.append(f"{min(unknown)} has no place{_more(unknown)}")
    if missing:
        said.append(f"{min(missing)} is missing{_more(missing)}")
    path = next((path for name, path in places.items() if first and name.endswith(first)), _only(folder))
    raise ValueError(f"{path}: not the weights of the model in config.json: {'; '.join(said[:2])}. Fetch both again")


def _check_experts(folder: Path, stored: Mapping[str, tuple[Tensor, Path]]) -> None:
    """As `check_fit` for what transformers stacks: of experts it counts the tensors, whatever their numbers."""
    found = defaultdict[tuple[str, str], dict[int, str]](dict)
    for name in stored:
        if parts := re.fullmatch(r"(.+\.experts)\.(\d+)\.(.+)", name):
            found[parts[1], parts[3]][int(parts[2])] = name
    places, count = {name: path for name, (_, path) in stored.items()}, Counter[str]()
    for (layer, _), names in found.items():
        count[layer] = max(count[layer], *names, 0)
    for (layer, rest), names in found.items():
        check_fit(folder, places, {f"{layer}.{n}.{rest}" for n in range(count[layer] + 1)} - {*names.values()}, (), ())
        shapes = ((name, stored[name][0].shape, stored[names[0]][0].shape) for name in names.values())
        check_fit(folder, places, (), (), [one for one in shapes if one[1] != one[2]])


def _more(found: Collection[Any]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def _only(folder: Path) -> Path:
    """What says which tensors there are: the index of several files, or the one file."""
    paths = weight_files(folder)
    return index_of(folder) or paths[0]


def check_values(stored: Mapping[str, tuple[Tensor, Path]]) -> None:
    """Raise ValueError, with file and tensor, unless all are finite numbers of one type; one pass, 5 GB/s or so.

    Whole kinds of tensors, the same in every layer, may be float32 beside a shorter type, as some are published.
    """
    sizes, kinds = Counter[torch.dtype](), defaultdict[str, set[torch.dtype]](set)
    for name, (tensor, _) in stored.items():
        sizes[tensor.dtype] += tensor.nbytes
        kinds[re.sub(r"\d+", "#", name)].add(tensor.dtype)
    common = max(sizes, key=sizes.__getitem__)
    for name, (tensor, path) in stored.items():
        is_alike = tensor.dtype == torch.float32 and len(kinds[re.sub(r"\d+", "#", name)]) == 1
        if tensor.dtype not in _FLOATS or tensor.dtype != common and not is_alike:
            found, expected = (str(one).removeprefix("torch.") for one in (tensor.dtype, common))
            raise ValueError(f"{path}: {name} is {found}, expected {expected} as most of the weights; fetch it again")
        if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
            raise ValueError(f"{path}: {name} holds values that are not finite (NaN or infinite); fetch it again")


def read_tensors(folder: Path) -> dict[str, tuple[Tensor, Path]]:
    """Every learned tensor of a folder's weight files, memory-mapped, by its published name, with its file.

    Raises:
        FileNotFoundError: as `weight_files`.
        ValueError: a file is damaged, or does not hold what the index says; names file and tensor.
    """
    index, found = index_of(folder), dict[str, tuple[Tensor, Path]]()
    for path in weight_files(folder):
        with told(path, "weights"):
            tensors = dict(_read(path))
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                raise ValueError(f"{path}: {name} is no plain tensor; fetch it again")
            if name in found:
                raise ValueError(f"{path}: {name} is in {found[name][1].name} too; fetch both again")
            found[name] = tensor, path
    promised = read_json(index)["weight_map"] if index else {name: path.name for name, (_, path) in found.items()}
    for name in sorted(promised.keys() | found.keys()):
        place = found[name][1].name if name in found else "no file"
        if promised.get(name, "no file") != place:
            raise ValueError(f"{index}: {name} is in {place}, not in {promised.get(name, 'the index')}; fetch all again")
    return {name: place for name, place in found.items() if not _COMPUTED.fullmatch(name)}


def _read(path: Path) -> Iterable[tuple[str, Tensor]]:
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True).items()
    with safe_open(path, "pt") as file:
        return [(name, file.get_tensor(name)) for name in file.keys()]
