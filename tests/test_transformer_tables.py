"""The multimodal transformer's rows, and the tables that compare its versions."""

from __future__ import annotations

import numpy as np
import pytest
from finished import finish, record_llms, small_studies

from cmpta_lib.metrics import METRICS
from cmpta_lib.report import comparison as tables
from cmpta_lib.report.comparison import of_every_corpus
from cmpta_lib.report.rows import result_row
from cmpta_lib.study import plan


def test_its_rows_hold_what_the_tables_compare():
    pretrained = {row.changes.get("method.pretraining", "both") for row in plan.PRETRAINING}
    assert pretrained == {"none", "mlm", "contrastive", "both"}
    assert {row.changes.get("method.fusion", "six_pair") for row in plan.FUSIONS} == {
        "six_pair", "concatenation", "self_attention"
    }  # fmt: skip
    for share, (with_it, without) in plan.LABEL_SHARES.items():
        assert with_it.changes.get("method.label_share", 1.0) == without.changes.get("method.label_share", 1.0) == share
        assert dict(without.changes) == {**with_it.changes, "method.pretraining": "none"}
    assert list(plan.LABEL_SHARES) == [0.1, 0.25, 0.5, 1.0]
    for key in ("sims", "meld"):
        assert plan.MMT in plan.added(key) and plan.MMT not in plan.compared(key)
        assert all(row in plan.every_row(key, plan.MMT.method) for row in plan.MMT_ROWS)
    assert len({row.name for row in plan.MMT_ROWS}) == len(plan.MMT_ROWS) == 13


def test_tables_say_what_differs_by_how_much_and_how_surely(tmp_path, monkeypatch):
    study = small_studies(record_llms(tmp_path), monkeypatch)(seeds=2)
    missing = plan.FUSIONS[1]
    for key in study.keys:
        for row in plan.MMT_ROWS:
            if row != missing:
                finish(study, key, study.runs(key, row))
    losses = of_every_corpus(study, lambda study, key: tables.versions(study, key, plan.PRETRAINING, plan.MMT))
    assert list(losses["metric"][losses["version"] == plan.MMT.name]) == ["MAE", "Corr", METRICS["f1_weighted"].label]
    heading = f"minus {plan.MMT.name}"
    others = losses[losses["version"] != plan.MMT.name]
    assert len(others) == 9 and others[heading].str.fullmatch(r"[+-]\S+ \[[+-]\S+, [+-]\S+\]").all()
    assert others["p"].astype(float).between(0, 1).all() and (losses["score"].str.contains("±")).all()
    truth, first, base = (result_row(study, "sims", row) for row in (plan.MMT, plan.PRETRAINING[0], plan.MMT))
    by_hand = np.abs(first.predictions - first.truth).mean() - np.abs(base.predictions - truth.truth).mean()
    assert float(losses[heading][0].split()[0]) == pytest.approx(by_hand, abs=6e-4)
    fusions = tables.versions(study, "sims", plan.FUSIONS, plan.MMT)
    lost = fusions[fusions["version"] == missing.name]
    assert set(lost["score"]) == {"not run"} and lost["note"].str.contains("not finished").all()
    shares = tables.labels(study, "meld")
    assert list(shares["labels"]) == ["10%", "25%", "50%", "100%"]
    assert {"pre-trained", "not pre-trained", "pre-trained minus not", "p"} <= set(shares.columns)
