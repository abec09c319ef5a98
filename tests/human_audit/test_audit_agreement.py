"""Cohen's kappa: a table worked out by hand, and its ends."""

from __future__ import annotations

from collections import Counter

import pytest

from data_engine.human_audit.agreement import agreements, cohens_kappa


def test_a_table_worked_out_by_hand():
    """Agreed on 35 of 50; by chance (25 x 30 + 25 x 20) / 2500 = 0.5, so kappa = (0.7 - 0.5) / 0.5."""
    pairs = Counter(
        {("accept", "accept"): 20, ("accept", "reject"): 5, ("reject", "accept"): 10, ("reject", "reject"): 15}
    )
    assert cohens_kappa(pairs) == pytest.approx(0.4)


def test_ends():
    assert cohens_kappa(Counter({("accept", "accept"): 3, ("reject", "reject"): 4})) == 1
    assert cohens_kappa(Counter({("accept", "reject"): 3, ("reject", "accept"): 3})) == pytest.approx(-1)
    assert cohens_kappa(Counter({("accept", "accept"): 9})) is None  # chance alone would agree always
    assert cohens_kappa(Counter()) is None


def test_only_masks_that_both_judged_count():
    verdicts = {
        "B": {1: "accept", 2: "reject", 3: "reject"},
        "A": {2: "reject", 3: "accept", 4: "accept", 5: "unsure"},
        "C": {9: "accept"},
    }
    (pair,) = agreements(verdicts)
    assert (pair.first, pair.second, pair.masks, pair.agreed) == ("A", "B", 2, 1)
