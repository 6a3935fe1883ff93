"""Choosing: which corpus has a clip, what the lists do, and what a picture of one clip, pair, head and row shows."""

from __future__ import annotations

from types import SimpleNamespace

import IPython
import numpy as np
import pytest

from cmpta_lib.data.corpus import Sample
from cmpta_lib.figures import clips
from cmpta_lib.figures.attention import AttentionPanel, attention_figure
from cmpta_lib.figures.choose import choose


def corpus(*ids: str, **columns: list[object]) -> SimpleNamespace:
    import pandas as pd

    return SimpleNamespace(name="mine", splits={"test": SimpleNamespace(table=pd.DataFrame({"id": ids} | columns))})


@pytest.mark.parametrize(
    ("asked", "found"), [("", ["sims", "meld"]), ("both", ["sims", "meld"]), ("video_1", ["sims"]), ("dia0_utt1", ["meld"])]
)
def test_a_clip_is_shown_where_it_is(asked: str, found: list[str]):
    corpora = {"sims": corpus("both", "video_1"), "meld": corpus("both", "dia0_utt1", "dia0_utt2")}
    assert clips.holding(corpora, asked) == found


def test_an_id_that_no_corpus_has_is_one_error_with_ids_that_are_near():
    corpora = {"sims": corpus("video_1", "video_2"), "meld": corpus("dia0_utt1", "dia0_utt2", "dia1_utt0")}
    said = "^no clip 'dia0_utt3' in split 'test' of 2 clips of sims or 3 clips of meld; did you mean dia0_utt"
    with pytest.raises(ValueError, match=said):
        clips.holding(corpora, "dia0_utt3")
    with pytest.raises(ValueError, match="^no clip '7' in split 'test' of 2 clips; its ids: video_1, video_2, ...$"):
        clips.holding({"sims": corpora["sims"]}, 7)
    assert clips.holding({}, "any") == [], "nothing is shown, so nothing is missing"


@pytest.fixture
def person(monkeypatch) -> dict[str, list]:
    """Somebody who can choose: what is shown, and what takes a picture's place."""
    pytest.importorskip("ipywidgets")
    seen: dict[str, list] = {"shown": [], "updates": []}
    handle = SimpleNamespace(update=lambda picture, raw=False: seen["updates"].append(picture))
    asked = SimpleNamespace(get_parent=lambda: {"content": {"allow_stdin": True}})
    monkeypatch.setattr(IPython, "get_ipython", lambda: asked)
    monkeypatch.setattr(IPython.display, "display", lambda *what, display_id=None: seen["shown"].extend(what) or handle)
    return seen


def test_each_choice_draws_once_and_lists_follow_the_choices_before_them(person):
    words = {0: ["hm"], 1: ["oh", "well"]}

    def draw(clip: int, word: str, head: int) -> str:
        if head == 2:
            raise ValueError("no such head")
        return f"{clip} {word} {head}"

    heads = [(str(n), n) for n in range(3)]
    usual = choose(draw, clip=[("c0", 0), ("c1", 1)], word=lambda clip: [(w, w) for w in words[clip]], head=heads)
    (boxes, picture), changes = person["shown"], person["updates"]
    clip, word, head = boxes.children
    assert usual == picture == "0 hm 0" and changes == []
    head.value = 1
    clip.value = 1
    assert word.options == (("oh", "oh"), ("well", "well")) and changes == ["0 hm 1", "1 oh 1"], "other choices stay"
    word.value = "well"
    head.value = 2
    head.value = 0
    assert changes[2:] == ["1 well 1", {"text/plain": "no such head"}, "1 well 0"]


def test_headless_the_usual_picture_stands_alone(capsys):
    shown = choose(lambda clip: f"clip {clip}", clip=[("c3", 3), ("c0", 0)])
    assert shown == "clip 3" and "clip 3" in capsys.readouterr().out


def maps(**extra: object) -> clips.ClipMaps:
    """A clip of two words, three frames of the face and four of the voice, two heads; `extra` is known of it."""
    sizes, random = {"text": 2, "vision": 3, "audio": 4}, np.random.default_rng(0)
    weights = {pair: random.dirichlet(np.ones(sizes[x]), (2, sizes[y])) for pair, (y, x) in clips.PAIRS.items()}
    sample = Sample("c0", "hm oh", np.zeros((4, 1), np.float32), np.zeros((3, 1), np.float32), extra=extra)
    return clips.ClipMaps(corpus("c0", vision_length=[3], audio_length=[6]), sample, ["hm", "oh"], weights)


def test_the_six_pairs_the_heads_and_the_cue_of_a_clip():
    clip = maps(face="smiling", face_start=1, face_stop=3)
    for pair, (source, keys) in clips.PAIRS.items():
        panel = clip.panel(pair, head=2)
        np.testing.assert_array_equal(panel.weights, clip.weights[pair][1])
        assert (panel.source, panel.modality) == (source, keys)
        assert (panel.cue, panel.cue_window) == (("smiling", (1, 3)) if keys == "vision" else ("", None))
        attention_figure([panel]).draw_without_rendering()
    np.testing.assert_array_equal(clip.panel("t2").weights, clip.weights["t2"].mean(0))
    assert clip.panel("t2").padded_length == 6
    *heads, uniform = clip.on_cue("t1")
    assert heads == pytest.approx([clip.weights["t1"][head][:, 1:].sum() / 2 for head in (0, 1)]) and uniform == 2 / 3
    assert len(clip.on_cue("t2")) == len(clip.on_cue("v1")) == 0, "no cue of the voice is known, and words have none"


def test_panels_share_one_scale_in_multiples_of_uniform():
    """The same height and colour are the same multiple, whatever the clips' lengths; a panel that is not drawn counts too."""
    short, long = (AttentionPanel(np.full((1, n), 1 / n), ["hm"], "vision", n) for n in (4, 40))
    sharp = AttentionPanel(np.eye(1, 10), ["hm"], "vision", 10)
    for beside, top in (((), 1), ((sharp,), 10)):
        figure = attention_figure([short, long], beside=beside)
        images = [axes.images[0] for axes in figure.axes if axes.images]
        means = [axes for axes in figure.axes if axes.get_title()]
        assert [axes.get_ylim()[1] / (100 / n) for axes, n in zip(means, (4, 40), strict=True)] == pytest.approx([1.15 * top] * 2)
        heights = [image.get_clim()[1] / (100 / n) for image, n in zip(images, (4, 40), strict=True)]
        assert heights[0] == pytest.approx(heights[1]) and 0.9 * top <= heights[0] <= top
