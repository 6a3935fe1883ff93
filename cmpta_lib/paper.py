"""What the paper prints: Tables 1-6, the prompts, its claims in words, its errata, and the noise of the method it builds on.

Scores stand as printed: MAE and Corr as fractions, WF1 in per cent. Nothing here is computed by us.
`ELSEWHERE` has what others have published for the methods of Tables 3 and 4. The same method on the same data differs by
2 MAE points and 4 to 8 Corr points between two tables of one group: read printed baselines as so uncertain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Language = Literal["zh", "en"]
Kind = Literal["regression", "classification"]
Modality = Literal["audio", "vision"]
PAPER_NAMES: Mapping[str, str] = {"sims": "SIMS-V2", "meld": "MELD"}  # as the library calls the two corpora -> as the paper does


@dataclass(frozen=True)
class Corpus:
    """One row of Table 1, in utterances."""

    train: int
    valid: int
    test: int
    total: int
    language: str


TABLE1: Mapping[str, Corpus] = {
    "SIMS-V2": Corpus(2722, 647, 1034, 4403, "Chinese"),
    "MELD": Corpus(9989, 1109, 2610, 13708, "English"),
}

# Frames to which the public files are padded with zeros, and features of a frame: they size adapters, not the paper.
PUBLIC_SHAPES: Mapping[str, Mapping[Modality, tuple[int, int]]] = {
    "SIMS-V2": {"audio": (925, 25), "vision": (232, 177)},
    "MELD": {"audio": (157, 64), "vision": (32, 64)},
}


@dataclass(frozen=True)
class Hyperparameters:
    """The numeric half of Table 2; its other half are `SIMS_PROMPT` and `MELD_PROMPT`."""

    feature_dim: int = 1024  # 特征维度
    optimizer: str = "AdamW"  # 优化器
    learning_rate: float = 5e-4  # 学习率
    epochs: int = 150  # 迭代次数
    batch_size: int = 16  # 批次大小


HYPERPARAMETERS = Hyperparameters()

# Table 2 breaks both prompts over lines; they are joined without a space in Chinese and with one in English. The colon
# after 响应 is full-width and no space follows it; the public code of MSE-Adapter writes ": " there.
SIMS_PROMPT_AS_PRINTED = "请对上述多模态内容的情感强度进行预测，范围在[\N{MINUS SIGN}1.0, +1.0]之间。响应：情感为"
# U+2212 is typesetting: the answers ("-0.4") use the ASCII minus, so the range they come from does too.
SIMS_PROMPT = SIMS_PROMPT_AS_PRINTED.replace("\N{MINUS SIGN}", "-")
MELD_PROMPT = (
    "Please recognize the emotion of the above multimodal content from the target set "
    "<neutral:0, surprise:1, fear:2, sadness:3, joy:4, disgust:5, anger:6>. Assistant: The emotion is"
)
# Not in the paper, which has no English scores: MELD's sentence around the range of Table 2's other one.
ENGLISH_SCORE_PROMPT = (
    "Please predict the sentiment intensity of the above multimodal content in the range [-1.0, +1.0]. "
    "Assistant: The sentiment is"
)
MELD_LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")  # position = the digit answered

# Not in the paper: MSE-Adapter's public code puts these around pseudo tokens and text (register 9).
WRAP_TAGS: Mapping[Language, tuple[str, str]] = {
    "zh": ("<多模态>", "</多模态>"),
    "en": ("<Multimodal>", "</Multimodal>"),
}

_CLASS_PROMPTS: Mapping[Language, str] = {
    "en": re.sub("<.*>", "<{labels}>", MELD_PROMPT),
    # Not in the paper, which has no Chinese label set: Table 2's two sentences put together.
    "zh": "请从目标集合<{labels}>中识别上述多模态内容的情感类别。响应：情感为",
}


def class_prompt(labels: Sequence[str], language: Language) -> str:
    """Table 2's MELD sentence for a task's labels, numbered from 0; `MELD_PROMPT` for `MELD_LABELS` in English."""
    return _CLASS_PROMPTS[language].format(labels=numbered(labels))


def numbered(labels: Sequence[str]) -> str:
    """"calm:0, angry:1": what stands in a class prompt. More than ten have numbers of one length: none begins another."""
    width = len(str(len(labels) - 1))
    return ", ".join(f"{label}:{index:0{width}d}" for index, label in enumerate(labels))


@dataclass(frozen=True)
class PaperRow:
    """One row of Tables 3-6. `scores` maps our metric names to the printed value; `reference` is the paper's [n]."""

    group: str
    method: str
    scores: Mapping[str, float]
    reference: int | None = None


