"""Settings of the methods that CMPTA is compared with; imports no torch.

Each quirk of a method's public code is a field here. Its default is what the method's paper describes, done right (the
preset "fixed" of the tables); `reference(config)` sets every quirk as the public code behaves, for parity tests.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from cmpta_lib.config import AtLeastOne, EncoderConfig, MethodConfig, Positive, RunConfig, Stage

Decay = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, lt=1)]  # of a dropout
Preset = TypeVar("Preset", bound=MethodConfig)


def reference(config: Preset) -> Preset:
    """The same settings with every quirk as the method's public code has it."""
    quirks: dict[str, object] = getattr(config, "quirks", {})
    return type(config).model_validate(config.model_dump() | quirks)


class SupervisedConfig(MethodConfig):
    """What all methods share that learn from labels directly, with a text encoder in place of an LLM."""

    quirks: ClassVar[dict[str, object]] = {}  # field -> value in the method's public code
    encoder: EncoderConfig = EncoderConfig()
    max_text_tokens: Annotated[int, Field(ge=3)] = 50  # with [CLS] and [SEP]; longer utterances are cut and counted
    modalities: Literal["all", "text", "audio_vision"] = "all"  # what is read; the rest counts as absent


# SIMS-V2: LMF, Self-MM, MAG-BERT; MELD: TFN ------------------------------------------------------------------------
class SubnetsConfig(SupervisedConfig):
    """What LMF and TFN share: one vector per modality, with the sizes that the public code of MMSA has for SIMS-V2.

    Dropout on the text vector is missing: MMSA switches it off for an LSTM of one layer.
    """

    quirks: ClassVar[dict[str, object]] = {"time_mean": "padded", "text_end": "padded"}
    audio_hidden: AtLeastOne = 32
    vision_hidden: AtLeastOne = 64
    text_hidden: AtLeastOne = 64  # of the LSTM
    text_out: AtLeastOne = 32
    audio_dropout: Chance = 0.3
    vision_dropout: Chance = 0.3
    time_mean: Literal["real", "padded"] = "real"  # MMSA divides by its padded length: short clips shrink towards zero
    text_end: Literal["real", "padded"] = "real"  # MMSA takes the LSTM's state after `max_text_tokens`, padding read
    padded_audio: AtLeastOne = 925  # frames to which MMSA pads; longer clips are divided by their own length
    padded_vision: AtLeastOne = 232


class LmfConfig(SubnetsConfig):
    """Low-rank Multimodal Fusion (Liu et al., ACL 2018)."""

    name: Literal["lmf"] = "lmf"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {**SubnetsConfig.quirks, "fusion_weights": "frozen"}
    rank: AtLeastOne = 4
    fusion_weights: Literal["trained", "frozen"] = "trained"  # MMSA leaves w and b out of its optimiser
    factor_rate: Positive = 0.25  # times the learning rate: 5e-4 of 2e-3


class TfnConfig(SubnetsConfig):
    """Tensor Fusion Network (Zadeh et al., EMNLP 2017)."""

    name: Literal["tfn"] = "tfn"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {**SubnetsConfig.quirks, "score_range": "six"}
    vision_hidden: AtLeastOne = 128
    text_hidden: AtLeastOne = 128
    text_out: AtLeastOne = 128
    post_hidden: AtLeastOne = 32
    post_dropout: Chance = 0.5
    # A score is 2 sigmoid - 1, as SIMS' labels; MOSI's 6 sigmoid - 3; or what the last layer says.
    score_range: Literal["labels", "six", "none"] = "labels"


