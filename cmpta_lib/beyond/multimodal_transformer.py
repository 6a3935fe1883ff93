"""The multimodal transformer of the second document (its section 3.2), pre-trained without labels and fine-tuned with them.

The document stops in its section 3.4 and gives equations without numbers, some of which cannot be computed as printed;
each choice is a field of `MultimodalTransformerConfig`. Shapes: B clips, L text tokens, T tokens of voice or face, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, permutations
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmpta_lib.base import Group, Loss, mean_over_time, real_positions
from cmpta_lib.baselines.supervised import Chance, ClipBatch, Clips, Supervised, SupervisedConfig
from cmpta_lib.beyond import losses
from cmpta_lib.config import AtLeastOne, EvenWidth, Few, Positive, Rate, RunConfig, Stage, TrainingConfig, Width
from cmpta_lib.data.corpus import MODALITIES, Split
from cmpta_lib.registry import register


class MultimodalTransformerConfig(SupervisedConfig):
    """The transformer of the second document: pre-trained on clips without labels, then fine-tuned with them.

    The document gives equations and not one number. `training` is the fine-tuning: its learning rate is that of fusion and
    classifier, and a pre-trained body has `body_rate` times as much.
    """

    name: Literal["multimodal_transformer"] = "multimodal_transformer"
    recipe: Literal[1] = 1
    # Of all that follows, only these fields do not touch the pre-training, so runs that differ in them share one.
    fine_tuning_only: ClassVar[frozenset[str]] = frozenset(
        {"fusion", "projections", "pooling", "resampled_positions", "label_share", "body_rate"}
    )
    dim: EvenWidth = 256
    layers: Few = 4
    heads: Few = 4
    feedforward: Few = 4  # width of a layer's inner part, times dim
    dropout: Chance = 0.1
    frame_window: Annotated[int, Field(ge=1, le=1000)] = 1  # frames of voice and face that W_m sees at once; 1 = as printed
    frame_stride: Few = 1  # frames from one window to the next
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_positions: Width = 1024  # of learned ones; what comes later shares the last
    text_table: Literal["frozen", "trained"] = "frozen"  # X_t: rows of the text encoder's word embeddings, or a copy of them
    pretraining: Literal["none", "mlm", "contrastive", "both"] = "both"
    pretraining_epochs: AtLeastOne = 10
    pretraining_rate: Rate = 1e-4
    pretraining_batch: AtLeastOne = 64
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15  # of a text's tokens, as in BERT
    contrastive_view: Literal["alone", "joint"] = "alone"  # joint: text has seen the voice that it is to be matched with
    contrastive_dim: Width = 128
    temperature: Positive = 0.07  # at the start; it is learned, within 1/100 and 1
    fusion: Literal["six_pair", "concatenation", "self_attention"] = "six_pair"
    projections: Literal["per_modality", "per_pair"] = "per_modality"  # Q, K, V as they are indexed in the document
    pooling: Literal["mean", "first_token", "resample"] = "mean"  # how terms of unlike lengths become addable
    resampled_positions: Few = 8
    label_share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the training clips whose labels are used
    body_rate: Positive = 0.2  # of a pre-trained body; one that was not learns as fast as the classifier

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.pretraining == "contrastive" and self.modalities == "text":
            raise ValueError("pretraining='contrastive' with modalities='text': there is no pair of modalities to align")
        return self

    def stages(self, run: RunConfig) -> tuple[Stage, ...]:
        """Pre-training without labels, if any, then fine-tuning on a share of the labels."""
        fine_tuning = Stage("training", run.training, share=self.label_share)
        if self.pretraining == "none":
            return (fine_tuning,)
        of_training = self.pretraining_epochs, self.pretraining_rate, self.pretraining_batch
        return (losses.unlabelled_stage("pretraining", run, *of_training, self.fine_tuning_only), fine_tuning)


STREAMS = ("text", "audio", "vision")  # t, a, v
States = Mapping[str, tuple[Tensor, Tensor]]  # modality -> states (B, T, D) and lengths (B,) int64, 0 = absent


def sinusoids(size: int, dim: int, device: torch.device) -> Tensor:
    """(size, dim) positions as in "Attention is all you need": sine in even places, cosine in odd ones."""
    places = torch.arange(size, device=device)[:, None]
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    return torch.stack([torch.sin(places * rates), torch.cos(places * rates)], dim=-1).flatten(1)


class Embedding(nn.Module):
    """E_m = W_m X_m + P_m of one modality, and a vector that tells it from the others.

    W_m reads `window` frames at once, every `stride` frames: 1 and 1 is the equation as printed.
    """

    def __init__(self, features: int, settings: MultimodalTransformerConfig, window: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.window, self.stride = window, stride
        self.project = nn.Linear(window * features, settings.dim)  # W_m
        self.kind = nn.Parameter(0.02 * torch.randn(settings.dim))
        if settings.positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(settings.max_positions, settings.dim))  # P_m

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), zero-padded at the end, and lengths (B,) -> tokens (B, ceil(T / stride), D) and their lengths."""
        size = -(-features.shape[1] // self.stride)
        lengths = torch.div(lengths + self.stride - 1, self.stride, rounding_mode="floor")
        if not size:
            return features.new_zeros(len(features), 0, self.project.out_features), lengths
        if self.window > 1 or self.stride > 1:  # zeros beyond a clip's end are what a clip alone has there too
            before = (self.window - 1) // 2
            after = max(0, (size - 1) * self.stride + self.window - before - features.shape[1])
            windows = F.pad(features, (0, 0, before, after)).unfold(1, self.window, self.stride)
            features = windows[:, :size].transpose(2, 3).flatten(2)
        if hasattr(self, "positions"):
            places = self.positions[torch.arange(size, device=features.device).clamp(max=len(self.positions) - 1)]
        else:
            places = sinusoids(size, self.kind.shape[0], features.device)
        return self.project(features) + places + self.kind, lengths


class Body(nn.Module):
    """The embeddings, and one transformer encoder over all modalities (pre-training, steps 2 and 3)."""

    def __init__(self, settings: MultimodalTransformerConfig, widths: Mapping[str, int]) -> None:
        super().__init__()
        spans = {"text": (1, 1)} | dict.fromkeys(MODALITIES, (settings.frame_window, settings.frame_stride))
        self.embeddings = nn.ModuleDict({name: Embedding(widths[name], settings, *spans[name]) for name in STREAMS})
        sizes = settings.dim, settings.heads, settings.feedforward * settings.dim, settings.dropout
        layer = nn.TransformerEncoderLayer(*sizes, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(settings.dim), enable_nested_tensor=False)
        for weight in self.encoder.parameters():  # whose layers are copies of one another so far
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)

    def joint(self, inputs: States) -> States:
        """Features -> H_t, H_a, H_v: every token sees those of all modalities. Zeros beyond each end.

        Padding is told by the true lengths: a real frame may well be all zeros, which MulT's code takes for padding.
        """
        tokens = {name: self.embeddings[name](*given) for name, given in inputs.items()}
        real = torch.cat([real_positions(lengths, states.shape[1]) for states, lengths in tokens.values()], dim=1)
        states = torch.cat([states for states, _ in tokens.values()], dim=1)
        if states.shape[1]:
            states = self.encoder(states, src_key_padding_mask=~_seen(real)) * real[..., None]
        parts = states.split([states.shape[1] for states, _ in tokens.values()], dim=1)
        return {name: (part, lengths) for part, (name, (_, lengths)) in zip(parts, tokens.items(), strict=True)}

    def alone(self, inputs: States) -> States:
        """As `joint`, but a token sees those of its own modality only."""
        return {name: self.joint({name: given})[name] for name, given in inputs.items()}


