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
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmpta_lib.files import Damaged
from cmpta_lib.llm.files import read_json, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
# Names of what old files hold and classes compute: angles, positions, and masks.
_COMPUTED = r"(.*\.)?(inv_freq|position_ids|masked_bias|causal_mask|(attn|attention)\.bias)"
Stored = Mapping[str, tuple[Tensor, Path, str]]  # a class's name -> its tensor, the file, the name there


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
        """The model of a folder with config.json and weights as published; raises as `load_model`."""
        content = read_json(folder / "config.json")
        with told(folder / "config.json", f"settings for {self.model.__name__}"):
            config = self.config_of(content)
        rows = [heads * config.head_dim for heads in (config.num_attention_heads, *2 * [config.num_key_value_heads])]
        return load_model(self.model, config, folder, dtype, device, renamed=partial(self.renamed, rows=rows))


def expect(published: Mapping[str, Any], expected: Mapping[str, Any], family: str) -> None:
    """Raise ValueError where a config.json asks for something that transformers' class of the family cannot do."""
    if odd := [f"{name}={published[name]}" for name, value in expected.items() if published.get(name, value) != value]:
        raise ValueError(f"{family} with {', '.join(odd)} cannot be loaded")


def is_of_machine(error: Exception) -> bool:
    """Whether an error is of this machine's memory or GPU: no other file and no other model mends it."""
    known = isinstance(error, RuntimeError) and re.search("CUDA|HIP error|allocate memory", str(error))
    return bool(known) or isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def told(path: Path, wanted: str) -> Iterator[None]:
    """What transformers, torch and tokenizers raise on files that are there and wrong becomes a line that names the file.

    Raises:
        Damaged: of any error within but of the machine, and of files that are not there or closed to us.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, Damaged):
        raise
    except Exception as error:  # tokenizers raise it as such, and damaged files lead to nearly every other
        if is_of_machine(error):
            raise
        said = next((line for line in str(error).splitlines() if line.strip()[-1:] not in ("", ":")), type(error).__name__)
        if isinstance(error, UnpicklingError):  # torch's own message advises to read the file unsafely
            said = "it holds more than tensors"
        reason = shorten("no entry " * isinstance(error, KeyError) + said, 120, placeholder=" ...").rstrip(".")
        raise Damaged(f"{path}: expected {wanted} ({reason}); fetch it again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers shows no progress bar, which a notebook would keep, and no table of what does not fit.

    A caller's own choice comes back.
    """
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def load_model(
    model: type[PreTrainedModel], config: Any, folder: Path, dtype: torch.dtype, device: torch.device, surplus: str = "",
    renamed: Callable[[str, Tensor], Iterable[tuple[str, Tensor]]] = lambda *named: [named],
) -> Any:  # fmt: skip
    """The model of this class and config whose weights are those of a folder's files, all and no others.

    transformers is handed the tensors, not the folder, where it would also follow files that no fingerprint is of.

    Args:
        device: on "meta" all is checked but that tied weights are equal, and no memory is taken.
        surplus: expression of the names of tensors that files may hold and the class has no place for.
        renamed: from a published tensor to the class's names and parts of it.
    Raises:
        FileNotFoundError: as `weight_files`.
        Damaged: a file is, or tensors and config are not of one model; names file and tensor.
    """
    stored, seen = dict[str, tuple[Tensor, Path, str]](), set[str]()
    for name, (tensor, path) in read_tensors(folder).items():
        with told(path, "weights that fit config.json"):
            parts = [] if re.fullmatch(f"{surplus}|{_COMPUTED}", name) else [*renamed(name, tensor)]
        for own, part in parts:
            # transformers takes names with and without the class's prefix, and BERT's of its first years.
            plain = own.removeprefix(f"{model.base_model_prefix}.").replace("Norm.gamma", "Norm.weight")
            if (plain := plain.replace("Norm.beta", "Norm.bias")) in seen:
                raise Damaged(f"{path}: {name} is there twice, under two names; fetch it again")
            stored[own] = part, path, name
            seen.add(plain)
    _check_fit(folder, stored, (), (), ())
    with told(folder / "config.json", f"settings of these weights for {model.__name__}"), quiet():
        for place in dict.fromkeys(("meta", str(device))):  # first where drawing what is missing takes no time and no memory
            state = {name: one[0].to("meta") if place == "meta" else one[0] for name, one in stored.items()}
            options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            made, info = model.from_pretrained(None, config=config, state_dict=state, dtype=dtype, device_map=place, **options)
            _check_fit(folder, stored, info["mismatched_keys"], info["unexpected_keys"], info["missing_keys"])
    tied = made.get_expanded_tied_weights_keys(all_submodels=True) if device.type != "meta" else {}  # where none are compared
    for name, source in tied.items():
        if made.get_parameter(name) is not made.get_parameter(source):
            path = stored[name][1] if name in stored else folder  # where it has no prefix
            raise Damaged(f"{path}: {name} is not {source}, and tie_word_embeddings says so; fetch it and config.json")
    _check_values(stored)
    return made


