"""How large the adapter is, part by part, beside the LLM that stays frozen: the paper gives no number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from cmpta_lib.config import CmptaConfig
from cmpta_lib.llm.files import QWEN_1_8B
from cmpta_lib.study.study import Study

# Features per frame (audio, vision) of the public files, which is what sizes the adapter beside D and E.
PUBLIC_FEATURES: Mapping[str, tuple[int, int]] = {"SIMS-V2": (25, 177), "MELD": (64, 64)}


def qwen_parameters() -> int:
    """Weights of Qwen-1.8B from its config: untied head, bias on query, key and value only, RMS norms."""
    hidden, mlp = QWEN_1_8B["hidden"], QWEN_1_8B["mlp"]
    layer = 3 * (hidden + 1) * hidden + hidden**2 + 3 * hidden * mlp + 2 * hidden
    return 2 * QWEN_1_8B["vocabulary"] * hidden + QWEN_1_8B["layers"] * layer + hidden


def parameter_counts(config: CmptaConfig, audio_features: int, vision_features: int, llm_dim: int) -> Counter[str]:
    """Trainable parameters by part, counted on an adapter that occupies no memory."""
    import torch

    from cmpta_lib.methods.cmpta import CMPTAdapter

    parts = {
        "alignment.vision": "alignment of vision (eqs 3-5)",
        "alignment.audio": "alignment of audio (eqs 3-5)",
        "text_projection": "text E → D",
        "attention": "queries, keys, values (eq 7)",
        "token_mix": "mix to K tokens",
        "summary_norm": "norm of the tokens",
        "to_llm": "tokens D → E",
    }
    with torch.device("meta"):
        adapter = CMPTAdapter(config, audio_features, vision_features, llm_dim, embedding_norm=1.0)
    counts: Counter[str] = Counter()
    for name, parameter in adapter.named_parameters():
        counts[next(part for prefix, part in parts.items() if name.startswith(prefix))] += parameter.numel()
    return counts


def table2_parameters(study: Study) -> pd.DataFrame:
    """Trainable parameters at the paper's size and at this profile's, with their share of the frozen LLM's."""
    from cmpta_lib.runs.trained import load_llm

    llm = load_llm([study.cache / "llm"], study.llm)
    sizes: dict[str, tuple[CmptaConfig, int, int, int, int]] = {
        f"{name}, D 1024, Qwen-1.8B": (CmptaConfig(), *features, QWEN_1_8B["hidden"], qwen_parameters())
        for name, features in PUBLIC_FEATURES.items()
    }
    for key in study.keys:
        train, adapter = study.corpus(key).splits["train"], study.config(key).method
        assert isinstance(adapter, CmptaConfig)
        name = f"{study.corpus(key).name}, this run: D {adapter.dim}, {llm.name}"
        sizes[name] = (adapter, train.audio_dim, train.vision_dim, llm.dim, llm.num_parameters)
    columns = {}
    for name, (settings, audio, vision, width, frozen) in sizes.items():
        counts = parameter_counts(settings, audio, vision, width)
        total = counts.total()
        sums = {"trainable in all": f"{total:,}", "frozen LLM": f"{frozen:,}", "share": f"{100 * total / frozen:.2f} %"}
        columns[name] = {part: f"{count:,}" for part, count in counts.items()} | sums
    return pd.DataFrame(columns).rename_axis("part").reset_index()
