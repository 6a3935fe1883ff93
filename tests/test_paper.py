import pytest

from cmpta_lib import paper
from cmpta_lib.report.uncertainty import summarise


def test_class_prompt_gives_table_2s_sentence_for_melds_labels():
    assert paper.class_prompt(paper.MELD_LABELS, "en") == paper.MELD_PROMPT


def test_class_prompt_renders_any_label_set_in_both_languages():
    english = paper.class_prompt(["calm", "angry"], "en")
    chinese = paper.class_prompt(["平静", "愤怒"], "zh")
    assert "target set <calm:0, angry:1>. Assistant: The emotion is" in english
    assert "<平静:0, 愤怒:1>" in chinese
    assert chinese.endswith(paper.SIMS_PROMPT[-len("响应：情感为") :])


@pytest.mark.parametrize(
    ("labels", "language", "message"),
    [(["calm"], "en", "two or more"), (["calm", "calm"], "en", "different"), (["calm", "angry"], "fr", "known: ")],
)
def test_class_prompt_refuses_what_it_cannot_render(labels, language, message):
    with pytest.raises(ValueError, match=message):
        paper.class_prompt(labels, language)


def test_sims_prompt_is_the_printed_one_with_an_ascii_minus():
    assert "[-1.0, +1.0]之间。响应：情感为" in paper.SIMS_PROMPT  # full-width colon, no space after it
    changed = [pair for pair in zip(paper.SIMS_PROMPT, paper.SIMS_PROMPT_AS_PRINTED, strict=True) if len(set(pair)) > 1]
    assert changed == [("-", "\u2212")]


@pytest.mark.parametrize("corpus", paper.TABLE1.values(), ids=paper.TABLE1)
def test_table_1_adds_up(corpus):
    assert corpus.train + corpus.valid + corpus.test == corpus.total


@pytest.mark.parametrize(
    ("table", "headline", "metric"),
    [(paper.TABLE5, paper.TABLE3[-1], "mae"), (paper.TABLE6, paper.TABLE4[-1], "f1_weighted")],
    ids=["table5", "table6"],
)
def test_every_ablation_group_holds_the_headline_score_once(table, headline, metric):
    groups = {row.group for row in table}
    full_model = {(row.group, row.method) for row in table if row.scores[metric] == headline.scores[metric]}
    assert full_model == {
        (paper.ALIGNMENT, "on"),
        (paper.LSTM_TYPE, "bidirectional"),
        (paper.ADAPTER, "on"),
        (paper.TOKEN_COUNT, "6"),
    }
    assert len(groups) == 4


def test_errata_agree_with_the_tables():
    assert max(paper.TABLE3, key=lambda row: row.scores["corr"]).method == "MAG-BERT"
    assert min(paper.TABLE3, key=lambda row: row.scores["mae"]).method == "CMPTA (Ours)"
    by_count = [row.scores["f1_weighted"] for row in paper.TABLE6 if row.group == paper.TOKEN_COUNT]
    assert f"{max(by_count) - min(by_count):.2f}" in " ".join(paper.ERRATA)


def test_the_papers_headlines_lie_within_its_ancestors_seed_noise():
    logs = {(log.corpus, log.metric): summarise(log.values) for log in paper.ANCESTOR_LOGS}
    sims, meld = logs["SIMS-V2", "mae"], logs["MELD", "f1_weighted"]
    assert f"{sims.mean:.3f} ± {sims.sd:.3f}" in paper.CONTEXT
    assert f"{100 * meld.mean:.2f} ± {100 * meld.sd:.2f}" in paper.CONTEXT
    assert abs(paper.TABLE3[-1].scores["mae"] - sims.mean) < sims.sd
    assert abs(paper.TABLE4[-1].scores["f1_weighted"] - 100 * meld.mean) < 100 * meld.sd
