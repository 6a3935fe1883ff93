"""Which runs make which table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The rows of Tables 3-6 that are ours, as changes to the full method.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "CMPTA": {},
    "text only": {"adapter.fusion": "none"},
    "alignment off": {"adapter.alignment": "linear"},
    "unidirectional": {"adapter.alignment": "lstm"},
    "adapter off": {"adapter.fusion": "pooled"},
    "5 tokens": {"adapter.num_pseudo_tokens": 5},
    "7 tokens": {"adapter.num_pseudo_tokens": 7},
    "8 tokens": {"adapter.num_pseudo_tokens": 8},
}
# The alternatives of the README's interpretation register, by its row numbers.
REGISTER: Mapping[str, Mapping[str, Any]] = {
    "3: one head": {"adapter.num_heads": 1},
    "3: four heads": {"adapter.num_heads": 4},
    "3: sixteen heads": {"adapter.num_heads": 16},
    "4: projections per pair": {"adapter.projections": "per_pair"},
    "6: maximum instead of mean": {"adapter.summary": "max"},
    "7: pairs repeated, 8 tokens": {"adapter.num_pseudo_tokens": 8, "adapter.token_count_rule": "repeat"},
    "8: tokens at default scale": {"adapter.token_scale": "default"},
    "9: tokens after the text": {"prompt.pseudo_token_position": "after_text"},
    "11: free decoding": {"evaluation.decoding": "free"},
    "15: no dropout": {"adapter.dropout": 0.0},
    "16: raw features": {"data.feature_scaling": "none"},
}
# Which runs the notebooks ask for: (corpus, variants) by a notebook's name; the register's alternatives belong to 03.
NOTEBOOK_RUNS: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
    "03_training": (("sims", ("CMPTA",)), ("meld", ("CMPTA",))),
    "04_table3_simsv2": (("sims", ("text only", "CMPTA")),),
    "05_table4_meld": (("meld", ("text only", "CMPTA")),),
    "06_table5_ablation_simsv2": (("sims", tuple(VARIANTS)),),
    "07_table6_ablation_meld": (("meld", tuple(VARIANTS)),),
    "08_attention_figs3_4": (("sims", ("CMPTA",)), ("meld", ("CMPTA",))),
    "09_case_study_fig5": (("meld", ("CMPTA", "text only")),),
}
FIRST_SEED_ONLY = ("08_attention_figs3_4", "09_case_study_fig5")
