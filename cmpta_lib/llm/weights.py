"""Published weight files -> a model of transformers' own classes, without holding anything twice.

safetensors shards are memory-mapped and their tensors become the model's parameters as they are, so on a CPU loading
costs no copy at all, and on a GPU one tensor of host memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmpta_lib.llm.files import read_json, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        if name.endswith(("inv_freq", "masked_bias")):  # computed, not learned
            return
        if not (found := re.fullmatch(self.layer, name)):
            yield self.outside.get(name, name), tensor
            return
        prefix, inner = f"model.layers.{found[1]}", found[2]
        if inner.startswith(f"{self.fused}."):
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
        config = self.config_of(read_json(folder / "config.json"))
        rows = [heads * config.head_dim for heads in (config.num_attention_heads, *2 * [config.num_key_value_heads])]
        with torch.device("meta"):  # where new parameters take no memory
            model: Any = self.model(config)
        parts = (part for name, tensor in read_tensors(folder) for part in self.renamed(name, tensor, rows))
        state = {name: tensor.to(device, dtype) for name, tensor in parts}
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:  # torch's list of names and shapes, one a line
            listed = " ".join(str(error).split())
            raise ValueError(f"{folder}: weights and config.json do not fit: {listed[:500]}. Fetch both again") from None
        for module in model.modules():  # rotary frequencies are computed, not stored: on "meta" they have no values
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                for name, buffer in type(module)(config=model.config).to(device).named_buffers(recurse=False):
                    module.register_buffer(name, buffer, persistent=False)
        return model


def expect(published: Mapping[str, Any], expected: Mapping[str, Any], family: str) -> None:
    """Raise ValueError where a config.json asks for something that transformers' class of the family cannot do."""
    if odd := [name for name, value in expected.items() if published.get(name, value) != value]:
        found = ", ".join(f"{name}={published[name]}" for name in odd)
        raise ValueError(f"config.json: {family} with {found} cannot be loaded, expected {expected}")


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's weight files, memory-mapped, with its published name.

    Raises:
        FileNotFoundError: as `weight_files`.
        ValueError: a file is damaged; names it.
    """
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    for name in file.keys():
                        yield name, file.get_tensor(name)
            else:
                yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()
        except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
            # Torch's own message of a pickle advises to read the file unsafely.
            reason = "it holds more than tensors" if isinstance(error, UnpicklingError) else error
            raise ValueError(f"{path}: cannot be read as weights ({reason}); fetch it again") from None