TABLE3: tuple[PaperRow, ...] = (
    PaperRow("", "LMF", {"mae": 0.343, "corr": 0.638}, 24),
    PaperRow("", "Self-MM", {"mae": 0.335, "corr": 0.640}, 25),
    PaperRow("", "MAG-BERT", {"mae": 0.334, "corr": 0.691}, 26),
    PaperRow("", "MSE-LLaMA2-7B", {"mae": 0.382, "corr": 0.553}, 27),
    PaperRow("", "CMPTA (Ours)", {"mae": 0.308, "corr": 0.686}),
)
TABLE4: tuple[PaperRow, ...] = (
    PaperRow("", "TFN", {"f1_weighted": 57.74}, 28),
    PaperRow("", "MMGCN", {"f1_weighted": 58.31}, 29),
    PaperRow("", "GA2MIF", {"f1_weighted": 58.94}, 30),
    PaperRow("", "CMPTA (Ours)", {"f1_weighted": 59.49}),
)

# Methods by the rows that tables give them -> their keys in figures/references.bib.
CITED: Mapping[str, str] = {
    "LMF": "liu2018lmf", "Self-MM": "yu2021selfmm", "MAG-BERT": "rahman2020magbert", "MSE-LLaMA2-7B": "yang2025mseadapter",
    "TFN": "zadeh2017tfn", "MMGCN": "hu2021mmgcn", "GA2MIF": "li2023ga2mif", "MSE-Adapter": "yang2025mseadapter",
    "prototype prompt": "zhao2026prototype", "MGSI": "mgsi2026", "MLLM-MAC": "luo2025mllmmac", "CMPTA": "li2026cmpta",
}  # fmt: skip

# The groups and rows of Tables 5 and 6 in the paper's order, with its Chinese words.
ALIGNMENT = "Temporal alignment"  # 时序特征对齐层的消融研究, 是否启用
LSTM_TYPE = "LSTM type"  # LSTM 类型
ADAPTER = "Cross-modal pseudo-token adapter"  # 跨模态伪 Token 适配器的消融研究, 是否启用
TOKEN_COUNT = "Number of pseudo tokens"  # 伪 token 生成数量的消融研究, 数量
_ABLATION_ROWS = (
    (ALIGNMENT, "on"),  # 是
    (ALIGNMENT, "off"),  # 否
    (LSTM_TYPE, "bidirectional"),  # 双向
    (LSTM_TYPE, "unidirectional"),  # 单向
    (ADAPTER, "on"),
    (ADAPTER, "off"),
    (TOKEN_COUNT, "5"),
    (TOKEN_COUNT, "6"),
    (TOKEN_COUNT, "7"),
    (TOKEN_COUNT, "8"),
)


def _ablation(metric: str, *printed: float) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(*row, {metric: score}) for row, score in zip(_ABLATION_ROWS, printed, strict=True))


TABLE5 = _ablation("mae", 0.308, 0.412, 0.308, 0.328, 0.308, 0.380, 0.313, 0.308, 0.309, 0.311)
TABLE6 = _ablation("f1_weighted", 59.49, 41.19, 59.49, 53.89, 59.49, 51.31, 54.20, 59.49, 55.67, 55.23)

ERRATA: tuple[str, ...] = (
    'Table 6 heads three of its four groups "MAE"; the values under them are WF1.',
    "Table 3: the best Corr is MAG-BERT's (0.691), not CMPTA's (0.686); CMPTA is best in MAE.",
    "Figure 5's sample is said to come from MELD, which is English, and is quoted in Chinese (“这也太好了吧”).",
    "Section 4.5.4 calls the differences between token counts small; in Table 6 they reach 5.29 points of WF1.",
    "Section 4.5 and Figure 3 write SMIS-V2 for SIMS-V2.",
)


@dataclass(frozen=True)
class Claim:
    """Something that the paper says and that could turn out otherwise.

    `corpora`: "sims", "meld" or both where it is about them; empty where it is about the method whatever the data.
    """

    id: str
    section: str
    says: str
    original: str = ""  # the paper's own words
    corpora: tuple[str, ...] = ()


