# SPDX-License-Identifier: Apache-2.0
"""Two runs compared: what differs is found, what is unlike is refused by name, and what is weak says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from framework.made_results import density_results, exit_results
from tmem_host import cli
from tmem_host.bench import stats
from tmem_host.bench.results import Record, Results
from tmem_host.errors import InvalidInput
from tmem_host.report.compare import Comparison, as_json, compare
from tmem_host.report.unlike import GROUPS, differences, refuse


def made(medians: list[float], *, arm: str = "pio", better: str | None = "lower", **dimensions: int) -> Record:
    samples = [m * x for m in medians for x in (0.99, 1.0, 1.01)]
    return Record(
        bench="exit",
        metric="round_trip",
        unit="ns",
        dimensions={"arm": arm, **dimensions},
        samples=samples,
        round_sizes=[3] * len(medians),
        better=better,
    )


def run(*records: Record) -> Results:
    results = Results(bench="exit", started=datetime(2026, 1, 1, tzinfo=UTC), command=[], seed=1, complete=True)
    results.records = list(records)
    return results


SLOW, FAST = [110.0, 111.0, 112.0, 113.0, 114.0], [100.0, 101.0, 102.0, 103.0, 104.0]


@pytest.mark.parametrize(
    ("a", "b", "better", "change"),
    [
        (FAST, SLOW, "lower", "worse"),
        (SLOW, FAST, "lower", "better"),
        (FAST, SLOW, "higher", "better"),
        (FAST, SLOW, None, "higher"),
        (SLOW, FAST, None, "lower"),
        (FAST, FAST, "lower", "none shown"),
        (FAST[:3], SLOW[:3], "lower", "too few rounds"),
        (FAST, SLOW[:1], "lower", "too few rounds"),
    ],
)
def test_a_change_is_named(a: list[float], b: list[float], better: str | None, change: str) -> None:
    (pair,) = compare(run(made(a, better=better)), run(made(b, better=better))).pairs
    assert pair.change == change
    assert pair.ratio is not None
    assert pair.ratio.low <= pair.ratio.value <= pair.ratio.high


def test_a_ratio_is_b_over_a_and_its_rounds_are_not_paired() -> None:
    (pair,) = compare(run(made(FAST)), run(made([2 * x for x in FAST]))).pairs
    assert pair.ratio is not None
    assert pair.ratio.value == pytest.approx(2)
    # Paired, every resample would give exactly 2.
    assert pair.ratio.low < 1.99
    assert pair.ratio.high > 2.01
    assert stats.ratio([2.0, 4.0], [1.0, 2.0], [1, 1], [1, 1]).high == 2


def test_no_ratio_to_zero() -> None:
    (pair,) = compare(run(made([0.0] * 5)), run(made([0.0] * 5))).pairs
    assert pair.ratio is None
    assert pair.change == "none shown"


def test_records_are_matched_by_their_dimensions_and_named_by_what_tells_them_apart() -> None:
    a = run(made(FAST, depth=1), made(FAST, depth=8), made(FAST, arm="mmio", bits=64), made(FAST, arm="old"))
    b = run(made(FAST, depth=8), made(SLOW, depth=1), made(FAST, arm="mmio", bits=64), made(FAST, arm="new"))
    found = compare(a, b)
    assert {p.label: p.change for p in found.pairs} == {
        "round_trip pio (depth 1)": "worse",
        "round_trip pio (depth 8)": "none shown",
        "round_trip mmio": "none shown",
    }
    assert (found.only_a, found.only_b) == (["round_trip old"], ["round_trip new"])
    assert any("Only in A, and not compared: round_trip old." in s for s in found.sentences)


def test_the_harness_is_not_compared() -> None:
    assert compare(run(made(FAST, arm="harness")), run(made(FAST, arm="harness"))).pairs == []


def test_few_rounds_are_told() -> None:
    found = compare(run(made(FAST[:2])), run(made(SLOW[:2])))
    assert "1 of 1 records have too few rounds" in found.sentences[0]
    assert "0.333" in found.sentences[0]


def test_a_busy_machine_is_told() -> None:
    a, b = run(made(FAST)), run(made(FAST))
    a.notes = ["a goal: reached"]
    b.notes = ["Others used 57% of the machine's CPU time at the start of the run: repeat it when it is idle."]
    assert compare(a, b).sentences[0].startswith("B: Others used 57%")
    assert not any("goal" in s for s in compare(a, b).sentences)


def test_what_chance_alone_would_give_is_told_and_corrected_for() -> None:
    found = compare(exit_results(seed=1), exit_results(seed=2))
    assert len(found.pairs) > 200
    assert len(found.standing) <= len(found.differing) < 0.12 * len(found.tested)
    assert any("chance alone would give about" in s for s in found.sentences)
    slower = compare(exit_results(seed=1), exit_results(seed=2, slower=1.3))
    assert {"round_trip pio", "round_trip mmio", "cpu irqfd-sleep"} <= {p.label for p in slower.standing}
    assert "round_trip bare+put" not in {p.label for p in slower.standing}


def unlike_bench(r: Results) -> None:
    r.bench = "density"


def unlike_unit(r: Results) -> None:
    r.records[0].unit = "cycles"


def unlike_dimensions(r: Results) -> None:
    r.records[0].dimensions["depth"] = 1


def unlike_quick(r: Results) -> None:
    r.quick = not r.quick


def unlike_complete(r: Results) -> None:
    r.complete = False


def unlike_host(r: Results) -> None:
    r.properties.host["cpu"] = "Another"


def unlike_memory(r: Results) -> None:
    r.properties.host["memory_bytes"] = 16 << 30


def unlike_kvm(r: Results) -> None:
    r.properties.host["kvm_flavour"] = "hardware (VT-x)"


def unlike_accelerator(r: Results) -> None:
    r.properties.guest["accelerator"] = "kvm"


def unlike_guest(r: Results) -> None:
    r.properties.guest["memory_mib"] = 96


def unlike_configuration(r: Results) -> None:
    r.properties.configuration["codec"] = "zstd"


@pytest.mark.parametrize(
    ("change", "name", "group"),
    [
        (unlike_bench, "bench (exit / density)", None),
        (unlike_unit, "unit of round_trip (ns / cycles, ns)", None),
        (unlike_dimensions, "dimensions of round_trip (arm, bits, kind, path, work / arm, bits, depth, kind", None),
        (unlike_quick, "quick (yes / no)", "quick"),
        (unlike_complete, "complete (yes / no)", "complete"),
        (unlike_host, "host.cpu (Made-Up Processor 9000 v4 @ 2.40GHz / Another)", "host"),
        (unlike_memory, "host.memory_bytes", "host"),
        (unlike_kvm, "kvm (software", "kvm"),
        (unlike_accelerator, "accelerator (not recorded / kvm)", "accelerator"),
        (unlike_guest, "guest.memory_mib (not recorded / 96)", "guest"),
        (unlike_configuration, "configuration.codec (lz4 / zstd)", "configuration"),
    ],
)
def test_unlike_runs_are_refused_by_name(change: Callable[[Results], None], name: str, group: str | None) -> None:
    a, b = exit_results(), exit_results()
    change(b)
    found = differences(a, b)
    with pytest.raises(InvalidInput) as refused:
        refuse(found, [])
    assert name in refused.value.message
    if group is None:
        assert "--allow" not in refused.value.hint
        with pytest.raises(InvalidInput):
            refuse(found, GROUPS)
    else:
        assert f"--allow {group}" in refused.value.hint
        assert refuse(found, [group]) == found != []
        assert refuse(found, [found[0].name]) == found


def test_like_runs_are_not_refused_and_what_may_differ_may() -> None:
    a, b = exit_results(seed=1), exit_results(seed=2)
    b.properties.configuration |= {"disk_dir": "/elsewhere", "busy_end": 0.5}
    b.properties.host |= {"commit": "other", "load": [3.0], "memory_bytes": (8 << 30) + 4096}
    b.records = [r for r in b.records if r.dimensions.get("work") != "device"]
    assert refuse(differences(a, b), []) == []


def test_an_unknown_name_cannot_be_allowed() -> None:
    with pytest.raises(InvalidInput, match="--allow bench is not"):
        refuse([], ["bench"])


def test_json_says_all_that_the_text_says() -> None:
    found: Comparison = compare(exit_results(seed=1), exit_results(seed=2, slower=1.3))
    told = json.loads(json.dumps(as_json(found)))
    assert len(told["records"]) == len(found.pairs)
    pio = next(r for r in told["records"] if r["dimensions"]["arm"] == "pio" and r["metric"] == "round_trip")
    assert pio["change"] == "worse"
    assert pio["stands_after_correction"] is True
    assert pio["ratio"]["low"] <= pio["ratio"]["value"] <= pio["ratio"]["high"]
    assert told["notes"] == found.sentences


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    made_up = {
        "a": exit_results(seed=1),
        "b": exit_results(seed=2, slower=1.3),
        "few": exit_results(seed=3, rounds=2),
        "other": density_results(),
    }
    return {name: results.write(tmp_path / name).parent for name, results in made_up.items()}


def tmem(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_compare_command(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tmem("report", "compare", runs["a"], runs["b"] / "results.json", capsys=capsys)
    assert code == 0
    assert "round_trip pio" in out
    assert "worse" in out
    assert "KVM: software (PVM or alike" in out
    code, out, err = tmem("report", "compare", runs["a"], runs["other"], capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "bench (exit / density)" in err
    code, out, _ = tmem("report", "compare", runs["few"], runs["few"], "--all", "--json", capsys=capsys)
    assert code == 0
    assert "too few rounds" in json.loads(out)["notes"][0]
    code, out, _ = tmem("report", "compare", runs["a"], runs["few"], "--allow", "configuration", capsys=capsys)
    assert code == 0
    assert "unlike, and allowed to be: configuration.rounds (5 / 2)" in out
    code, _, err = tmem("report", "compare", runs["a"], runs["a"] / "nothing", capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)


def test_page_and_verdict_commands(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tmem("report", "page", runs["a"], runs["other"], "--out", tmp_path / "all", capsys=capsys)
    assert code == 0
    assert "report.html" in out
    assert "sync-store" in out
    assert (tmp_path / "all" / "report.html").exists()
    code, out, _ = tmem("report", "verdict", runs["a"], runs["other"], capsys=capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [f"H{n}" for n in range(1, 21)]
    code, out, _ = tmem("report", "verdict", runs["a"], "--json", capsys=capsys)
    assert code == 0
    assert len(json.loads(out)["verdict"]) == 20
