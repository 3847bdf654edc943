# SPDX-License-Identifier: Apache-2.0
"""The verdict as a whole: all hypotheses, reasons of open ones, which run is asked, and that nothing makes it raise."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework import made_results
from framework.made_verdict import exit_run, run, trip, verdict_on
from tmem_host.bench.results import Failure, Results
from tmem_host.report.verdict import Figure, Need, as_json, evaluate, lines

DECIDED_HERE = {"H3", "H4", "H5", "H6", "H7", "H9", "H12", "H13", "H14", "H15"}
WHOLE = made_results.all_results()
#: The same with fewer rounds: quicker to judge a hundred times.
SMALL = [
    make(rounds=4) for make in (made_results.exit_results, made_results.density_results, made_results.swap_results)
]
COPY = {"bare+copy-hot": 100.0, "pio": 4000.0, "cpuid": 1000.0}


def test_there_are_twenty_in_order_and_each_is_complete() -> None:
    judged = evaluate([])
    assert [j.hypothesis.id for j in judged] == [f"H{n}" for n in range(1, 21)]
    for h in (j.hypothesis for j in judged):
        assert h.claim.endswith(".")
        assert h.who
        assert "2011, message " in h.when
        assert h.experiment.endswith(".")
        assert "Supported: " in h.rule
        assert "Refuted" in h.rule
        assert h.needs
        assert h.decide.__doc__, f"{h.id}: the rule does not say why it is what it is"
        assert h.decide.__doc__.startswith(f"{h.id}. ")


def test_without_results_all_are_open_and_say_what_to_run() -> None:
    for judged in evaluate([]):
        assert judged.outcome == "open"
        assert judged.outcome_text == "not decidable here"
        assert judged.decision.because.startswith(f"there is no figure {judged.hypothesis.needs[0].name}: ")
        assert judged.decision.because.endswith(judged.hypothesis.needs[0].remedy)
    assert "run `tmem bench exit`" in verdict_on("H3").decision.because


def test_the_benches_exit_and_density_decide_what_they_are_for() -> None:
    judged = evaluate([made_results.exit_results(), made_results.density_results()])
    assert {j.hypothesis.id for j in judged if j.outcome != "open"} >= DECIDED_HERE


def test_lines_are_single_and_name_the_hypothesis() -> None:
    found = lines(evaluate(WHOLE))
    assert len(found) == 20
    assert all("\n" not in line for line in found)
    assert found[2].startswith("H3   refuted: with KVM in software (PVM or alike), the cheapest exit (cpuid) costs 7.")


def test_the_json_form_is_whole() -> None:
    found = json.loads(json.dumps(as_json(evaluate(WHOLE)), allow_nan=False))
    assert [one["id"] for one in found] == [f"H{n}" for n in range(1, 21)]
    h3 = found[2]
    assert h3["outcome"] == "refuted"
    assert h3["needs"][0] == {"bench": "exit", "metric": "round_trip", "where": {"arm": "bare+copy-hot"}}
    assert set(h3["figures"][0]) == {"label", "value", "low", "high", "unit"}


def test_the_same_results_give_the_same_verdict_in_any_order() -> None:
    assert as_json(evaluate(WHOLE)) == as_json(evaluate(list(reversed(WHOLE))))


@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from(["tcg", "kvm", ""]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_subset_of_records_makes_it_raise(seed: int, kept: float, accelerator: str) -> None:
    dice = random.Random(seed)
    some = []
    for results in SMALL:
        if dice.random() < 0.1:
            continue
        part = results.model_copy(deep=True)
        part.records = [r for r in part.records if dice.random() < kept]
        if results.bench == "swap":
            part.properties.guest = {"accelerator": accelerator} if accelerator else {}
        if dice.random() < 0.2:
            part.properties.host = {}
        some.append(part)
    judged = evaluate(some)
    assert len(judged) == 20
    json.dumps(as_json(judged), allow_nan=False)


@given(st.integers(0, 2**32), st.sampled_from([0.0, -1.0, 1.0, 1e12, 1e-12]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_absurd_figure_makes_it_raise(seed: int, value: float) -> None:
    dice = random.Random(seed)
    absurd = [results.model_copy(deep=True) for results in SMALL]
    for record in (r for results in absurd for r in results.records):
        if dice.random() < 0.3:
            record.samples = [value] * len(record.samples)
        if dice.random() < 0.1:
            count = dice.randint(1, 3)
            record.samples, record.round_sizes = record.samples[:count], []
    json.dumps(as_json(evaluate(absurd)), allow_nan=False)


def test_two_rounds_decide_nothing_and_three_with_a_caution() -> None:
    results = exit_run(COPY)
    for rounds, outcome, said in ((2, "open", "3 are the least"), (3, "refuted", "only 3 rounds"), (4, "refuted", "")):
        few = results.model_copy(deep=True)
        for record in few.records:
            record.samples, record.round_sizes = record.samples[:rounds], [1] * rounds
        judged = verdict_on("H3", few)
        assert judged.outcome == outcome
        assert said in judged.decision.because
        assert ("only" in judged.decision.because) == (rounds == 3)


def test_nothing_is_divided_by_nothing() -> None:
    judged = verdict_on("H3", exit_run({**COPY, "bare+copy-hot": 0.0}))
    assert judged.outcome == "open"
    assert "nothing can be divided by it" in judged.decision.because


def test_an_arm_that_failed_is_the_reason() -> None:
    results = exit_run({"cpuid": 1000.0, "pio": 4000.0})
    results.failures.append(
        Failure(bench="exit", dimensions={"arm": "bare+copy-hot"}, kind="skipped", reason="no memory to copy")
    )
    because = verdict_on("H3", results).decision.because
    assert "no figure exit round_trip of bare+copy-hot (skipped: no memory to copy): run `tmem bench exit`" in because


def test_a_kvm_without_a_name_is_said_to_be_unknown() -> None:
    results = exit_run(COPY)
    results.properties.host = {}
    assert "a KVM of unknown flavour" in verdict_on("H3", results).decision.because


def test_the_machine_is_named_when_there_are_several() -> None:
    other = run("density", [], host={"cpu": "Another Processor"})
    assert "alike), the" in verdict_on("H3", exit_run(COPY)).decision.because
    assert "alike) on Made-Up Processor, the" in verdict_on("H3", exit_run(COPY), other).decision.because


def _with_exit(ns: float, **how: bool | int) -> Results:
    trips = [trip("bare+copy-hot", 100), trip("pio", 4000), trip("cpuid", ns)]
    return run("exit", trips, quick=bool(how.get("quick")), day=int(how.get("day", 1)))


@pytest.mark.parametrize("order", [1, -1])
def test_which_of_several_runs_is_asked(order: int) -> None:
    def ratio(*runs: Results) -> float:
        return round(verdict_on("H3", *runs[::order]).decision.figures[0].value, 3)

    assert ratio(_with_exit(1000, day=1), _with_exit(2000, day=2)) == 20
    assert ratio(_with_exit(1000, day=1), _with_exit(2000, day=2, quick=True)) == 10
    interrupted = _with_exit(2000, day=2)
    interrupted.complete = False
    assert ratio(_with_exit(1000, day=1, quick=True), interrupted) == 10
    partial = _with_exit(2000, day=2)
    partial.records = partial.records[1:]
    assert ratio(_with_exit(1000, day=1, quick=True), partial) == 10


def test_a_guest_under_kvm_is_asked_rather_than_a_newer_emulated_one() -> None:
    real = made_results.swap_results(accelerator="kvm")
    emulated = made_results.swap_results(accelerator="tcg")
    emulated.started = emulated.started.replace(year=2030)
    assert verdict_on("H20", real, emulated).outcome == "supported"


def test_figures_and_needs_say_what_they_are() -> None:
    assert Figure("x", 12.3, 11.94, 12.84, "ratio").text == "12.3× (11.9–12.8)"
    assert Figure("x", 3.0, 3.0, 3.0, "crashes").text == "3.00 crashes"
    assert Figure("x", 0.332, 0.2851, 0.3842, "percent").text == "0.332 % (0.285–0.384)"
    need = Need("swap", "run_time", {"arm": "a", "phase": "all"})
    assert (need.name, need.remedy) == ("swap run_time of a (phase all)", "run `tmem bench swap`")
    assert Need("exit", "cpu", {}, "wait").remedy == "wait"