_SIMS, _MELD, _BOTH = ("sims",), ("meld",), ("sims", "meld")
# In words, in the paper's order; the printed lines of Tables 3-6 are claims too (`report.claims` adds them).
CLAIMS: tuple[Claim, ...] = (
    Claim("best-of-all", "abstract", "CMPTA outperforms the state-of-the-art baselines.", "性能优于当前的先进基线方法", _BOTH),
    Claim("lightweight", "abstract", "CMPTA is lightweight: it trains few parameters.", "轻量级的跨模态伪Token适配器"),
    Claim("llm-untouched", "abstract", "The LLM's own parameters stay as they are.", "不破坏大模型的原有参数"),
    Claim("tokens-help-sims", "abstract", "Pseudo tokens bring face and voice into the LLM's answers (SIMS-V2).",
          "有效激发大模型的多模态情感理解能力", _SIMS),
    Claim("tokens-help-meld", "abstract", "Pseudo tokens bring face and voice into the LLM's answers (MELD).",
          "有效激发大模型的多模态情感理解能力", _MELD),
    Claim("modalities", "1", "Words, face and voice together are recognised better than words alone.",
          "不仅能够提高情感识别的准确率", _BOTH),
    Claim("compact", "3.1.2", "A few tokens stand for long sequences of frames and keep the LLM's context free.",
          "编码为更紧凑的上下文表示"),
    Claim("layer-norm", "3.1.2", "The linear map and LayerNorm make training converge faster.", "有助于加快模型收敛"),
    Claim("dropout", "3.1.2", "Dropout lowers the risk of overfitting.", "降低过拟合风险", _SIMS),
    Claim("table1-sims", "4.1", "SIMS-V2 has 2722, 647 and 1034 clips in train, valid and test.", "", _SIMS),
    Claim("table1-meld", "4.1", "MELD has 9989, 1109 and 2610 utterances in train, valid and test.", "", _MELD),
    Claim("mae-sims", "4.4", "CMPTA's MAE on SIMS-V2 is 0.308.", "我们的方法 MAE 值为 0.308", _SIMS),
    Claim("corr-sims", "4.4", "CMPTA's Corr on SIMS-V2 is 0.686.", "", _SIMS),
    Claim("best-sims", "4.4", "CMPTA's MAE is significantly better than every compared method's.", "显著优于对比方法", _SIMS),
    Claim("fine-intensity", "4.4", "CMPTA captures fine changes of intensity better (judged by Corr; the paper gives no measure, "
          "and its best printed Corr is MAG-BERT's).", "更好地捕捉情感强度的细微变化", _SIMS),
    Claim("wf1-meld", "4.4", "CMPTA's weighted F1 on MELD is 59.49.", "我们的方法 WF1 分数为 59.49", _MELD),
    Claim("best-meld", "4.4", "CMPTA's weighted F1 exceeds that of every compared method.", "超过现有方法", _MELD),
    Claim("speakers", "4.4", "CMPTA softens the effect of changing speakers and of noise.", "缓解说话人变化和情境噪声带来的影响"),
    Claim("generalises", "4.4", "Steady gains on a regression and on a dialogue corpus: it generalises across data sets.",
          "较好的跨数据集泛化能力和融合有效性", _BOTH),
    Claim("transformer", "4.5.1", "On few clips a BiLSTM converges more easily and overfits less than a Transformer encoder.",
          "在小样本下更易收敛且不易过拟合"),
    Claim("alignment-most-sims", "4.5.1", "Temporal alignment carries the score on SIMS-V2: no other part costs as much.",
          "起到了关键作用", _SIMS),
    Claim("alignment-most-meld", "4.5.1", "Temporal alignment carries the score on MELD: no other part costs as much.",
          "至关重要", _MELD),
    Claim("attention-sims", "4.5.3", "The peaks of the text's attention are the frames that matter (SIMS-V2, Figure 3).",
          "最高点往往意味着模型捕捉到了与文本模态信息最为密切相关的视觉和音频模态信息", _SIMS),
    Claim("attention-meld", "4.5.3", "The peaks of the text's attention are the frames that matter (MELD, Figure 4).",
          "高注意力值的区域对应文本模态与视觉模态之间的强相关信息", _MELD),
    Claim("padding", "4.5.3", "Padding takes no part and gets no attention.", "不参与实际信息交互，因此没有有效注意力权重"),
    Claim("contributions", "4.5.3", "Attention shows that the modalities contribute differently on different corpora.",
          "反映了各模态在不同数据集上的信息贡献差异"),
    Claim("tokens-small-sims", "4.5.4", "The number of pseudo tokens makes little difference (SIMS-V2).", "性能差异较小", _SIMS),
    Claim("tokens-small-meld", "4.5.4", "The number of pseudo tokens makes little difference (MELD).", "性能差异较小", _MELD),
    Claim("six-best-sims", "4.5.4", "6 pseudo tokens are best (SIMS-V2).", "6 个伪 token 时取得最优结果", _SIMS),
    Claim("six-best-meld", "4.5.4", "6 pseudo tokens are best (MELD).", "6 个伪 token 时取得最优结果", _MELD),
    Claim("too-many-sims", "4.5.4", "More than 6 tokens add redundancy and hurt (SIMS-V2).", "数量过多可能引入冗余信息", _SIMS),
    Claim("too-many-meld", "4.5.4", "More than 6 tokens add redundancy and hurt (MELD).", "数量过多可能引入冗余信息", _MELD),
    Claim("sarcasm", "4.5.5", "CMPTA sees through kind words that face and voice belie, where text only says joy.",
          "成功修正了 LLM 的判断，将其正确识别为“厌恶”情绪", _MELD),
    Claim("key-parts", "5", "Temporal alignment and adapter are both key to the gain.",
          "时序特征对齐层和跨模态伪 Token 适配器在性能提升中的关键作用", _BOTH),
    Claim("extensible", "5", "CMPTA extends well to further tasks and models.", "具有良好扩展性"),
)  # fmt: skip