class SelfMMConfig(SupervisedConfig):
    """Yu et al. 2021; sizes, dropout, rates and decays as MMSA has them for SIMS-V2.

    `training.learning_rate` and `training.weight_decay` are those of the four heads; the rates here multiply the former.
    MMSA sums the gradients of four batches of 16 before a step: one batch of 64 here, its labels renewed once a step.
    """

    name: Literal["self_mm"] = "self_mm"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"label_bound": 3.0}
    label_bound: Positive = 1.0  # H: generated labels stay in [-H, H]; 1 = the range of the scores themselves
    audio_hidden: AtLeastOne = 16  # of the LSTM
    vision_hidden: AtLeastOne = 64
    audio_size: AtLeastOne = 16  # of a clip's vector
    vision_size: AtLeastOne = 32
    fusion_features: AtLeastOne = 128
    text_features: AtLeastOne = 64
    audio_features: AtLeastOne = 32
    vision_features: AtLeastOne = 32
    lstm_dropout: Chance = 0.0
    fusion_dropout: Chance = 0.0
    text_dropout: Chance = 0.0
    audio_dropout: Chance = 0.1
    vision_dropout: Chance = 0.0
    bert_rate: Positive = 0.05
    audio_rate: Positive = 1.0
    vision_rate: Positive = 1.0
    bert_weight_decay: Decay = 0.01  # none on biases and layer norms
    audio_weight_decay: Decay = 0.0
    vision_weight_decay: Decay = 0.0


class MagBertConfig(SupervisedConfig):
    """Rahman et al. 2020; no hyper-parameters for SIMS-V2 are public, so these are the ones that MMSA has for SIMS."""

    name: Literal["mag_bert"] = "mag_bert"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"alignment": "padded"}
    # Frames to text positions: "real" spreads a clip's frames over its own tokens; "padded" gives each of
    # max_text_tokens positions an equal part of the longest training clip, which a short clip fills to a part only.
    alignment: Literal["real", "padded"] = "real"
    gate_rate: Positive = 1.0  # learning rate of the gate and the last layer, times that of BERT
    beta: Positive = 1.0  # a shift is at most this times as long as the word's vector
    mag_dropout: Chance = 0.1
    dropout: Chance = 0.1  # before the last layer


# MELD: MMGCN, GA2MIF ----------------------------------------------------------------------------------------------
class DialogueConfig(SupervisedConfig):
    """What methods share that read whole dialogues; `training.batch_size` counts dialogues for them.

    The public code of both chooses its epoch on the test split. No setting here does.
    """

    context: bool = True  # False: each utterance is a dialogue of its own
    features: Literal["lstm", "mean"] = "lstm"  # a clip's vector: last state of an LSTM over its frames, or their mean
    audio_width: AtLeastOne = 300  # of the LSTM's state, as wide as the papers' vectors
    vision_width: AtLeastOne = 342
    frames_rate: Positive = 1.0  # times the learning rate, for those LSTMs
    speakers: AtLeastOne = 9  # rows of the speaker table: first, second, ... voice; later voices share the last
    bilstm: Literal["packed", "padded"] = "packed"  # padded: the backward direction starts in padding


class MmgcnConfig(DialogueConfig):
    """MMGCN (Hu et al., ACL 2021)."""

    name: Literal["mmgcn"] = "mmgcn"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"loss": "paper_code", "bilstm": "padded", "epsilon": 0.0}
    dim: Annotated[int, Field(ge=2, multiple_of=2)] = 200  # of a node
    graph_dim: AtLeastOne = 100  # of a graph layer's state
    layers: AtLeastOne = 64  # of the graph convolution
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the first state in each layer
    decay: Positive = 0.5  # lambda: layer l's weights count log(lambda / l + 1)
    dropout: Chance = 0.4
    epsilon: Annotated[float, Field(ge=0)] = 1e-8  # without it a vector of zeros has no angle, and the loss is NaN
    loss: Literal["cross_entropy", "focal", "paper_code"] = "cross_entropy"  # paper_code: see `mmgcn.class_losses`
    focal_gamma: Annotated[float, Field(ge=1)] = 2.5


