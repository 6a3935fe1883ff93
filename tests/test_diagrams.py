"""Figures 1 and 2 say what the settings say: each test reads the words of the drawing."""

import pytest
from drawn import MELD, MODELS, english, model, words
from finished import record_llms, small_studies

from cmpta_lib.figures import curves as plots
from cmpta_lib.figures.diagrams import PAIRS


def figure_1(shown) -> str:
    return words(plots.architecture_figure(shown))


def figure_2(shown) -> str:
    return words(plots.adapter_figure(shown))


def test_the_pairs_are_those_of_the_method():
    from cmpta_lib.method.adapter import PAIRS as METHODS_PAIRS

    assert list(PAIRS.items()) == list(METHODS_PAIRS.items())


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, "temporal alignment BiLSTM, 2 × 32 (3, 4)", " LSTM"),
        ({"alignment": "lstm"}, " LSTM, 64 (3)", "BiLSTM"),
        ({"alignment": "linear"}, "Linear 177 → 64, LayerNorm (5)", "LSTM"),
        ({"alignment": "linear"}, "Linear 25 → 64, LayerNorm (5)", "LSTM"),
        ({}, "one token per ordered pair Y ← X", "mix"),
        ({"num_heads": 1}, "1 head;", "heads"),
        ({"dim": 128}, "$T_v \\times 128$", "× 32"),
        ({"num_pseudo_tokens": 8}, "learned mix 6 → 8", "one token per"),
        ({"num_pseudo_tokens": 8, "token_count_rule": "repeat"}, "pairs repeated 6 → 8", "mix"),
        ({"fusion": "pooled"}, "means over 3 consecutive spans", "heads"),
        ({"fusion": "pooled"}, "no cross-modal attention", "text embeddings"),
        ({"prompt": {"answer_decimals": 2}}, "answer “-0.40”", "“-0.4”"),
        ({"prompt": {"answer_sign": "negative"}, "label": 0.6}, "answer “0.6”", "+0.6”"),
        ({"label": 0.6}, "answer “+0.6”", "-0.4"),
        ({"llm_dim": 2048, "backbone": "qwen-1.8b"}, "LLM: qwen-1.8b, width 2048", "192"),
    ],
)
def test_figure_1_follows_the_settings(settings, said, unsaid):
    shown = figure_1(model(**settings))
    assert said in shown and unsaid not in shown


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, "mean over the real positions of Y", "maximum"),
        ({"summary": "max"}, "maximum over the real positions of Y", "mean"),
        ({}, "projections per modality", "per pair"),
        ({}, "4 heads, d = 16", "× 2"),
        ({"num_heads": 8}, "8 heads, d = 8", "4 heads"),
        ({"projections": "per_pair"}, "projections per pair", "$Q_T$ |"),
        ({"projections": "per_pair"}, "$Q_T$ × 2 | $K_T$, $V_T$ × 2", "per modality"),
        ({}, "$Q_T$ | $K_T$, $V_T$ |", "Q KV"),
        ({"llm_dim": 2048}, "Linear  64 → 2048", "192"),
        ({"llm_dim": 2048}, "Linear 2048 → 64", "192"),
        ({"num_pseudo_tokens": 8}, "learned mix 6 → 8", "t₁"),
        ({"num_pseudo_tokens": 4, "token_count_rule": "repeat"}, "the first 4 of 6 pairs", "a₁"),
        ({"num_pseudo_tokens": 8, "token_count_rule": "repeat"}, "pairs repeated 6 → 8", "mix"),
        ({"fusion": "pooled"}, "3 consecutive spans of its real frames", "softmax"),
        ({"fusion": "pooled"}, "v₁ | v₂ | v₃", "t₁"),
        ({"fusion": "pooled", "num_pseudo_tokens": 2}, "mean over one span of its real frames", "v₂"),
        ({"alignment": "lstm"}, "$T_a \\times 64$", "BiLSTM"),
    ],
)
def test_figure_2_follows_the_settings(settings, said, unsaid):
    shown = figure_2(model(**settings))
    assert said in shown and unsaid not in shown


def order(shown) -> list[str]:
    """What the LLM reads, from left to right."""
    axes = plots.architecture_figure(shown).axes[0]
    row = [text for text in axes.texts if abs(text.get_position()[1] - 2.94) < 0.01]
    return [text.get_text() for text in sorted(row, key=lambda text: text.get_position()[0])]


def test_figure_1_reads_as_the_llm_does():
    pairs = ["t₁", "t₂", "v₁", "v₂", "a₁", "a₂"]
    assert order(model()) == ["<多模态>", *pairs, "text", "</多模态>", "prompt", "answer"]
    after = english(prompt={"pseudo_token_position": "after_text"})
    assert order(after) == ["<Multimodal>", "text", *pairs, "</Multimodal>", "prompt", "answer"]
    assert order(model(num_pseudo_tokens=8))[1:9] == [str(n) for n in range(1, 9)]
    assert order(model(num_pseudo_tokens=30))[1:13] == [*map(str, range(1, 11)), "…", "30"]
    assert order(model(num_pseudo_tokens=8, token_count_rule="repeat"))[1:9] == [*pairs, "t₁", "t₂"]
    assert order(model(fusion="pooled", num_pseudo_tokens=4))[1:5] == ["v₁", "v₂", "a₁", "a₂"]


def test_figure_1_speaks_the_language_of_its_corpus():
    shown = figure_1(english(label=4))
    assert "text “Oh great, it costs \\$5 and…”" in shown
    assert "The emotion is”" in shown and "answer “4” joy" in shown
    chinese = figure_1(model())
    assert "说实话，这也太好了吧" in chinese.replace(" ", "") and "响应：情感为”" in chinese.replace(" ", "")


def test_a_class_s_answer_is_padded_as_the_llm_writes_it():
    from cmpta_lib.data.corpus import Task

    many = Task("classification", "en", tuple(f"class {k}" for k in range(12)))
    assert "answer “03” class 3" in figure_1(english(task=many, label=3))


@pytest.mark.parametrize("name", MODELS)
def test_captions_say_what_is_drawn(name):
    shown = MODELS[name]()
    first, second = plots.architecture_figure(shown).drawn, plots.adapter_figure(shown).drawn
    assert f"{shown.settings.num_pseudo_tokens} pseudo token" in first
    assert ("attention" in second) and (shown.settings.fusion == "pooled") == ("switched off" in second)
    if shown.count_rule:
        assert shown.count_rule in second


def test_a_study_s_model_is_what_its_runs_train(tmp_path, monkeypatch, llm):
    """Sizes come from the model and the corpus that are there."""
    from cmpta_lib.runs import load as trained

    study = small_studies(record_llms(tmp_path), monkeypatch)(smoke=True, changes={"method.summary": "max"})
    monkeypatch.setattr(trained, "load_llm", lambda caches, config: llm)
    shown = plots.ShownModel.of(study, "meld")
    train = study.corpus("meld").splits["train"]
    assert shown.settings == study.config("meld").method and shown.settings.summary == "max"
    assert (shown.audio_features, shown.vision_features) == (train.audio_dim, train.vision_dim)
    assert (shown.llm_dim, shown.backbone) == (llm.dim, study.llm.name)
    assert (shown.text, shown.label) == (train[0].text, train[0].label)
    assert shown.task.labels == MELD.labels and shown.answer.endswith(MELD.labels[int(train[0].label)])
