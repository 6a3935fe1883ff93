"""Labels for one modality alone, made from the multimodal ones: Yu et al. 2021, section 3.3 (unimodal label generation).

Shapes: N clips of the training split, B of them in a batch, C targets per clip, d features. A score is the case C = 1. For
classes, of which the paper has none, target c is +1 for class c and -1 for the rest, and everything below holds target by
target: the centre of a class's clips takes the place of the positive centre, that of the rest the negative one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

UNIMODAL = ("text", "audio", "vision")
SPACES = ("fusion", *UNIMODAL)
_EPSILON = 1e-8


class LabelTables(nn.Module):
    """Targets and features of every training clip in four spaces; all of it buffers, so that a killed run goes on exactly.

    `widths`: d of each space. `bound`: H, generated labels stay in [-H, H].
    """

    targets: Tensor  # (4, N, C): multimodal labels, then the generated ones in the order of `UNIMODAL`

    def __init__(self, widths: Mapping[str, int], outputs: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("targets", torch.zeros(len(SPACES), 0, outputs))
        for space in SPACES:
            self.register_buffer(f"features_{space}", torch.zeros(0, widths[space]))
            self.register_buffer(f"centres_{space}", torch.zeros(2, outputs, widths[space]))  # positive, negative

    def start(self, targets: Tensor) -> None:
        """Size the tables for (N, C) multimodal labels; every modality starts with these."""
        self.targets = targets.to(self.targets).expand(len(SPACES), -1, -1).clone()
        for space in SPACES:
            held = self.get_buffer(f"features_{space}")
            setattr(self, f"features_{space}", held.new_zeros(len(targets), held.shape[1]))

    def update(self, rows: Tensor, features: Mapping[str, Tensor], epoch: int) -> None:
        """Move the generated labels of clips `rows` (B,) towards what their features (B, d) say; `epoch` counts from 1."""
        positions = {space: self._position(space, features[space]) for space in SPACES}
        label, fused = self.targets[0, rows], positions["fusion"]
        for number, space in enumerate(UNIMODAL, 1):
            alone = positions[space]
            # Where the fused features lie between both centres the ratio has no bound; 0 * inf would be no number.
            scaled = torch.nan_to_num(alone / (fused + _EPSILON) * label)
            wanted = (0.5 * scaled + 0.5 * (label + alone - fused)).clamp(-self.bound, self.bound)
            self.targets[number, rows] = ((epoch - 1) * self.targets[number, rows] + 2 * wanted) / (epoch + 1)

    def _position(self, space: str, features: Tensor) -> Tensor:
        """(B, d) -> (B, C) alpha: how much nearer to the positive centre than to the negative one, relative to the former."""
        centres = self.get_buffer(f"centres_{space}")
        to_positive, to_negative = (torch.linalg.vector_norm(features[:, None] - centre, dim=-1) for centre in centres)
        return (to_negative - to_positive) / (to_positive + _EPSILON)

    def write(self, rows: Tensor, features: Mapping[str, Tensor]) -> None:
        for space in SPACES:
            self.get_buffer(f"features_{space}")[rows] = features[space]

    def find_centres(self) -> None:
        """Centres of all clips above zero and of all below, in each space by its own labels; none there: as it was."""
        for number, space in enumerate(SPACES):
            features, centres = self.get_buffer(f"features_{space}"), self.get_buffer(f"centres_{space}")
            targets = self.targets[number].T
            for place, chosen in enumerate((targets > 0, targets < 0)):
                count = chosen.sum(1, keepdim=True)
                mean = chosen.to(features) @ features / count.clamp(min=1)
                centres[place] = torch.where(count > 0, mean, centres[place])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Tables of any number of clips: a finished run is opened without its training split."""
        for name, held in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != held.shape and stored.ndim == held.ndim:
                if name == "targets" or name.startswith("features_"):
                    clips = stored.shape[-2]
                    setattr(self, name, held.new_zeros(*held.shape[:-2], clips, held.shape[-1]))
        super()._load_from_state_dict(state_dict, prefix, *rest)
