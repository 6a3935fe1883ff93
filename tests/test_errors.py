"""What a method gets wrong and how sure it is: counted by hand on answers whose truth is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from finished import finish, record_llms, small_studies

from cmpta_lib.data.corpus import Corpus, Split, Task
from cmpta_lib.figures import answers as pictures
from cmpta_lib.figures.answers import ClipAnswer, calibration_error, clip_figure, confusion_figure, reliability
from cmpta_lib.figures.attention import AttentionPanel
from cmpta_lib.report import comparison, errors, rows
from cmpta_lib.study import plan

CLASSES = Task("classification", "en", ("anger", "disgust", "joy"))
SCORES = Task("regression", "zh")
SUREST = "among equals the one that it was surest of"


def table(labels: list, predictions: list) -> pd.DataFrame:
    ids = [f"c{number}" for number in range(len(labels))]
    return pd.DataFrame({"id": ids, "label": labels, "prediction": np.array(predictions, float)})


def counted(task: Task, ours: list[pd.DataFrame], theirs: list[pd.DataFrame]) -> pd.DataFrame:
    """`every_answer` of CMPTA's and text only's tables, one for each seed."""

    def runs(tables: list[pd.DataFrame]) -> list[SimpleNamespace]:
        return [SimpleNamespace(config=SimpleNamespace(seed=n), predictions=lambda one=one: one) for n, one in enumerate(tables)]

    return comparison.every_answer(task, {"CMPTA": runs(ours), "text only": runs(theirs)})


def both(task: Task, *seeds: tuple[list, list, list]) -> pd.DataFrame:
    """Labels, CMPTA's and text only's answers, for each seed."""
    return counted(task, [table(labels, one) for labels, one, _ in seeds], [table(labels, one) for labels, _, one in seeds])


def trained(stored: pd.DataFrame, *said: tuple[float | None, dict[str, float]]) -> SimpleNamespace:
    """What `answers_of` needs of a loaded run: what it answers now, with the probabilities."""
    method = SimpleNamespace(name="some")
    run = SimpleNamespace(predictions=lambda: stored, folder=Path("runs/a-01"), config=SimpleNamespace(method=method))
    answers = [SimpleNamespace(value=value, probabilities=chances) for value, chances in said]
    return SimpleNamespace(run=run, predict=lambda split, strict: answers)


def classes(labels: list, predictions: list, probabilities: list) -> pd.DataFrame:
    said = [(value, dict(zip(CLASSES.labels, row, strict=True))) for value, row in zip(predictions, probabilities, strict=True)]
    return errors.answers_of(trained(table(labels, predictions), *said), corpus(CLASSES, labels))


def scores(labels: list, predictions: list, *masses: dict[float, float]) -> pd.DataFrame:
    """Answers on the grid of one decimal; `masses`: score -> probability, for each clip."""
    grid = {f"{score:+.1f}": round(score, 1) for score in np.arange(-1, 1.01, 0.1) + 0.0}
    said = [
        (value, {name: mass.get(score, 0.0) for name, score in grid.items()})
        for value, mass in zip(predictions, masses, strict=True)
    ]
    return errors.answers_of(trained(table(labels, predictions), *said), corpus(SCORES, labels))


def corpus(task: Task, labels: list, **columns: list) -> Corpus:
    """Only what tables read: no clip has frames. `bayes_all` makes it a generated one."""
    size = len(labels)
    rows = {"id": [f"c{n}" for n in range(size)], "text": [f"words {n}" for n in range(size)], "label": labels}
    rows |= {"speaker": None, "dialogue": None, "audio_length": 0, "vision_length": 0}
    split = Split("test", task, pd.DataFrame(rows | columns), np.zeros((0, 2)), np.zeros((0, 2)))
    return Corpus("mine", task, {"test": split}, "bayes_all" in columns, {}, {}, "f")


def shows(frame: pd.DataFrame, *lines: str) -> bool:
    """Whether a table is these lines, its heading first, cells between bars."""
    return frame.to_csv(sep="|", index=False).splitlines() == list(lines)


def test_scores_are_gathered_alike_on_both_sides_of_zero():
    names = comparison.group_names(SCORES)
    assert names == ["-1.0", "-0.8", "-0.6", "-0.4", "-0.2", "+0.0", "+0.2", "+0.4", "+0.6", "+0.8", "+1.0"]
    assert comparison.groups(SCORES, [float(name) for name in names]).tolist() == list(range(11))
    for value in (0.1, 0.3, 0.5, 0.7, 0.9):
        up, down = comparison.groups(SCORES, [value, -value])
        assert up - 5 == 5 - down
    assert comparison.groups(SCORES, [np.nan, 3.0]).tolist() == [-1, 10]
    assert comparison.groups(CLASSES, [2, np.nan]).tolist() == [2, -1]


@pytest.mark.parametrize("low, high, count", [(1, 5, 9), (1, 7, 7), (0, 3, 10), (0, 10, 11), (0, 100, 11), (1, 2.5, 11)])
def test_whole_scores_of_any_range_are_labels_of_their_own(low, high, count):
    task = Task("regression", "en", score_range=(low, high))
    names = comparison.group_names(task)
    assert len(names) == count and (names[0], names[-1]) == (f"{low:g}", f"{high:g}")
    for whole in range(low, int(high) + 1) if high <= 10 and high % 1 == 0 else ():
        assert names[comparison.groups(task, [task.from_range(float(whole))])[0]] == f"{whole}"


def test_errors_of_a_range_are_told_in_its_units():
    task = Task("regression", "en", score_range=(1, 5))
    every = both(task, ([-1, -0.5, 0, 1], [-0.5, -0.5, 0.5, 1], [0] * 4))
    table = errors.per_label_table(task, every).set_index("label")
    assert table["CMPTA: mean error"].tolist() == ["1.000", "0.000", "1.000", "0.000", "0.500"]
    assert [*table.index] == ["1", "2", "3", "5", "all"] and table["CMPTA: wrong side of 3 (%)"]["3"] == "100.0"
    assert errors.agreement_table(task, every)["label"].tolist() == ["below 3", "3", "above 3", "all"]


def test_shares_of_all_seeds_with_unparsable_replies_in_no_column():
    seeds = ([0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]), ([0, 0, 1, 1], [0, np.nan, 1, 0], [1, 1, 1, 1])
    shares = comparison.answer_shares(CLASSES, both(CLASSES, *seeds))
    np.testing.assert_allclose(shares["CMPTA"], [[0.5, 0.25, 0], [0.25, 0.75, 0], [0, 0, 0]])
    np.testing.assert_allclose(shares["text only"], [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]])
    assert comparison.answer_shares(CLASSES, counted(CLASSES, [], [])) == {}
    of_scores = comparison.answer_shares(SCORES, counted(SCORES, [table([-1.0, -1.0], [-1.0, 0.6])], []))["CMPTA"]
    assert of_scores.shape == (11, 11) and of_scores[0, 0] == of_scores[0, 8] == 0.5


def test_measures_of_a_class_by_hand():
    every = both(CLASSES, ([0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, np.nan]), ([0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, np.nan]))
    names = ("precision (%)", "recall (%)", "F1 (%)")
    heads = [f"{method}: {name}" for method in ("CMPTA", "text only") for name in names]
    assert shows(
        errors.per_label_table(CLASSES, every),
        "|".join(["label", "clips", *heads, "text only: unparsable"]),
        "anger|2|100.0 ± 0.0|75.0 ± 35.4|83.3 ± 23.6|66.7 ± 0.0|100.0 ± 0.0|80.0 ± 0.0|—",
        "disgust|2|83.3 ± 23.6|100.0 ± 0.0|90.0 ± 14.1|—|0.0 ± 0.0|0.0 ± 0.0|—",
        "joy|0|—|—|—|—|—|—|—",
        "all|4|91.7 ± 11.8|87.5 ± 17.7|86.7 ± 18.9|33.3 ± 0.0|50.0 ± 0.0|40.0 ± 0.0|1.0 ± 0.0",
    )


def test_measures_of_a_score_by_hand():
    """The nearest labels that clips have are listed; 0 is a negative score, as in Acc-2."""
    every = both(SCORES, ([-0.4, -0.4, 0.0, 0.6, 0.6], [-0.2, 0.2, 0.1, 0.6, np.nan], [0.0] * 5))
    ours, theirs = ("|".join(f"{method}: {name}" for name in ("mean error", "mean absolute error", "wrong sign (%)"))
                    for method in ("CMPTA", "text only"))  # fmt: skip
    assert shows(
        errors.per_label_table(SCORES, every),
        f"label|clips|{ours}|CMPTA: unparsable|{theirs}",
        "-0.4|2|0.400|0.400|50.0|—|0.400|0.400|0.0",
        "+0.0|1|0.100|0.100|100.0|—|0.000|0.000|0.0",
        "+0.6|2|0.000|0.000|0.0|—|-0.600|0.600|100.0",
        "all|5|0.225|0.225|50.0|1.0|-0.080|0.400|40.0",
    )


def test_agreement_by_hand_over_the_seeds_that_both_have():
    labels, heads = [0, 0, 1, 2], "label|clips|both right|only CMPTA right|only text only right|neither right"
    ours = [table(labels, said) for said in ([0, 0, 1, 0], [0, 0, 0, 0], [2, 2, 2, 2])]  # text only lacks the third seed
    theirs = [table(labels, said) for said in ([0, 1, 0, 0], [0, 0, 1, 0])]
    assert shows(
        errors.agreement_table(CLASSES, counted(CLASSES, ours, theirs)), heads,
        "anger|2|1.5 ± 0.7|0.5 ± 0.7|0.0 ± 0.0|0.0 ± 0.0",
        "disgust|1|0.0 ± 0.0|0.5 ± 0.7|0.5 ± 0.7|0.0 ± 0.0",
        "joy|1|0.0 ± 0.0|0.0 ± 0.0|0.0 ± 0.0|1.0 ± 0.0",
        "all|4|1.5 ± 0.7|1.0 ± 1.4|0.5 ± 0.7|1.0 ± 0.0",
    )  # fmt: skip
    one = errors.agreement_table(SCORES, both(SCORES, ([-0.4, 0.0, 0.6], [-0.2, 0.4, 0.6], [0.0, 0.2, np.nan])))
    assert shows(one, heads, "below 0|1|0|1|0|0", "0|1|0|0|1|0", "above 0|1|0|1|0|0", "all|3|0|2|1|0")


def test_a_method_that_was_not_run_has_columns_that_say_so():
    every = counted(CLASSES, [], [table([0, 1], [0, 0])])
    found = errors.per_label_table(CLASSES, every)
    assert set(found["CMPTA: F1 (%)"]) == {"not run"} and found["text only: recall (%)"].tolist()[0] == "100.0"
    sides = errors.agreement_table(CLASSES, every)
    assert set(sides["both right"]) == {"not run"} and sides["clips"].tolist() == ["1", "1", "0", "2"]
    for make in (errors.per_label_table, errors.agreement_table):
        assert make(CLASSES, counted(CLASSES, [], [])).empty


@pytest.mark.parametrize(("chosen", "name"), [("", "a"), (25, "a_25"), ("../a b/7.mp4", "a_a_b_7_mp4")])
def test_a_choice_of_ones_own_goes_to_a_file_of_its_own(chosen: object, name: str):
    assert rows.export_name("a", chosen) == name and rows.export_name("a", 10, 10) == "a"


def test_the_page_says_which_runs_it_rests_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = small_studies(record_llms(tmp_path), monkeypatch)(seeds=2)
    finish(study, "sims", study.runs("sims", plan.CMPTA))
    finish(study, "sims", study.runs("sims", plan.TEXT_ONLY)[1:])
    found = [rows.result_row(study, key, row) for key in study.keys for row in errors.COMPARED.values()]
    assert [(row.method, row.seeds) for row in found[:2]] == [("CMPTA", "2"), ("text only", "1 of 2")]
    assert found[0].note == "" and "1 of 2 seeds so far" in found[1].note and "is not finished" in found[2].note
    runs = errors.whole_runs(study, "sims")
    assert [run.config.seed for run in runs["CMPTA"]] == [1111, 2222] and runs["text only"] == [], "all seeds or none"


def test_the_errors_need_no_run_that_the_comparison_does_not():
    ours, compared = (
        plan.planned(plan.chosen(names), ("sims", "meld"), False, (1, 2))
        for names in (["11_errors"], ["04_table3_simsv2", "05_table4_meld"])
    )
    assert len(ours) == 8 and all(one in compared for one in ours)


def test_confidence_in_a_class_is_its_probability_and_in_a_score_that_of_being_right():
    found = classes([0, 1, 2], [0, 0, np.nan], [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
    np.testing.assert_allclose(found["sure"], [0.7, 0.5, np.nan])
    np.testing.assert_allclose(found["on_label"], [0.7, 0.4, 0.6])
    sure, right = errors.judged(found)
    assert sure.tolist() == [0.7, 0.5] and right.tolist() == [True, False]
    scored = scores([0.4, -1.0], [0.2, -0.8], {0.0: 0.1, 0.2: 0.3, 0.4: 0.2, 0.5: 0.4}, {-1.0: 0.3, -0.8: 0.5, 0.9: 0.2})
    np.testing.assert_allclose(scored["sure"], [0.6, 0.8])


def test_calibration_by_hand():
    chances = [[0.9, 0.1, 0], [0.9, 0.1, 0], [0.2, 0.8, 0], [0.2, 0.8, 0]]
    found = {"CMPTA": classes([0] * 4, [0, 0, 1, 1], chances)}
    assert shows(
        errors.calibration_table(CLASSES, found),
        "measure|CMPTA|text only",
        "clips|4|not run",
        "right|50.0|not run",
        "mean confidence|85.0|not run",
        "mean confidence where right|90.0|not run",
        "mean confidence where wrong|80.0|not run",
        "expected calibration error|45.0|not run",  # half a tenth too low, half eight tenths too high
        "the same, were it exactly as sure as right|20.8 (95 %: 35.0 at most)|not run",
    )
    found["text only"] = classes([0] * 4, [np.nan] * 4, chances)
    told = errors.calibration_table(CLASSES, found).set_index("measure")["text only"]
    assert told["unparsable replies"] == "4" and told["right"] == "—" and not len(errors.judged(found["text only"])[0])


def test_a_method_as_sure_as_right_has_the_errors_that_are_imagined():
    sure = np.round(np.random.default_rng(3).uniform(0.3, 1, 60), 1)  # with ties
    drawn = np.random.default_rng(0).random((errors.DRAWS, 60)) < np.sort(sure)
    slow = [calibration_error(reliability(np.sort(sure), right, errors.BINS)) for right in drawn[:20]]
    np.testing.assert_allclose(errors.imagined_errors(sure)[:20], slow, atol=1e-12)
    few, many = (errors.imagined_errors(np.full(size, 0.7)).mean() for size in (20, 2000))
    assert many < 0.02 < few


def test_the_central_interval_by_hand():
    mass = {-1.0: 0.04, 0.0: 0.2, 0.2: 0.52, 0.4: 0.2, 1.0: 0.04}
    found = scores([0.2, 0.4, -1.0, 0.16], [0.2] * 4, *[mass] * 4)
    for share, wanted, probability in ((0.5, [1, 0, 0, 1], 0.52), (0.9, [1, 1, 0, 1], 0.92)):  # 0.16 is nearest to 0.2
        inside, chance = errors.central_interval(SCORES, found, share)
        assert inside.tolist() == wanted
        np.testing.assert_allclose(chance, probability)
    shown = errors.calibration_table(SCORES, {"CMPTA": found}).set_index("measure")["CMPTA"]
    assert shown["labels in the central 90 % interval"] == "75.0 (its probability: 92.0)"


def test_the_worst_come_first_the_surest_of_them_before():
    found = classes([0, 0, 0, 0], [0, 1, 2, np.nan], [[0.9, 0, 0], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [1, 0, 0]])
    assert errors.worst_first(found).index.tolist() == [2, 1, 3, 0]
    scored = scores([0.0, 0.0, 0.0], [0.4, -0.8, 0.8], {0.4: 0.9}, {-0.8: 0.2}, {0.8: 0.3})
    assert errors.worst_first(scored).index.tolist() == [2, 1, 0]


def test_the_table_of_the_worst_clips():
    mine = corpus(CLASSES, [0, 1, 2, 0], speaker=["Ann", None, "Bob", "Cy"])
    ours = classes([0, 1, 2, 0], [1, 1, 0, 2], [[0.1, 0.8, 0.1], [0, 1, 0], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5]])
    theirs = classes([0, 1, 2, 0], [0, 0, 1, 2], [[1, 0, 0]] * 4)
    assert shows(
        errors.worst_table(mine, {"CMPTA": ours, "text only": theirs}),  # as many as are wrong
        "clip|speaker|text|label|on the label (%)|CMPTA|sure (%)|text only|what happened",
        "c0|Ann|words 0|anger|10.0|disgust|80.0|anger|text only right, CMPTA wrong",
        "c2|Bob|words 2|joy|10.0|anger|60.0|disgust|both wrong, each in its own way",
        "c3|Cy|words 3|anger|25.0|joy|50.0|joy|both wrong, with the same answer",
    )
    alone = errors.worst_table(mine, {"CMPTA": ours}, 1)
    assert alone["text only"].tolist() == ["not run"] and alone["what happened"].tolist() == ["CMPTA wrong"]
    assert errors.worst_table(mine, {"CMPTA": theirs})["speaker"].tolist() == ["—", "Bob", "Cy"]
    assert "speaker" not in errors.worst_table(corpus(CLASSES, [0, 1, 2, 0]), {"CMPTA": ours}), "nobody is named"
    for number in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match=r"worst=.*: expected how many clips to show, a whole number from 1"):
            errors.worst_table(mine, {"CMPTA": ours}, number)
    shown = errors.worst_table(corpus(CLASSES, [0]), {"CMPTA": classes([0], [0], [[1, 0, 0]])})
    assert shown["what happened"].tolist() == ["CMPTA answers every test clip rightly"]


def test_what_the_generator_knows_is_told_and_whether_it_was_shown():
    known = {"face": ["frown", "", "smile"], "voice": ["low", "low", ""], "bayes_all": [0.4, 0.4, -0.4]}
    known |= {"face_start": [3, -1, -1], "voice_start": [-1, 2, -1], "vision_length": [9, 9, 0], "audio_length": [0, 9, 9]}
    mine = corpus(SCORES, [0.4, -0.4, 0.2], **known)
    ours = scores([0.4, -0.4, 0.2], [-0.8, 0.4, 0.8], {-0.8: 1.0}, {0.4: 1.0}, {0.8: 1.0})
    theirs = scores([0.4, -0.4, 0.2], [-0.6, 0.6, 0.8], {-0.6: 1.0}, {0.6: 1.0}, {0.8: 1.0})
    shown = errors.worst_table(mine, {"CMPTA": ours, "text only": theirs}).set_index("clip")["what happened"]
    best = "the best answer from all that the clip holds"
    unheard = "no voice in the clip (it would be: low)"
    assert shown["c0"] == f"both wrong, text only less; face: frown; {unheard}; {best}: +0.4, off by 0.0"
    assert shown["c1"] == f"both wrong, CMPTA less; face shows nothing; voice: low; {best}: +0.4, off by 0.8"
    unseen = "no face in the clip (it would be: smile); voice shows nothing"
    assert shown["c2"] == f"both wrong, with the same answer; {unseen}; {best}: -0.4, off by 0.6"
    assert errors.avoidable(mine).tolist() == [True, False, False]
    emotions = corpus(CLASSES, [0, 0], **{name: values[:2] for name, values in (known | {"bayes_all": [0.0, 2.0]}).items()})
    told = errors.worst_table(emotions, {"CMPTA": classes([0, 0], [1, 1], [[0, 1, 0]] * 2)})["what happened"]
    assert told[0].endswith(f"{best}: anger, right") and told[1].endswith(f"{best}: joy, wrong too")


def test_the_clip_to_look_at_is_the_worst_or_the_one_that_is_named():
    corpora = {"sims": corpus(SCORES, [0.0, 0.0]), "meld": corpus(CLASSES, [0, 0, 0])}
    study = SimpleNamespace(keys=list(corpora), corpus=corpora.__getitem__, seeds=[7])
    found = {
        "sims": {"CMPTA": scores([0.0, 0.0], [0.4, 0.8], {0.4: 1.0}, {0.8: 1.0})},
        "meld": {"text only": classes([0, 0, 0], [0, 0, 0], [[1, 0, 0]] * 3)},
    }
    assert errors.clips_to_show(study, found) == {"sims": (1, f"CMPTA's worst error, {SUREST}")}, "not where CMPTA was not run"
    assert errors.clips_to_show(study, found, "c0") == {"sims": (0, "chosen by hand")}
    for name in ("c2", "x"):  # c2 is meld's, where CMPTA was not run
        with pytest.raises(ValueError, match=f"no clip '{name}' in split 'test' of 2 clips; "):
            errors.clips_to_show(study, found, name)


def test_errors_that_the_best_answer_does_not_share_come_first():
    known = corpus(SCORES, [0.0, 0.0, 0.0], bayes_all=[0.8, 0.0, 0.0])
    found = {"CMPTA": scores([0.0, 0.0, 0.0], [0.8, 0.6, 0.0], {0.8: 1.0}, {0.6: 1.0}, {0.0: 1.0})}
    study = SimpleNamespace(keys=["sims"], corpus=lambda key: known, seeds=[7])
    assert errors.avoidable(known).tolist() == [False, True, True]
    assert errors.clips_to_show(study, {"sims": found}) == {"sims": (1, f"CMPTA's worst avoidable error, {SUREST}")}
    assert errors.avoidable(corpus(SCORES, [0.0, 0.4])).all(), "nobody knows of real clips"


def test_probabilities_are_computed_anew_beside_the_stored_answers():
    chances = {"anger": 0.2, "disgust": 0.5, "joy": 0.3}
    stored = table([0, 1, 2], [1, np.nan, 2])
    found = errors.answers_of(trained(stored, (1, chances), (None, chances), (1, chances)), corpus(CLASSES, [0, 1, 2]))
    assert list(found["chances"]) == [chances] * 3 and found["same"].tolist() == [True, True, False]
    assert found["said"].tolist() == ["disgust", "unparsable", "joy"], "the stored answer stands"
    told = errors.calibration_table(CLASSES, {"CMPTA": found}).set_index("measure")["CMPTA"]
    assert told["answered otherwise than in the stored run"] == "1"
    scored = errors.answers_of(trained(table([0.4], [0.3]), (0.3, {"-0.3": 0.4, "+0.3": 0.6})), corpus(SCORES, [0.4]))
    assert scored["same"].all() and scored["sure"].tolist() == [0.6]
    with pytest.raises(ValueError, match="run a-01: its method 'some' gives no probabilities"):
        errors.answers_of(trained(stored, (1, {})), corpus(CLASSES, [0]))


def test_one_clips_answers_as_they_are_drawn():
    found = {"CMPTA": scores([0.44], [-0.8], {-0.8: 1.0}), "text only": scores([0.44], [np.nan], {0.4: 1.0})}
    drawn = errors.clip_answers(SCORES, found, 0)
    assert (drawn["CMPTA"].text, drawn["CMPTA"].chosen, drawn["CMPTA"].truth) == ("-0.8", 2, 14)
    assert (drawn["text only"].text, drawn["text only"].chosen) == ("unparsable", None)


def test_a_label_between_two_answers_keeps_its_second_decimal():
    shown = [errors.label_text(SCORES, value) for value in (0.4, -0.0, 0.47, np.float64(-0.6))]
    assert shown == ["+0.4", "+0.0", "+0.47", "-0.6"]
    assert errors.label_text(CLASSES, 2) == "joy"


@pytest.mark.parametrize("has_frames", [True, False])
def test_the_figure_of_one_clip(has_frames: bool):
    panels = [AttentionPanel(np.full((2, 5), 0.2), ["hm", "oh"], "audio", 6)] if has_frames else []
    chances = np.array([0.6, 0.1, 0.3])
    said = {"CMPTA": ClipAnswer("anger", CLASSES.labels, chances, 0, 2)}
    said["text only"] = ClipAnswer("unparsable", CLASSES.labels, chances, None, 2)
    figure = clip_figure(panels, text="hm, $5 *a*", label="joy", answers=said, title="A clip", footer="Data: mine.")
    figure.draw_without_rendering()
    bars = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    ours, theirs = bars["CMPTA: anger"], bars["text only: unparsable"]
    assert [bar.get_height() for bar in ours.patches] == pytest.approx([60, 10, 30])
    assert [line.get_xdata()[0] for line in ours.lines if line.get_gid() == "label"] == [2]
    colours = [{bar.get_facecolor() for bar in axes.patches} for axes in (ours, theirs)]
    assert [len(found) for found in colours] == [2, 1], "no bar is the answer of an unparsable reply"
    assert any("hm, $5 *a*" in text.get_text() and "label: joy" in text.get_text() for axes in figure.axes for text in axes.texts)
    assert bool([axes for axes in figure.axes if axes.get_xlabel() == "audio frame (key)"]) == has_frames


def test_of_many_answers_the_likeliest_are_drawn_with_the_answer_and_the_label():
    names = [f"{value:.2f}" for value in np.arange(-1, 1.001, 0.01)]
    chances = np.linspace(0, 1, len(names)) / len(names)
    shown = pictures._likeliest(ClipAnswer("x", names, chances, 3, 7))
    assert len(shown) == pictures.MAX_BARS and shown == sorted(shown) and {3, 7, len(names) - 1} <= set(shown)
    with pytest.raises(ValueError, match="no answers to draw"):
        clip_figure([], text="", label="", answers={})


def test_every_method_has_a_map_that_says_what_it_is_of():
    drawn = [confusion_figure({"a": np.eye(3)}, CLASSES.labels, **given).axes[0] for given in ({}, {"noun": "score"})]
    assert [axes.get_ylabel() for axes in drawn] == ["true class", "true score"]
    assert ["class" in axes.get_xlabel() for axes in drawn] == [True, False] and "score" in drawn[1].get_xlabel()
    shares = {f"method {number}": np.eye(3) for number in range(5)}
    figure = confusion_figure(shares, CLASSES.labels, title="t", footer="f")
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == list(shares)
    for bad, message in (({}, "no method of this comparison was run"), ({"m": np.eye(2)}, "'m': expected a map of 3 x 3")):
        with pytest.raises(ValueError, match=message):
            confusion_figure(bad, CLASSES.labels)