def _seen(real: Tensor) -> Tensor:
    """(B, T) bool, the tokens that may be attended to: a row without any real one reads its first padding, as a softmax
    over nothing would be NaN."""
    return torch.cat([real[:, :1] | ~real.any(1, keepdim=True), real[:, 1:]], dim=1)


class SixPairs(nn.Module):
    """A_{x->y} = softmax(Q_x K_y^T / sqrt(d)) for each ordered pair, and H_f = the sum of all A V (fine-tuning, 2 and 3).

    As printed, the six terms have the lengths of their x and cannot be added: each is pooled over x first. A pair of which
    one is absent adds nothing; a clip with one modality has no pair at all, so that modality attends to itself.
    """

    def __init__(self, settings: MultimodalTransformerConfig) -> None:
        super().__init__()
        self.settings = settings
        self.pairs = [*permutations(STREAMS, 2), *((name, name) for name in STREAMS)]
        names = STREAMS if settings.projections == "per_modality" else ["_".join(pair) for pair in self.pairs]
        parts = ("query", "key", "value")
        self.projections = nn.ModuleDict(
            {name: nn.ModuleDict({part: nn.Linear(settings.dim, settings.dim) for part in parts}) for name in names}
        )

    def forward(self, streams: States) -> Tensor:
        """H_t, H_a, H_v -> H_f (B, D)."""
        present = {name: lengths > 0 for name, (_, lengths) in streams.items()}
        lonely = torch.stack(list(present.values())).sum(0) == 1
        total: Tensor | float = 0.0
        for x, y in self.pairs:
            counts = present[x] & present[y] & (lonely if x == y else ~lonely)
            total = total + self._pooled(self.term(streams, x, y), streams[x][1]) * counts[:, None]
        return cast(Tensor, total)

    def term(self, streams: States, x: str, y: str) -> Tensor:
        """A_{x->y} V_y: (B, T_x, D)."""
        (asking, _), (asked, lengths) = streams[x], streams[y]
        if not asked.shape[1]:
            return torch.zeros_like(asking)
        owners = (x, y) if self.settings.projections == "per_modality" else (f"{x}_{y}", f"{x}_{y}")
        of_x, of_y = (cast(Any, self.projections[owner]) for owner in owners)
        seen = _seen(real_positions(lengths, asked.shape[1]))[:, None]
        return F.scaled_dot_product_attention(of_x["query"](asking), of_y["key"](asked), of_y["value"](asked), seen)

    def _pooled(self, term: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        if not term.shape[1]:
            return term.new_zeros(len(term), term.shape[2])  # out of the graph: a gradient of zeros would decay weights
        if self.settings.pooling == "mean":
            return mean_over_time(term, lengths)
        if self.settings.pooling == "first_token":
            return term[:, 0]
        return resampled(term, lengths, self.settings.resampled_positions).mean(1)


def resampled(states: Tensor, lengths: Tensor, size: int) -> Tensor:
    """(B, T, D) and lengths (B,) -> (B, size, D): linear interpolation at `size` places from the first to the last real one."""
    last = (lengths - 1).clamp(min=0)[:, None]
    place = last * torch.linspace(0, 1, size, device=states.device) if size > 1 else last / 2
    low = place.floor().long()
    high = torch.minimum(low + 1, last)
    found = [states.gather(1, index[..., None].expand(-1, -1, states.shape[2])) for index in (low, high)]
    return torch.lerp(found[0], found[1], (place - low)[..., None])


class MultimodalTransformer(Supervised):
    """`loss` and `groups` are those of the fine-tuning until `enter` names the pre-training."""

    settings: MultimodalTransformerConfig

    def network(self) -> nn.Module:
        """What is pre-trained comes first: its initial weights are the same whatever is built on top of it."""
        settings, table = self.settings, self.encoder.model.get_input_embeddings().weight
        widths = {"text": self.encoder.dim} | {modality: self.inputs.widths[modality] for modality in MODALITIES}
        network = nn.ModuleDict({"body": Body(settings, widths)})
        network["masked_language"] = losses.MaskedLanguageHead(settings.dim, self.encoder.dim, len(table))
        network["contrastive"] = losses.ContrastiveHead(STREAMS, settings.dim, settings.contrastive_dim, settings.temperature)
        if settings.text_table == "trained":
            network["table"] = nn.Embedding.from_pretrained(table.detach().clone(), freeze=False)
        network["fusion"] = SixPairs(settings) if settings.fusion == "six_pair" else nn.Identity()
        width = settings.dim * (3 if settings.fusion == "concatenation" else 1)
        network["classifier"] = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(width, self.outputs))  # W_c, b_c
        self._train_only("training", network)
        return network

    @property
    def table(self) -> Tensor:
        """(V, width) the text encoder's word embeddings, or the copy of them that is trained."""
        found: Tensor = self.net.table.weight if "table" in self.net else self.encoder.model.get_input_embeddings().weight
        return found

    def enter(self, stage: Stage) -> None:
        self._train_only(stage.name, self.net)

    def _train_only(self, stage: str, network: nn.ModuleDict) -> None:
        """Let gradients reach what this stage trains and nothing else."""
        self.is_pretraining = stage == "pretraining"
        wanted = dict.fromkeys(("fusion", "classifier"), not self.is_pretraining)
        wanted |= {"masked_language": self.is_pretraining and self.settings.pretraining != "contrastive"}
        wanted |= {"contrastive": self.is_pretraining and self.settings.pretraining != "mlm"}
        for name, part in network.items():
            part.requires_grad_(wanted.get(name, True))

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """All alike, but for a pre-trained body in the fine-tuning: `body_rate` times the pace of fusion and classifier."""
        rate = 1.0 if self.is_pretraining or self.settings.pretraining == "none" else self.settings.body_rate
        found = []
        for name, part in self.net.items():
            trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
            own = rate if name in ("body", "table") else 1.0
            bare = [parameter for parameter in trained if parameter.dim() < 2]  # biases, norms, the temperature
            found += [Group([p for p in trained if p.dim() > 1], own), Group(bare, own, weight_decay=0.0)]
        return found

    @torch.no_grad()
    def _text_statistics(self, train: Split) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (dim,) of the embeddings of all tokens of the split; 1 where one does not vary."""
        ids, _ = self._token_ids([sample.text for sample in train])
        counts = torch.bincount(torch.tensor(list(chain(*ids))), minlength=len(self.table)).double()
        rows, share = self.table.detach().double().cpu(), (counts / counts.sum())[:, None]
        mean = (share * rows).sum(0)
        std = (share * (rows - mean) ** 2).sum(0).sqrt()
        std[std <= 1e-6 * (1 + mean.abs())] = 1.0
        return mean.float().numpy(), std.float().numpy()

    def inputs_of(self, clips: Clips, text_ids: Tensor) -> States:
        """X_t, X_a, X_v: these tokens' embeddings, scaled, and frames."""
        lengths = clips.text_lengths if self.reads("text") else torch.zeros_like(clips.text_lengths)
        text = self.scaling["text"](F.embedding(text_ids, self.table), lengths), lengths
        return {"text": text} | {name: clips[name] for name in MODALITIES}

    def forward(self, clips: Clips) -> Tensor:
        """W_c H_f + b_c (fine-tuning, steps 1 to 4)."""
        streams = self.net.body.joint(self.inputs_of(clips, clips.text_ids))
        if self.settings.fusion == "six_pair":
            fused = self.net.fusion(streams)
        elif self.settings.fusion == "concatenation":
            fused = torch.cat([mean_over_time(*stream) for stream in streams.values()], dim=-1)
        else:
            counted = torch.stack([lengths for _, lengths in streams.values()]).sum(0).clamp(min=1)
            fused = torch.stack([states.sum(1) for states, _ in streams.values()]).sum(0) / counted[:, None]
        outputs: Tensor = self.net.classifier(fused)
        return outputs

    def loss(self, batch: ClipBatch) -> Loss:  # type: ignore[override]
        """L = L_MLM + L_CL while it is pre-trained, each its own mean; then cross-entropy, or absolute error of a score."""
        if not self.is_pretraining:
            return super().loss(batch)
        settings, clips, parts, joint = self.settings, self.clips(batch), {}, cast(States, {})
        wants_words, is_joint = settings.pretraining != "contrastive", settings.contrastive_view == "joint"
        read = targets = clips.text_ids
        if wants_words:
            tokenizer = self.encoder.tokenizer
            maskable = clips.text_real & (read != tokenizer.cls_token_id) & (read != tokenizer.sep_token_id)
            read, targets = losses.mask_tokens(read, maskable, tokenizer.mask_token_id, len(self.table), settings.mask_share)
        if wants_words or is_joint:
            joint = self.net.body.joint(self.inputs_of(clips, read))
        if wants_words:
            parts["mlm"] = losses.masked_language_loss(self.net.masked_language(joint["text"][0], self.table), targets)
        if settings.pretraining != "mlm":
            states = joint if is_joint else self.net.body.alone(self.inputs_of(clips, clips.text_ids))
            vectors = {name: mean_over_time(*given) for name, given in states.items()}
            parts["contrastive"] = self.net.contrastive(vectors, {name: lengths > 0 for name, (_, lengths) in states.items()})
        count = len(batch.ids)
        return Loss(torch.stack(list(parts.values())).sum() * count, count, {k: v * count for k, v in parts.items()})


register(
    MultimodalTransformerConfig, MultimodalTransformer, row="MM-Transformer",
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
)  # fmt: skip
