"""Omni models: published classes with small random weights, scored and decoded against slow readable references."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omni_models import save, write_recording

from cmpta_lib import registry
from cmpta_lib.beyond import omni_model as omni
from cmpta_lib.beyond.omni import MEDIA, OmniConfig, complete
from cmpta_lib.beyond.omni_model import Clip
from cmpta_lib.cli.listing import listed
from cmpta_lib.config import DataConfig, LLMConfig, RunConfig, override, to_json
from cmpta_lib.data.corpus import Sample, Task
from cmpta_lib.data.store import load_corpus, write_corpus
from cmpta_lib.files import Damaged
from cmpta_lib.llm.files import OMNI_MODELS
from cmpta_lib.runs import store
from cmpta_lib.runs.worker import execute
from cmpta_lib.study import plan
from cmpta_lib.study.plan import Row
from cmpta_lib.study.study import Study
from cmpta_lib.study.trained import load

FAMILIES = tuple(omni.FAMILIES)
CHOICES = ("joy", "sadness", "+0.5", "+0.6", "-1.0", "e")
PROMPT = "what is the emotion?"
MELD = Task("classification", "en", ("neutral", "joy", "anger"))
KINDS = {"text": (False, False), "audio": (True, False), "video": (False, True), "all": (True, True)}


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("omni") / request.param, request.param)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("omni") / "small-omni")


def opened(folder: Path, system: str = "You are a helpful assistant.") -> omni.OmniLLM:
    return omni.load(LLMConfig(name=str(folder)), torch.device("cpu"), system, frame_tokens=8)


@pytest.fixture(scope="session")
def model(folder) -> omni.OmniLLM:
    return opened(folder)


def clip_of(kind: str, text: str = "I am so glad") -> Clip:
    has_audio, has_vision = KINDS[kind]
    wave = (0.3 * np.sin(0.1 * np.arange(24_000))).astype(np.float32)
    frames = np.random.default_rng(0).integers(0, 255, (5, 30, 40, 3)).astype(np.uint8)
    return Clip("clip", text, wave if has_audio else None, frames if has_vision else None)


@torch.no_grad()
def slow_logits(model: omni.OmniLLM, clip: Clip, more: list[int]) -> torch.Tensor:
    """(1 + len(more), V): one forward pass over everything, without keys and values of an earlier one."""
    inputs = model.inputs(clip, PROMPT)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([more], dtype=torch.int64)], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return model.model(**inputs, use_cache=False).logits[0, -1 - len(more) :]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_scored_and_written_as_one_forward_pass_at_a_time_does(model, kind, monkeypatch):
    clip, expected, said = clip_of(kind), [], []
    ids = [model.ids(choice) for choice in CHOICES]
    assert len({*map(len, ids)}) > 1, "answers of several lengths"
    for tokens in ids:
        log_probs = slow_logits(model, clip, tokens).log_softmax(-1)
        expected.append(sum(log_probs[step, token].item() for step, token in enumerate(tokens)))
    found = model.score(clip, PROMPT, CHOICES)
    np.testing.assert_allclose(found, expected - np.logaddexp.reduce(expected), rtol=0, atol=5e-5)
    while len(said) < 6 and (token := int(slow_logits(model, clip, said)[-1].argmax())) not in model.ends:
        said.append(token)
    assert model.generate(clip, PROMPT, 6) == model.tokenizer.decode(said, skip_special_tokens=True).strip()
    monkeypatch.setattr(model, "ends", frozenset(said[:1]))
    assert model.generate(clip, PROMPT, 6) == ""


def test_each_modality_is_read_and_so_is_its_order_in_time(model):
    scores = {kind: model.score(clip_of(kind), PROMPT, CHOICES) for kind in KINDS}
    assert len({array.tobytes() for array in scores.values()}) == len(KINDS)
    whole = clip_of("all")
    for changed in (
        replace(whole, audio=whole.audio[::-1].copy()),
        replace(whole, frames=whole.frames[[1, 0, 2, 3, 4]]),  # within a pair
        replace(whole, frames=whole.frames[[2, 3, 0, 1, 4]]),  # pairs swapped
        replace(whole, frames_per_second=0.5),
        replace(whole, text="I am so sad"),
    ):
        assert np.abs(model.score(changed, PROMPT, CHOICES) - scores["all"]).max() > 1e-4


@pytest.mark.parametrize("count", [1, 4, 5])
def test_patches_of_a_video_lie_as_transformers_video_processor_lays_them(model, count):
    """Its own code needs torchvision; this is its reshape, written out (video_processing_qwen2_vl.py, `patchify`)."""
    from transformers.image_utils import SizeDict

    frames, side = clip_of("video").frames[:count], model.images.patch_size
    size = SizeDict(shortest_edge=8 * 4 * side**2, longest_edge=8 * 4 * side**2)
    patches, grid = model.patches(frames)
    t, h, w = grid[0].tolist()
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (model.images.image_mean, model.images.image_std))
    pictures = []
    for frame in [*frames, *frames[-1:]][: 2 * t]:  # an odd last frame is shown twice
        resized = model.images.resize(frame.transpose(2, 0, 1), size, model.images.resample, factor=2 * side)
        pictures.append((resized * np.float32(1 / 255) - mean) / std)
    video = torch.from_numpy(np.stack(pictures))  # (T, C, H, W)
    laid = video.view(t, 2, 3, h // 2, 2, side, w // 2, 2, side).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    torch.testing.assert_close(patches, laid.reshape(t * h * w, -1).float(), rtol=0, atol=1e-5)


def test_sound_takes_as_many_positions_as_the_model_makes_of_it(model):
    for samples in (1_600, 1_761, 15_999, 16_000, 16_001, 31_000, 60_000):
        inputs = model.inputs(replace(clip_of("audio"), audio=np.zeros(samples, np.float32)), PROMPT)
        made = model.model.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"]).last_hidden_state
        assert int((inputs["input_ids"] == model.model.config.audio_token_id).sum()) == len(made)


def test_the_message_is_the_familys_with_the_system_asked_for_and_control_tokens_in_words_are_words(qwen):
    def shown(system: str, text: str = "I am so glad") -> str:
        made = opened(qwen, system)
        return made.tokenizer.decode(made.inputs(clip_of("text", text), "why?")["input_ids"][0])

    assert shown("You answer.").startswith("<|im_start|>system\nYou answer.<|im_end|>\n<|im_start|>user\nI am so glad\nwhy?")
    assert shown("").startswith("<|im_start|>user\n") and shown("").endswith("<|im_end|>\n<|im_start|>assistant\n")
    made = opened(qwen)
    ids = made.inputs(clip_of("text", "a <|im_end|> <|VIDEO|> b"), PROMPT)["input_ids"][0].tolist()
    assert ids.count(made.special["end"]) == 2, "of the system message and of the question"
    assert made.model.config.video_token_id not in ids


def test_too_long_a_prompt_is_refused(qwen):
    with pytest.raises(ValueError, match=r"clip 'clip': \d+ positions with the prompt, and the model reads 4096"):
        opened(qwen).score(clip_of("text", "no " * 5000), PROMPT, CHOICES)


# Loading --------------------------------------------------------------------------------------------------------------
def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_head(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    del weights["thinker.lm_head.weight"]
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "error", "said"),
    [
        *(
            (name, lambda path: edit(path, auto_map={"AutoModel": "evil.Model"}), OSError,
             rf"{name} asks for code of the folder's own \(auto_map\), which is never run")
            for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json")
        ),
        ("preprocessor_config.json", Path.unlink, FileNotFoundError, "expected preprocessor_config.json of an omni model"),
        ("config.json", lambda path: edit(path, model_type="llama"), OSError,
         "expected an omni model .qwen2_5_omni or qwen3_omni_moe., not 'llama'"),
        ("model.safetensors", without_head, ValueError,
         "model.safetensors: weights and config.json are not of one model: lm_head.weight is missing"),
        ("model.safetensors", lambda path: path.rename(path.parent / "pytorch_model.bin"), OSError,
         "expected weights as safetensors, found pytorch_model.bin"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100]), ValueError,
         r"model.safetensors: expected weights \(Error while deserializing header.*\); fetch it again"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_omni_model_or_asks_for_its_own_code_is_refused(qwen, tmp_path, name, change, error, said):
    other = copied(qwen, tmp_path)
    (other / "evil.py").write_text("raise SystemExit('ran')")
    change(other / name)
    with pytest.raises(error, match=said):
        opened(other)


def test_a_model_is_named_that_is_not_here_and_one_that_is_touches_no_random_numbers_and_no_torchvision(qwen):
    with pytest.raises(FileNotFoundError, match="it is not on this machine, or not complete.*cmpta weights nobody/omni"):
        opened(Path("nobody/omni"))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    made = opened(qwen)
    assert torch.equal(torch.rand(2), expected)
    assert not {"torchvision", "torchaudio", "torchcodec"} & sys.modules.keys()
    assert not any(parameter.requires_grad for parameter in made.model.parameters()) and not made.model.training


# A run ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def world(tmp_path, monkeypatch, qwen) -> Path:
    """A runs folder with a corpus "talks" of real clips, whose recordings lie in CMPTA_MEDIA; returns its cache."""
    pytest.importorskip("av", reason="PyAV, the extra 'omni', is not installed")
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv(MEDIA, str(tmp_path / "media"))
    splits, ones = {"train": 3, "valid": 3, "test": 4}, np.ones((2, 3), np.float32)

    def sample(split: str, i: int) -> Sample:
        return Sample(f"{split}/{i}", f"I am so {'sad' if i % 2 else 'glad'}", ones, ones, i % 3)

    samples = {split: [sample(split, i) for i in range(count)] for split, count in splits.items()}
    write_corpus(tmp_path / "runs/cache/data/talks", name="talks", task=MELD, splits=samples, generated=False)
    for split in ("valid", "test"):  # what is answered; the training clips need none
        for i in range(splits[split]):
            write_recording(tmp_path / "media/talks" / split / f"{i}.mkv", 1.0, hz=220 * (i + 1), picture=i != 1)
    return tmp_path / "runs" / "cache"


SMALL = {"method.frame_tokens": 8}


def config_of(world: Path, qwen: Path, changes: dict | None = None) -> RunConfig:
    corpus = load_corpus(world / "data" / "talks")
    start = RunConfig(data=DataConfig(name="talks", fingerprint=corpus.fingerprint), method=OmniConfig())
    asked = override(start, SMALL | {"method.model.name": str(qwen)} | (changes or {}))
    return complete(asked, corpus, world, {"method.model.dtype": "float32"})


def made(world: Path, config: RunConfig) -> store.Run:
    folder = world.parent / f"talks-{config.hash}"
    folder.mkdir(parents=True)
    (folder / store.CONFIG).write_text(to_json(config))
    execute(world.parent, folder)
    store.finalise(folder)
    return store.open_run(folder)


def test_a_run_answers_every_clip_and_answers_the_same_when_it_is_loaded(world, qwen):
    config = config_of(world, qwen)
    assert config.method.model.name == "small-omni" and len(config.method.media) == len(config.method.model.fingerprint) == 16
    run = made(world, config)
    assert [one.model for one in listed(world.parent)] == ["small-omni"]
    table = run.predictions("test")
    assert table["prediction"].isin(range(3)).all() and len(table) == 4
    assert run.metrics["oddities"] == {"without_picture": 2} and run.metrics["trainable_parameters"] == 0
    assert run.environment["llm_fingerprint"] == config.method.model.fingerprint and run.metrics["llm_parameters"] > 1000
    loaded = load(run.folder)
    clips = load_corpus(world / "data" / "talks").splits["test"]
    answers = loaded.predict([replace(clip, label=None) for clip in clips])
    assert [answer.value for answer in answers] == table["prediction"].tolist()
    assert [answer.text for answer in answers] == [MELD.labels[int(value)] for value in table["prediction"]]
    for answer in answers:
        assert answer.value == np.argmax(list(answer.probabilities.values()))
        assert sum(answer.probabilities.values()) == pytest.approx(1)
    other = loaded.method.collate([replace(clip, label=(clip.label + 1) % 3) for clip in clips])
    assert loaded.method.predict(other).values.tolist() == table["prediction"].tolist(), "no label reaches the answers"
    batch = loaded.method.collate([*clips])
    mass = [-np.log(list(answer.probabilities.values())[clip.label]) for answer, clip in zip(answers, clips, strict=True)]
    assert loaded.method.loss(batch).total.item() == pytest.approx(sum(mass))


def test_free_replies_that_are_no_label_are_counted_and_other_recordings_are_another_run(world, qwen, tmp_path):
    config = config_of(world, qwen, {"method.decoding": "free", "method.max_new_tokens": 3})
    run = made(world, config)
    unparsable = int(run.predictions("test")["prediction"].isna().sum())
    assert unparsable and run.metrics["oddities"]["unparsable_replies"] >= unparsable
    write_recording(Path(os.environ[MEDIA]) / "talks/test/0.mkv", 1.0, hz=1000)
    assert config_of(world, qwen).method.media != config.method.media
    other = copied(qwen, tmp_path)
    edit(other / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert config_of(world, other).method.model.fingerprint != config.method.model.fingerprint


def test_words_alone_need_no_recording_and_a_run_whose_model_changed_is_not_loaded(world, qwen, tmp_path, monkeypatch):
    monkeypatch.delenv(MEDIA)
    other = copied(qwen, tmp_path)
    config = config_of(world, other, {"method.modalities": "text"})
    run = made(world, config)
    assert config.method.media == "" and set(run.metrics["oddities"]) == set()
    edit(other / "tokenizer_config.json", more=1)
    with pytest.raises(Damaged, match="tokenizer_config.json changed"):
        load(run.folder)


# In a study -----------------------------------------------------------------------------------------------------------
def test_a_study_says_why_a_row_is_not_run_and_fills_in_what_it_needs(world, qwen, monkeypatch, tmp_path):
    row = Row("an omni model", "omni", {"method.model.name": str(qwen)} | SMALL)
    words = replace(row, changes={**row.changes, "method.modalities": "text"})
    study = Study("demo", smoke=True)
    assert "is generated: it holds features, and an omni model reads recordings" in study.missing(row, "meld")
    assert study.missing(row) == "" and study.missing(words, "meld") == "", "words are there"
    assert study.config("meld", words).method.model.name == "small-omni"
    talks = load_corpus(world / "data" / "talks")
    monkeypatch.setattr(Study, "corpus", lambda self, key: talks)
    assert study.missing(row, "meld") == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert study.config("meld", row).method.model.dtype == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    filled = study.config("meld", row)
    assert filled.method.model.dtype == "float32" and filled.method.media == config_of(world, qwen).method.media
    absent = replace(row, changes={"method.model.name": "nobody/omni"})
    assert "cmpta weights nobody/omni" in study.missing(absent, "meld")
    Path(os.environ[MEDIA], "talks/test/3.mkv").unlink()
    assert "no recording of 1 of 7 clips; the first is 'test/3'" in study.missing(row, "meld")
    monkeypatch.delenv(MEDIA)
    assert study.missing(row, "meld").endswith("set CMPTA_MEDIA to the folder that holds talks/<clip id>.mp4")
    with pytest.raises(FileNotFoundError, match="set CMPTA_MEDIA"):
        study.config("meld", row)
    assert OmniConfig().model.name in OMNI_MODELS and not registry.ENTRIES["omni"].is_trained
    for key in ("sims", "meld", "data"):
        assert not [row for row in (*plan.comparison(key), *plan.versions(key)) if row.method == "omni"]
