# SPDX-License-Identifier: Apache-2.0
"""`tmem bench all`: what is run, kept and remembered; what becomes of benches that crash, fail, hang or are ended."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import fake_benches
from tmem_host import cli
from tmem_host.bench import all_bench, all_child, all_estimate, all_plan, runner
from tmem_host.bench.all_child import Ended, Interrupts
from tmem_host.bench.all_outcome import Outcome, exit_code, judge
from tmem_host.bench.all_plan import ORDER, Setting
from tmem_host.bench.progress import NoProgress
from tmem_host.bench.progress_pipe import Event, decode
from tmem_host.bench.results import Failure, Record, Results
from tmem_host.errors import Conflict, InvalidInput

QUICK = Setting(quick=True, seed=1)
#: Seconds for what takes one on an idle machine.
PATIENCE = 120


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMEM_CACHE", str(tmp_path / "cache"))


def results(command: str, *, complete: bool = True, **host: str | int) -> Results:
    """Results of a run of `command`, with a figure."""
    argv = command.split()
    made = Results.model_validate(
        {
            "bench": argv[2],
            "started": "2026-01-01T00:00:00Z",
            "command": argv,
            "quick": "--quick" in argv,
            "seed": 1,
            "complete": complete,
        }
    )
    made.records.append(Record(bench=argv[2], metric="latency", unit="ns", dimensions={"arm": "a"}, samples=[1.0]))
    made.properties.host.update(host)
    return made


# ---- plan


def test_all_benches_there_are_have_a_place() -> None:
    # What measures the agent itself, or a guest that somebody else runs, supports no claim about exits.
    assert sorted([*ORDER, "api", "guest"]) == sorted(runner.MODULES)


@pytest.mark.parametrize(
    ("only", "skip", "names"),
    [
        (None, None, list(ORDER)),
        ("store,exit", None, ["exit", "store"]),
        (None, "swap, channel", ["exit", "store", "density"]),
        ("store,swap", "swap", ["store"]),
    ],
)
def test_benches_are_chosen_in_their_order(only: str | None, skip: str | None, names: list[str]) -> None:
    assert all_plan.choose(only, skip) == names


@pytest.mark.parametrize(("only", "skip"), [("tea", None), (None, "tea"), ("swap", "swap"), ("", None)])
def test_a_choice_that_cannot_be_is_refused(only: str | None, skip: str | None) -> None:
    with pytest.raises(InvalidInput):
        all_plan.choose(only, skip)


def test_options_go_to_their_bench_and_the_disk_to_all_that_use_one() -> None:
    found = all_plan.options_of(["store.rounds=3", "swap.a=x=y"], Path("/d"), list(ORDER))
    assert found == {
        "exit": {"disk_dir": "/d"},
        "store": {"rounds": "3"},
        "channel": {},
        "swap": {"disk_dir": "/d", "a": "x=y"},
        "density": {"disk_dir": "/d"},
    }


@pytest.mark.parametrize("text", ["rounds=3", "tea.rounds=3", "store.rounds", "swap.rounds=3"])
def test_an_option_of_no_bench_that_runs_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        all_plan.options_of([text], None, ["store"])


def test_the_command_of_a_result_is_its_setting_again() -> None:
    setting = Setting(True, 7, {"rounds": "3", "disk_dir": "/d", "vms": "1,10", "part": "a=b"})
    made = results("tmem bench density")
    made.command = ["tmem", *setting.arguments("density")]
    made.quick, made.seed = True, 7
    assert all_plan.setting_of(made) == setting


def test_a_setting_is_the_same_however_it_is_written() -> None:
    one = Setting(True, 1, {"factor": "1", "disk_dir": "/d/"})
    assert all_plan.same(one, Setting(True, 1, {"disk_dir": "/d", "factor": "1.0"}))
    for other in (Setting(False, 1, one.options), Setting(True, 2, one.options), Setting(True, 1, {"factor": "1"})):
        assert not all_plan.same(one, other)


def test_what_is_complete_is_kept_and_what_is_not_runs_again() -> None:
    command = "tmem bench store --quick --seed 1 --rounds 3"
    wanted = Setting(True, 1, {"rounds": "3"})
    assert all_plan.keep("store", results(command), wanted, {})
    assert not all_plan.keep("store", results(command, complete=False), wanted, {})
    assert not all_plan.keep("store", None, wanted, {})


def test_another_setting_or_machine_is_refused() -> None:
    command = "tmem bench store --quick --seed 1"
    for complete in (True, False):
        with pytest.raises(Conflict, match=r"--quick --seed 1, not --quick --seed 1 rounds=3"):
            all_plan.keep("store", results(command, complete=complete), Setting(True, 1, {"rounds": "3"}), {})
    with pytest.raises(Conflict, match="another setting"):
        all_plan.keep("store", results(command), Setting(False, 1), {})
    with pytest.raises(Conflict, match="cpus was 2, is 4"):
        all_plan.keep("store", results(command, cpus=2), QUICK, {"cpus": 4})


def test_the_command_that_goes_on_is_complete() -> None:
    settings = {"store": Setting(True, 2, {"rounds": "3"}), "swap": Setting(True, 2)}
    assert shlex.join(all_plan.again(settings, Path("o"))) == (
        "tmem bench all --quick --seed 2 --only store,swap --set store.rounds=3 --out o --resume"
    )


# ---- estimate


def test_times_are_as_last_time_then_as_with_other_options_then_as_anywhere(tmp_path: Path) -> None:
    tiny = Setting(True, 1, {"rounds": "1"})
    times = all_estimate.load(tmp_path)
    assert all_estimate.expected("store", tiny, times) == all_estimate.FIRST_TIME["store"][0]
    all_estimate.remember(tmp_path, "store", QUICK, 33)
    assert all_estimate.expected("store", tiny, all_estimate.load(tmp_path)) == 33
    all_estimate.remember(tmp_path, "store", tiny, 4)
    times = all_estimate.load(tmp_path)
    assert all_estimate.expected("store", tiny, times) == 4
    assert all_estimate.expected("store", QUICK, times) == 33
    assert all_estimate.expected("store", Setting(False, 1), times) == all_estimate.FIRST_TIME["store"][1]
    assert sorted(all_estimate.FIRST_TIME) == sorted(ORDER)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "x"}', "{"])
def test_a_cache_that_cannot_be_read_is_no_cache(tmp_path: Path, text: str) -> None:
    (tmp_path / all_estimate.TIMES_FILE).write_text(text, encoding="utf-8")
    assert all_estimate.load(tmp_path) == {}
    (tmp_path / "file").touch()
    all_estimate.remember(tmp_path / "file", "store", QUICK, 1)


def test_time_left_is_what_the_bench_says_or_what_is_expected() -> None:
    assert all_estimate.time_left(60, 10, None, [30, 5]) == 85
    assert all_estimate.time_left(60, 10, 70, [30]) == 100
    assert all_estimate.time_left(60, 100, None, []) == 0
    assert all_estimate.limit(10) == 900
    assert all_estimate.limit(200) == 2000


# ---- progress between processes


def test_events_survive_the_pipe_and_rubbish_is_none() -> None:
    for event in (Event("plan", steps=3), Event("step", "round 1/2: é", left=2.5), Event("note", "x")):
        assert decode(event.encode()) == event
    for line in (b"", b"{", b"[]", b"3", b'{"kind": "tea", "text": "", "steps": 0, "left": null}'):
        assert decode(line) is None


# ---- outcome


def test_outcomes_by_how_the_process_ended() -> None:
    done = results("tmem bench store --quick --seed 1")
    half = results("tmem bench store --quick --seed 1", complete=False)
    assert judge("store", Ended(0, 1), done, "").state == "measured"
    assert judge("store", Ended(0, 1, "interrupt"), done, "").state == "measured"
    assert judge("store", Ended(130, 1, "interrupt"), done, "").state == "measured"
    assert judge("store", Ended(130, 1, "interrupt"), half, "").state == "interrupted"
    assert judge("store", Ended(-9, 1, "interrupt"), half, "").state == "interrupted"
    assert judge("store", Ended(130, 1), half, "").state == "interrupted"
    for ended, found, reason in (
        (Ended(-11, 1), half, "SIGSEGV"),
        (Ended(-11, 1), done, "SIGSEGV"),
        (Ended(-9, 1), None, "out of memory"),
        (Ended(130, 1, "limit"), half, "did not end within"),
        (Ended(2, 1), None, "no such option"),
    ):
        outcome = judge("store", ended, found, "tmem: no such option")
        assert outcome.state == "failed"
        assert reason in outcome.reason
    assert "status 3" in judge("store", Ended(3, 1), None, "").reason


def test_arms_without_a_number_are_counted() -> None:
    done = results("tmem bench store")
    done.failures.append(Failure(bench="store", dimensions={"arm": "zram"}, kind="skipped", reason="no root"))
    outcome = judge("store", Ended(0, 1), done, "")
    assert (outcome.state, outcome.skipped) == ("measured", ("zram: no root",))
    assert outcome.fine
    done.failures.append(Failure(bench="store", dimensions={"contents": "corpus"}, reason="no guest"))
    outcome = judge("store", Ended(1, 1), done, "")
    assert (outcome.state, outcome.failed) == ("arms failed", ("corpus: no guest",))
    assert outcome.said() == "measured; arms: 1 failed, 1 skipped"


def test_exit_codes() -> None:
    fine, bad, ended = Outcome("exit", "measured"), Outcome("store", "failed"), Outcome("swap", "not run")
    assert exit_code([fine, Outcome("swap", "skipped")], False) == 0
    assert exit_code([fine], True) == 0
    assert exit_code([fine, bad], False) == 1
    assert exit_code([fine, Outcome("swap", "arms failed")], False) == 1
    assert exit_code([fine, bad, ended], True) == 130
    assert exit_code([fine, Outcome("swap", "interrupted")], False) == 1


# ---- runs


def run(out: Path, do: dict[str, str], *, resume: bool = False, limit: float | None = None) -> all_bench.Summary:
    """A run of the named benches, each told what to do."""
    settings = {name: Setting(True, 1, {} if what == "measure" else {"do": what}) for name, what in do.items()}
    with Interrupts() as stop:
        return all_bench.run_all(settings, out, resume=resume, limit=limit, view=NoProgress(), stop=stop)


@pytest.fixture
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_child, "PROGRAM", fake_benches.PROGRAM)


@pytest.mark.usefixtures("_fakes")
def test_a_bench_that_crashes_or_fails_has_no_number_and_the_others_run(tmp_path: Path) -> None:
    done = run(
        tmp_path, {"exit": "crash", "store": "measure", "channel": "unavailable", "swap": "late", "density": "skip"}
    )
    assert done.code == 1
    assert [o.state for o in done.outcomes] == ["failed", "measured", "failed", "failed", "skipped"]
    for name, reason in (
        ("exit", "crashed: SIGSEGV"),
        ("channel", "there is no such device (plug it in)"),
        ("swap", "a figure does not add up"),
    ):
        found = Results.read(tmp_path / name)
        assert found.arms() == []
        assert not found.complete
        assert reason in found.failures[-1].reason
        assert reason in done.report.read_text(encoding="utf-8") if done.report else False
    assert Results.read(tmp_path / "exit" / all_bench.UNFINISHED_FILE).find("latency", arm="a")
    assert "Segmentation fault" in (tmp_path / "exit" / all_bench.LOG_FILE).read_text(encoding="utf-8")
    assert Results.read(tmp_path / "store").find("latency", arm="a")[0].samples == [1, 2, 1, 2]


@pytest.mark.usefixtures("_fakes")
def test_resumed_what_is_complete_is_kept_and_the_rest_runs_again(tmp_path: Path) -> None:
    first = run(tmp_path, {"store": "measure", "swap": "arm-fails"})
    assert (first.code, [o.state for o in first.outcomes]) == (1, ["measured", "arms failed"])
    (tmp_path / "store" / "results.json").write_text(
        (tmp_path / "store" / "results.json").read_text(encoding="utf-8").replace('"complete": true', '"complete": 0')
    )
    before = (tmp_path / "swap" / "results.json").read_bytes()
    second = run(tmp_path, {"store": "measure", "swap": "arm-fails"}, resume=True)
    assert [(o.state, o.kept) for o in second.outcomes] == [("measured", False), ("arms failed", True)]
    assert (tmp_path / "swap" / "results.json").read_bytes() == before
    with pytest.raises(Conflict, match="swap are of another setting"):
        run(tmp_path, {"store": "measure", "swap": "measure"}, resume=True)
    third = run(tmp_path, {"store": "measure", "swap": "measure"})
    assert (third.code, [o.kept for o in third.outcomes]) == (0, [False, False])


@pytest.mark.usefixtures("_fakes")
def test_a_bench_that_dies_before_it_measures_is_in_the_report(tmp_path: Path) -> None:
    done = run(tmp_path, {"store": "no-results"})
    assert (done.code, done.outcomes[0].state) == (1, "failed")
    assert done.report is not None
    assert "crashed: SIGSEGV" in done.report.read_text(encoding="utf-8")


@pytest.mark.usefixtures("_fakes")
def test_a_bench_that_cannot_be_started_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_child, "PROGRAM", (str(tmp_path / "missing"),))
    done = run(tmp_path, {"store": "measure"})
    assert (done.code, done.outcomes[0].state) == (1, "failed")
    assert "missing" in Results.read(tmp_path / "store").failures[0].reason


@pytest.mark.usefixtures("_fakes")
@pytest.mark.parametrize("do", ["hang", "stubborn"])
def test_a_bench_that_hangs_is_ended_at_its_limit(tmp_path: Path, do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_child, "_INSIST", 0.2)
    monkeypatch.setattr(all_child, "_FORCE", 0.4)
    marker = tmp_path / "store" / fake_benches.HANGS
    # The limit has passed as soon as it hangs.
    monkeypatch.setattr(all_child, "monotonic", lambda: time.monotonic() + (1e6 if marker.exists() else 0))
    done = run(tmp_path, {"store": do}, limit=1e5)
    assert done.outcomes[0].state == "failed"
    assert "did not end within" in done.outcomes[0].reason
    assert not alive(int(marker.read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits for the condition, which must come before the process ends."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """`tmem bench all` with stand-ins for the benches; the store hangs."""
    argv = [*fake_benches.PROGRAM, "bench", "all", "--quick", "--out", str(out), "--set", "store.do=hang", *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_was_measured_and_makes_the_report(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    marker = out / "store" / fake_benches.HANGS
    process = start(out, "--only", "exit,store,swap")
    try:
        until(marker.exists, process)
        process.send_signal(number)

        def over() -> bool:
            # Again and again until the report is there: neither the bench's end nor the report is cut off.
            if not (out / "report.html").exists():
                process.send_signal(number)
                return process.poll() is not None
            return True

        until(over)
        said, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, errors
    assert not alive(int(marker.read_text()))
    assert said.splitlines()[-1] == f"report: {out}/report.html"
    assert f"tmem bench all --quick --seed 1 --only exit,store,swap --set store.do=hang --out {out} --resume" in said
    assert Results.read(out / "exit").complete
    store = Results.read(out / "store")
    assert not store.complete
    assert store.find("latency", arm="a")
    assert any(note.startswith("Interrupted") for note in store.notes)
    assert not (out / "swap").exists()
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    assert "exit, store, swap: about" in errors


def test_killed_outright_it_takes_its_bench_along(tmp_path: Path) -> None:
    marker = tmp_path / "store" / fake_benches.HANGS
    process = start(tmp_path, "--only", "store")
    try:
        until(marker.exists, process)
        process.kill()
        process.communicate()
        until(lambda: not alive(int(marker.read_text())))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("_fakes")
def test_the_summary_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "all", "--quick", "--json", "--only", "store,swap", "--set", "swap.do=crash"]
    assert cli.run([*argv, "--out", str(tmp_path)]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [(b["name"], b["state"]) for b in data["benches"]] == [("store", "measured"), ("swap", "failed")]
    assert data["report"] == str(tmp_path / "report.html")
    assert data["exit_code"] == 1
    assert isinstance(data["verdict"], list)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--resume"], 2, "--out"),
        (["--only", "tea"], 2, "exit, store, channel, swap, density"),
        (["--set", "rounds=1"], 2, "BENCH.NAME=VALUE"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "all", *arguments]) == code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert words in said.err
