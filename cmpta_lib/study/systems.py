"""The rows of the systems beyond the paper that have notebooks of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cmpta_lib.study.row import Row

# The multimodal transformer: the row of the comparison, pre-trained with both losses and fused by six pairs, and versions.
MMT = Row("MM-Transformer", "multimodal_transformer")


def _version(name: str, **fields: object) -> Row:
    return replace(MMT, name=name, changes={f"method.{field}": value for field, value in fields.items()})


WITHOUT_PRETRAINING = _version("no pre-training", pretraining="none")
PRETRAINING: tuple[Row, ...] = (
    WITHOUT_PRETRAINING,
    _version("masked words", pretraining="mlm"),
    _version("contrastive", pretraining="contrastive"),
    MMT,
)
FUSIONS: tuple[Row, ...] = (
    MMT,
    _version("concatenation", fusion="concatenation"),
    _version("self-attention only", fusion="self_attention"),
)
MMT_TEXT_ONLY = _version("text only", modalities="text")
# Share of the training labels -> the method with its pre-training and without.
LABEL_SHARES: Mapping[float, tuple[Row, Row]] = {
    share: (
        _version(f"{share:.0%} of the labels", label_share=share),
        _version(f"{share:.0%} of the labels, no pre-training", label_share=share, pretraining="none"),
    )
    for share in (0.1, 0.25, 0.5)
} | {1.0: (MMT, WITHOUT_PRETRAINING)}
MMT_VERSIONS: tuple[Row, ...] = (
    *PRETRAINING[:-1],
    *FUSIONS[1:],
    MMT_TEXT_ONLY,
    *(row for share, pair in LABEL_SHARES.items() if share < 1 for row in pair),
)
MMT_ROWS: tuple[Row, ...] = (MMT, *MMT_VERSIONS)

ROWS: tuple[Row, ...] = MMT_VERSIONS  # every row here that no comparison has
