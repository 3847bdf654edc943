# SPDX-License-Identifier: Apache-2.0
"""The verdict on the page: first, complete, decided claims as cards, the others with their reason, all escaped."""

from __future__ import annotations

import re
from html import escape

import pytest

from framework.made_results import all_results, channel_results, exit_results, store_results
from tmem_host.report.page import ORDER, render
from tmem_host.report.verdict import Decision, Figure, Hypothesis, Judged, Outcome, evaluate
from tmem_host.report.verdict_html import SHOWN, verdict_part


def judged(number: int, outcome: Outcome, because: str = "it is so", figures: int = 1) -> Judged:
    hypothesis = Hypothesis(
        f"H{number}",
        f"claim {number} & <more>",
        "Somebody",
        "31 Oct 2011, message 1b2e-4f@x.com; 31 Oct 2011, message 5c; 1 Nov 2011",
        "the experiment",
        "the rule",
        (),
        lambda _: Decision(outcome, because),
    )
    found = tuple(Figure(f"figure {i}", 1.5, 1.4, 1.6, "ratio") for i in range(figures))
    return Judged(hypothesis, Decision(outcome, because, found))


def test_decided_claims_are_cards_and_the_others_are_listed() -> None:
    text = verdict_part([judged(1, "open"), judged(2, "refuted"), judged(3, "supported")], [exit_results()])
    assert re.findall(r'<article class="card (\w+)" id="(H\d+)"', text) == [("refuted", "H2"), ("supported", "H3")]
    assert re.findall(r'<li id="(H\d+)"', text) == ["H1"]
    assert "<b>1</b> not decidable here" in text
    assert text.count("claim 1 &amp; &lt;more&gt;") == 1
    assert "1.50× (1.40–1.60)" in text


def test_each_claim_says_who_when_and_why() -> None:
    text = verdict_part([judged(2, "refuted", "see `tmem bench exit`: a < b")], [exit_results()])
    assert "Somebody, 31 Oct 2011; 1 Nov 2011</p>" in text
    assert "message 1b2e-4f@x.com" in text
    assert "See <code>tmem bench exit</code>: a &lt; b" in text
    assert "the experiment" in text
    assert "the rule" in text


def test_many_figures_are_folded() -> None:
    text = verdict_part([judged(2, "refuted", figures=SHOWN + 1)], [exit_results()])
    assert "1 more figure</summary>" in text
    assert text.count("<dt>") == SHOWN + 1


def test_the_machine_is_named_once_for_each() -> None:
    one, other = exit_results(), store_results()
    assert verdict_part([], [one, other]).count('<p class="machine">Made-Up Processor') == 1
    other.properties.host["kvm_flavour"] = "absent"
    text = verdict_part([], [one, other])
    assert '<p class="machine">exit: Made-Up' in text
    assert '<p class="machine">store: Made-Up' in text


def test_the_page_has_the_verdict_then_the_benches_from_exit_to_guest() -> None:
    text = render(all_results())
    assert re.findall(r'<section id="(\w+)"', text) == ["verdict", *ORDER]
    for claim in evaluate(all_results()):
        assert text.count(f'id="{claim.hypothesis.id}"') == 1
        assert escape(claim.hypothesis.claim) in text


def test_claims_that_one_bench_cannot_decide_are_folded_away() -> None:
    assert '<details class="undecided"><summary>Not decidable here, and why (20)' in render([channel_results()])


@pytest.mark.parametrize("count", [1, 2])
def test_two_runs_of_a_bench_have_ids_of_their_own(count: int) -> None:
    ids = re.findall(r'\bid="([^"]+)"', render([exit_results(seed=n) for n in range(count)]))
    assert len(ids) == len(set(ids))
    assert ("exit-2-ladder" in ids) == (count == 2)