# Test scores for seeds 1111 to 5555, as fractions: MSE-Qwen-1.8B/logs/cmcm-sims.log in the public code of MSE-Adapter,
# February 2025; MELD with its released settings. With an earlier MELD setting the same log has a collapsed seed and gives
# WF1 56.70 ± 8.48.
ANCESTOR_LOGS: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("SIMS-V2", "mae"): (0.3449, 0.3017, 0.3043, 0.3211, 0.2832),
    ("SIMS-V2", "corr"): (0.6378, 0.6944, 0.6836, 0.6580, 0.7174),
    ("MELD", "f1_weighted"): (0.6255, 0.6024, 0.5920, 0.5873, 0.5861),
}
CONTEXT = (
    "MSE-Adapter, which this paper builds on, logs five seeds with Qwen-1.8B (mean ± sample sd): SIMS-V2 MAE "
    "0.311 ± 0.023, MELD WF1 59.87 ± 1.63. The paper's 0.308 and 59.49 lie inside that seed noise."
)


@dataclass(frozen=True)
class Published:
    """One published result of a method, beside the paper's."""

    scores: Mapping[str, float]  # metric name -> value
    source: str


_FIGURE = "ch-sims-v2, its figure of results"
_MMSA = "MMSA, results/result-stat.md"
_CSV = "MSE-Adapter, results of July 2024 to March 2025, five seeds"
ELSEWHERE: Mapping[str, tuple[Published, ...]] = {
    "LMF": (Published({"mae": 0.343, "corr": 0.6375}, _FIGURE), Published({"mae": 0.3672, "corr": 0.5569}, _MMSA)),
    "Self-MM": (Published({"mae": 0.335, "corr": 0.6403}, _FIGURE), Published({"mae": 0.3106, "corr": 0.6952}, _MMSA)),
    "MAG-BERT": (Published({"mae": 0.334, "corr": 0.6909}, _FIGURE),),
    "MSE-LLaMA2-7B": (Published({"mae": 0.3667, "corr": 0.5824}, _CSV), Published({"mae": 0.382, "corr": 0.553}, _CSV)),
    "MSE-Adapter": (
        Published({"mae": 0.311, "corr": 0.678}, "MSE-Adapter with Qwen-1.8B, its log of SIMS-V2, five seeds"),
        Published({"f1_weighted": 59.87}, "MSE-Adapter with Qwen-1.8B, its log of MELD, five seeds"),
        Published({"mae": 0.304}, "with ChatGLM3, in MGSI's paper, from notes on it"),
        Published({"mae": 0.293}, "with Qwen2.5-7B, in MGSI's paper, from notes on it"),
    ),
    "prototype prompt": (
        Published({"mae": 0.264, "corr": 0.769, "f1_weighted": 65.97}, "with ChatGLM3, its paper, from notes on it, five seeds"),
    ),
    "MGSI": (
        Published({"mae": 0.267}, "with ChatGLM3, its paper, from notes on it, three seeds"),
        Published({"mae": 0.286}, "with Qwen2.5-7B, its paper, from notes on it, three seeds"),
    ),
    "TFN": (Published({"f1_weighted": 57.74}, "as commonly quoted; no run of it on MELD is public"),),
    "MMGCN": (Published({"f1_weighted": 58.65}, "its paper; its code chooses the epoch on the test split"),),
    "GA2MIF": (Published({"f1_weighted": 58.94}, "its paper; its code chooses the epoch on the test split"),),
}


def published(row: str, metric: str) -> list[tuple[float, str]]:
    """Every other published value of a row, with its source."""
    return [(found.scores[metric], found.source) for found in ELSEWHERE.get(row, ()) if metric in found.scores]