def _check_fit(
    folder: Path, stored: Stored, shapes: Collection[tuple[str, Any, Any]], unknown: Collection[str], missing: Collection[str]
) -> None:
    """Raise Damaged, with file and tensor, of names (in `shapes` with the stored and the model's shape) that do not fit."""
    experts = defaultdict[tuple[str, str], set[int]](set)  # transformers stacks them in order, whatever their numbers
    for name in stored:
        if found := re.fullmatch(r"(.+\.experts\.)(\d+)(\..+)", name):
            experts[found[1], found[3]].add(int(found[2]))
    missing = {*missing, *(f"{a}{n}{b}" for (a, b), known in experts.items() for n in {*range(max(known))} - known)}
    said = [f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in sorted(shapes)[:1]]
    said += [f"{name} has no place" for name in sorted(unknown)[:1]] + [f"{name} is missing" for name in sorted(missing)[:1]]
    if said:
        first, *others = weight_files(folder)
        holding = (path for name, (_, path, _) in stored.items() if name.endswith(said[0].split()[0]))
        path = next(holding, folder / "config.json" if others else first)
        number = len(shapes) + len(unknown) + len(missing)
        count = f" ({number} tensors in all)" if number > 1 else ""
        raise Damaged(f"{path}: weights and config.json are not of one model: {'; '.join(said[:2])}{count}; fetch both again")


def _check_values(stored: Stored) -> None:
    """Raise Damaged, with file and tensor, unless all are finite numbers of one type; one pass, 4 GB/s a core.

    Some may be float32 beside a shorter type, as some models are published.
    """
    sizes = Counter[torch.dtype]()
    for tensor, _, _ in stored.values():
        sizes[tensor.dtype] += tensor.nbytes
    ((common, _),) = sizes.most_common(1)
    for tensor, path, name in stored.values():
        if tensor.dtype not in _FLOATS & {common, torch.float32}:
            raise Damaged(f"{path}: {name} is of type {tensor.dtype}, most of the weights of {common}; fetch it again")
        if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
            raise Damaged(f"{path}: {name} holds values that are not finite (NaN or infinite); fetch it again")


def read_tensors(folder: Path) -> dict[str, tuple[Tensor, Path]]:
    """Every tensor of a folder's weight files, memory-mapped, by its published name, with its file.

    Raises:
        FileNotFoundError: as `weight_files`.
        Damaged: a file is, or does not hold what the index says; names file and tensor.
    """
    found: dict[str, tuple[Tensor, Path]] = {}
    for path, promised in weight_files(folder).items():
        with told(path, "weights"):
            tensors = dict(_read(path))
        wrong = [name for name in promised ^ tensors.keys() if not re.fullmatch(_COMPUTED, str(name))] if promised else []
        for name in sorted(wrong, key=str):
            here = "holds" if name in tensors else "lacks"
            raise Damaged(f"{path}: {here} {name}, and the index says otherwise; fetch all again")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                raise Damaged(f"{path}: {name} is no plain tensor; fetch it again")
            found[name] = tensor, path
    return found


def _read(path: Path) -> Iterable[tuple[str, Tensor]]:
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True).items()
    with safe_open(path, "pt") as file:
        return [(name, file.get_tensor(name)) for name in file.keys()]
