# SPDX-License-Identifier: Apache-2.0
"""The results format: what is written can be read, what is not the format is refused with what to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from tmem_host.bench import results as format_
from tmem_host.bench.results import Failure, Record, Results, ResultsError


def made_up() -> Results:
    return Results(
        bench="swap",
        started=datetime(2026, 11, 23, tzinfo=UTC),
        command=["tmem", "bench", "swap"],
        seed=7,
        records=[
            Record(
                bench="swap",
                metric="fault_latency",
                unit="ns",
                dimensions={"arm": "tmem-lz4", "depth": 1, "verified": True},
                samples=[1, 2.5, 3],
                round_sizes=[1, 2],
                better="lower",
            ),
            Record(bench="swap", metric="run_time", unit="s", dimensions={"arm": "disk"}, samples=[9]),
            Record(bench="swap", metric="clock_cost", unit="ns", dimensions={"arm": "harness"}, samples=[50]),
        ],
        failures=[Failure(bench="swap", dimensions={"arm": "zram"}, kind="skipped", reason="no zram")],
    )


def test_written_results_are_read_back_equal(tmp_path: Path) -> None:
    written = made_up()
    written.write(tmp_path)
    assert Results.read(tmp_path) == written
    assert Results.read(tmp_path / "results.json") == written


def test_the_committed_schema_is_the_models() -> None:
    committed = Path(format_.__file__).with_name(format_.SCHEMA_FILE).read_text(encoding="utf-8")
    assert committed == format_.json_schema(), "run: python -m tmem_host.bench.results > the schema file"


def test_what_is_written_obeys_the_schema(tmp_path: Path) -> None:
    made_up().write(tmp_path)
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(data, json.loads(format_.json_schema()))
    assert data["schema"] == "tmem-results/1"


def test_types_of_dimensions_survive(tmp_path: Path) -> None:
    made_up().write(tmp_path)
    dimensions = Results.read(tmp_path).records[0].dimensions
    assert dimensions == {"arm": "tmem-lz4", "depth": 1, "verified": True}
    assert type(dimensions["depth"]) is int
    assert type(dimensions["verified"]) is bool


def test_one_line_per_record(tmp_path: Path) -> None:
    made_up().write(tmp_path)
    lines = (tmp_path / "results.json").read_text(encoding="utf-8").splitlines()
    assert sum('"metric":' in line for line in lines) == 3


@pytest.mark.parametrize("samples", [[], [float("nan")], [float("inf")]])
def test_a_record_needs_finite_samples(samples: list[float]) -> None:
    with pytest.raises(ValidationError):
        Record(bench="b", metric="m", unit="s", dimensions={}, samples=samples)


def test_rounds_must_add_up() -> None:
    with pytest.raises(ValidationError, match="add up"):
        Record(bench="b", metric="m", unit="s", dimensions={}, samples=[1, 2], round_sizes=[1])


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        Record.model_validate({"bench": "b", "metric": "m", "unit": "s", "dimensions": {}, "samples": [1], "mean": 1})


def test_arms_leave_out_the_harness() -> None:
    assert made_up().arms() == ["tmem-lz4", "disk"]


def test_find_matches_all_dimensions_given() -> None:
    results = made_up()
    assert [r.samples for r in results.find("fault_latency", arm="tmem-lz4", depth=1)] == [[1, 2.5, 3]]
    assert results.find("fault_latency", depth=2) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "schema None"),
        ('{"schema": "tmem-results/9"}', "tmem-results/9"),
        ('{"schema": "tmem-results/1", "bench": "x"}', "not valid at"),
    ],
)
def test_what_is_not_the_format_is_refused_with_a_hint(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match=message) as caught:
        Results.read(tmp_path)
    assert caught.value.hint


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no results at"):
        Results.read(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    file.write_text("old", encoding="utf-8")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        format_.write_atomic(file, "new")
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_parts_of_a_bench_have_rounds_of_their_own() -> None:
    results = made_up()
    assert results.rounds == 0
    # arms of one name may differ in size
    results.arm_order = [["a", "a", "b"], ["b", "a", "a"], ["c"], ["c"], ["c"]]
    assert results.rounds == 3
