"""What rows of some methods wait for: an omni model for its files and recordings, a statement of the cue for generated clips.

Also the config fields of an omni model that this machine fills in: model, dtype, recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmpta_lib.beyond import media
from cmpta_lib.beyond import omni_model as omni_files
from cmpta_lib.beyond.mllm_mac import MllmMacConfig
from cmpta_lib.beyond.omni import OmniConfig
from cmpta_lib.config import RunConfig, override
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.files import Damaged
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs.provenance import gpu_count

WAITING = ("omni", "mllm_mac")  # methods whose rows may need what a corpus does not hold
ANSWERED = ("valid", "test")  # the splits that a run answers, whose recordings decide its result


def lacks(config: RunConfig, corpus: Corpus, cache: Path) -> str:
    """Why a run of this config cannot be made here, with what to do; "" where it can, or for other methods."""
    if isinstance(config.method, MllmMacConfig) and config.method.knowledge == "cue" and not corpus.has_known_truth:
        return f"only the generator of a clip knows its cue, and '{corpus.name}' was not generated; profile 'demo' has such clips"
    if not isinstance(config.method, OmniConfig):
        return ""
    if config.method.needs_media and corpus.generated:
        return f"corpus '{corpus.name}' is generated: it holds features, and an omni model reads recordings; use real clips"
    if config.method.needs_media and (reason := media.lacks(corpus.name)):
        return reason
    try:
        filled(config, corpus, cache, {})
    except (OSError, ValueError, Damaged) as error:
        return str(error)
    return ""


def filled(config: RunConfig, corpus: Corpus, cache: Path, changes: Mapping[str, Any]) -> RunConfig:
    """A config with the fingerprints of its omni model and of its clips' recordings; others come back as they are.

    Computed in bfloat16 where there is a GPU and in float32 elsewhere, unless `changes` say otherwise.

    Raises:
        FileNotFoundError: model or recordings are not on this machine; says how to get them.
        OSError, ValueError: as `omni_files.check`.
    """
    if not isinstance(config.method, OmniConfig):
        return config
    model = config.method.model
    omni_files.check(llm_files.locate(model.name))
    dtype = model.dtype if "method.model.dtype" in changes else "bfloat16" if gpu_count() else "float32"
    found: dict[str, Any] = {
        f"method.model.{name}": value for name, value in llm_files.resolve(model.name, dtype, cache / "llm").model_dump().items()
    }
    if config.method.needs_media:
        ids = [name for split in ANSWERED for name in corpus.splits[split].table["id"]]
        recordings = media.find(corpus.name, ids)
        found["method.media"] = media.fingerprint(recordings, cache / "media" / f"{corpus.fingerprint[:16]}.json")
    return override(config, found)