class Ga2mifConfig(DialogueConfig):
    """GA2MIF (Li et al., TAFFC 2023)."""

    name: Literal["ga2mif"] = "ga2mif"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"mpcat": "code", "padding_mask": "float", "windows": "swapped"}
    dim: Annotated[int, Field(ge=2)] = 200
    speaker_weight: Annotated[float, Field(ge=0)] = 1.6
    graph_layers: AtLeastOne = 3
    graph_heads: AtLeastOne = 4
    share_graph_layers: bool = True  # one set of weights for all of a modality's graph layers, as the public code runs
    past: Annotated[int, Field(ge=0)] = 16  # utterances that one hears before and after itself
    future: Annotated[int, Field(ge=0)] = 16
    windows: Literal["as_named", "swapped"] = "as_named"  # swapped: past and future, no matter where they are equal
    cross_layers: AtLeastOne = 4
    heads: AtLeastOne = 8
    mpcat: Literal["sum", "code"] = "sum"  # both attentions to a modality, or only the second
    padding_mask: Literal["boolean", "float"] = "boolean"  # float: padding is attended to
    dropout: Chance = 0.1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        return self


# Reference rows that keep everyone honest -------------------------------------------------------------------------
class ConstantConfig(MethodConfig):
    """The best answer that looks at nothing: the training labels' median, or the majority class."""

    name: Literal["constant"] = "constant"
    recipe: Literal[1] = 1
    statistic: Literal["median", "mean"] = "median"  # of scores; the median has the least absolute error


class LinearConfig(SupervisedConfig):
    """Ridge regression or a linear SVM on what is left of a clip without its order."""

    name: Literal["linear"] = "linear"
    recipe: Literal[1] = 1
    alphas: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] = (1.0, 10.0, 100.0, 1000.0, 10000.0)  # of
    # the ridge: the best by leave-one-out on the training split; JSON writes it as a list
    svm_c: Positive = 0.01
    class_weight: Literal["none", "balanced"] = "none"


class BilstmConfig(SupervisedConfig):
    """A plain BiLSTM with attention pooling per modality, and a linear layer on all three."""

    name: Literal["bilstm"] = "bilstm"
    recipe: Literal[1] = 1
    hidden: AtLeastOne = 64  # per direction
    dropout: Chance = 0.3


# Beyond the paper: the multimodal transformer -----------------------------------------------------------------------
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
    dim: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    layers: AtLeastOne = 4
    heads: AtLeastOne = 4
    feedforward: AtLeastOne = 4  # width of a layer's inner part, times dim
    dropout: Chance = 0.1
    frame_window: Annotated[int, Field(ge=1)] = 1  # frames of voice and face that W_m sees at once; 1 = as printed
    frame_stride: AtLeastOne = 1  # frames from one window to the next
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_positions: AtLeastOne = 1024  # of learned ones; what comes later shares the last
    text_table: Literal["frozen", "trained"] = "frozen"  # X_t: rows of the text encoder's word embeddings, or a copy of them
    pretraining: Literal["none", "mlm", "contrastive", "both"] = "both"
    pretraining_epochs: AtLeastOne = 10
    pretraining_rate: Positive = 1e-4
    pretraining_batch: AtLeastOne = 64
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15  # of a text's tokens, as in BERT
    contrastive_view: Literal["alone", "joint"] = "alone"  # joint: text has seen the voice that it is to be matched with
    contrastive_dim: AtLeastOne = 128
    temperature: Positive = 0.07  # at the start; it is learned, within 1/100 and 1
    fusion: Literal["six_pair", "concatenation", "self_attention"] = "six_pair"
    projections: Literal["per_modality", "per_pair"] = "per_modality"  # Q, K, V as they are indexed in the document
    pooling: Literal["mean", "first_token", "resample"] = "mean"  # how terms of unlike lengths become addable
    resampled_positions: AtLeastOne = 8
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
        changes = {
            "epochs": self.pretraining_epochs,
            "learning_rate": self.pretraining_rate,
            "batch_size": self.pretraining_batch,
            "patience": None,  # nothing is validated
        }
        training = run.training.model_copy(update=changes)
        outcome = {
            "data": run.data.model_dump(mode="json"),
            "method": self.model_dump(mode="json", exclude=set(self.fine_tuning_only)),
            "training": training.model_dump(mode="json"),
            "seed": run.seed,
        }
        return (Stage("pretraining", training, is_labelled=False, outcome=outcome), fine_tuning)
