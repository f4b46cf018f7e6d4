"""A shared study: every trial once, killed ones again with their settings, pruning saves steps; foreign journals."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_ft.errors import UserError
from ssl_ft.tuning.ladder import Ladder
from ssl_ft.tuning.records import TrialRecord
from ssl_ft.tuning.study import JOURNAL, Lost, Outcome, Pruned, RunningTrial, SharedStudy, Stopped, work_on
from tests.conftest import CHECKOUT
from tests.tuning.studies import GRID, STEPS, plan_of, run, score, train


def told(study: SharedStudy) -> list[tuple[object, ...]]:
    """What a study found, without clocks."""
    return [(t.number, t.state, t.value, t.steps, t.settings, t.reports) for t in study.records()]


def start(folder: Path, sampler: str = "random", pruner: str = "none", trials: int = 12) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "tests.tuning.studies", str(folder), sampler, pruner, str(trials)]
    return subprocess.Popen(words, cwd=CHECKOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_same_study_says_the_same_and_another_seed_another(tmp_path):
    first = told(run(tmp_path / "a", plan_of("random", num_trials=4)))
    assert told(run(tmp_path / "b", plan_of("random", num_trials=4))) == first
    assert told(run(tmp_path / "c", plan_of("random", num_trials=4, seed=1))) != first
    assert [each[0] for each in first] == list(range(4))


def test_tpe_learns_from_earlier_trials_and_repeats_itself(tmp_path):
    first = told(run(tmp_path / "a", plan_of("tpe", num_trials=20, pruner="hyperband")))
    # Its first ten are drawn at random.
    apart = [abs(math.log10(each[4]["optim.rate"]) + 2) for each in first]
    assert sum(apart[10:]) / 10 < sum(apart[:10]) / 10
    assert told(run(tmp_path / "b", plan_of("tpe", num_trials=20, pruner="hyperband"))) == first


@pytest.mark.slow
def test_a_gaussian_process_finds_the_middle(tmp_path):
    study = run(tmp_path / "gp", plan_of("gp", num_trials=12))
    values = [trial.value for trial in study.records()]
    assert max(values[10:]) > max(values[:10])


def test_a_grid_visits_each_point_once(tmp_path):
    study = run(tmp_path / "grid", plan_of("grid", num_trials=18))
    points = Counter(json.dumps(trial.settings, sort_keys=True) for trial in study.records())
    expected = {
        json.dumps({"share": share, "depth": depth, "name": name}, sort_keys=True)
        for share in GRID[0].values()
        for depth in (1, 2)
        for name in ("a", "b", None)
    }
    assert set(points) == expected
    assert set(points.values()) == {1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialRecord, ...]:
    """Thirty trials that nothing stops."""
    return run(tmp_path_factory.mktemp("plain"), plan_of("random", num_trials=30)).records()


# Hyperband's brackets have few trials at first, which pass a rung by being the best of two or three.
@pytest.mark.parametrize(("pruner", "most"), [("hyperband", 0.7), ("asha", 0.4)])
def test_pruning_takes_fewer_steps_and_keeps_the_best(plain, tmp_path, pruner, most):
    study = run(tmp_path / "pruned", plan_of("random", num_trials=30, pruner=pruner)).records()
    # The sampler does not know of the pruner: the same settings in the same order.
    assert [t.settings for t in study] == [t.settings for t in plain]
    assert sum(t.steps for t in plain) == 30 * STEPS
    assert sum(t.steps for t in study) < most * 30 * STEPS
    assert {t.state for t in study} == {"complete", "pruned"}
    best = max(plain, key=lambda t: t.value)
    # Scores that never cross: whoever is best at the end is best at every rung.
    assert study[best.number].state == "complete"
    assert study[best.number].value == best.value
    assert {t.steps for t in study if t.state == "pruned"} <= {1, 3, 9}
    assert all(t.value is None for t in study if t.state == "pruned")


def test_a_trial_at_its_last_step_is_not_pruned(tmp_path):
    study, ends = SharedStudy(tmp_path, plan_of("random", pruner="asha")), []
    for value, is_last in ((1.0, False), (-9.0, True), (-9.0, False)):
        trial = study.take()
        with trial.claim:
            try:
                trial.report(1, value, is_last=is_last)
                ends.append("goes on")
                study.tell(trial, "complete", value=value)
            except Pruned:
                ends.append("pruned")
                study.tell(trial, "pruned")
    assert ends == ["goes on", "goes on", "pruned"]
    assert [t.state for t in study.records()] == ["complete", "complete", "pruned"]


def test_a_trial_past_its_last_rung_is_not_pruned(tmp_path):
    study = SharedStudy(tmp_path, replace(plan_of("random", pruner="asha"), ladder=Ladder(1, 3, 10)))
    for step, value, is_pruned in ((8, 1.0, False), (9, -9.0, False), (8, -9.0, True)):
        trial = study.take()
        with trial.claim, pytest.raises(Pruned) if is_pruned else nullcontext():
            trial.report(step, value, is_last=False)
        study._study.tell(trial.number, value)


def test_a_stopped_trial_is_trained_again_with_its_number_and_settings(tmp_path):
    whole = told(run(tmp_path / "whole", plan_of("tpe", pruner="hyperband")))
    study, seen = SharedStudy(tmp_path, plan_of("tpe", pruner="hyperband")), []

    def interrupted(trial):
        seen.append((trial.number, trial.values))
        if len(seen) == 5:
            trial.report(1, score(trial.values, 1), is_last=False)
            raise Stopped
        return train(trial)

    assert not work_on(study, train=interrupted, should_stop=lambda: False, on_trial=lambda record: None)
    assert [t.state for t in study.records()][-1] == "running"
    again = run(tmp_path, plan_of("tpe", pruner="hyperband"))
    assert told(again) == whole
    assert seen[4] == (4, again.records()[4].settings)


def test_a_mistake_in_a_trial_is_kept_with_its_reason_and_the_study_goes_on(tmp_path):
    study, records = SharedStudy(tmp_path, plan_of("random", num_trials=3)), list[TrialRecord]()

    def fails(trial):
        if trial.number == 1:
            raise UserError("the loss is not finite any more")
        return train(trial)

    assert work_on(study, train=fails, should_stop=lambda: False, on_trial=records.append)
    assert [t.state for t in records] == ["complete", "failed", "complete"]
    assert records[1].reason == "the loss is not finite any more"
    assert study.is_done


def test_a_score_that_is_not_a_number_is_not_reported(tmp_path):
    trial = SharedStudy(tmp_path, plan_of("random", pruner="asha")).take()
    with trial.claim:
        trial.report(1, math.nan, is_last=False)
    assert trial.steps == 1


def test_a_wish_to_stop_ends_the_work_between_trials(tmp_path):
    study = SharedStudy(tmp_path, plan_of("random"))
    done: list[TrialRecord] = []
    assert not work_on(study, train=train, should_stop=lambda: len(done) >= 2, on_trial=done.append)
    assert (len(done), study.num_done) == (2, 2)


@pytest.mark.slow
def test_two_processes_share_a_study_and_no_trial_is_doubled(tmp_path):
    both = [start(tmp_path / "two", trials=12), start(tmp_path / "two", trials=12)]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
    shared = SharedStudy(tmp_path / "two", plan_of("random", num_trials=12)).records()
    assert [t.number for t in shared] == list(range(12))
    alone = run(tmp_path / "one", plan_of("random", num_trials=12)).records()
    # Random settings depend on a trial's number alone, whoever trains it.
    assert [(t.settings, t.value, t.reports) for t in shared] == [(t.settings, t.value, t.reports) for t in alone]


@pytest.mark.slow
def test_killed_and_gone_on_with_no_trial_is_lost_or_doubled(tmp_path):
    folder = tmp_path / "run"
    for least in (3, 6):
        process = start(folder, "grid", trials=18)
        while not (folder / JOURNAL).is_file() or (folder / JOURNAL).read_text().count('"state":1') < least:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    study = run(folder, plan_of("grid", num_trials=18))
    alone = run(tmp_path / "alone", plan_of("grid", num_trials=18))
    assert told(study) == told(alone)


def test_a_line_that_was_not_written_whole_is_cut_off(tmp_path):
    study = run(tmp_path, plan_of("random", num_trials=2))
    before = told(study)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"work')
    again = run(tmp_path, plan_of("random", num_trials=3))
    assert told(again)[:2] == before
    assert len(told(again)) == 3


def test_a_line_that_another_writer_did_not_end_is_cut_off_by_who_writes_next(tmp_path):
    """A full disk stopped one process in mid-line; the other, never started anew, goes on."""
    tmp_path.joinpath("run").mkdir()
    study = SharedStudy(tmp_path / "run", plan_of("random", num_trials=3))

    def torn(trial: RunningTrial) -> Outcome:
        if trial.number == 1:
            with (tmp_path / "run" / JOURNAL).open("ab") as file:
                file.write(b'{"op_code":7,"wor')
        return train(trial)

    assert work_on(study, train=torn, should_stop=lambda: False, on_trial=lambda record: None)
    assert told(study) == told(run(tmp_path / "whole", plan_of("random", num_trials=3)))
    assert told(SharedStudy(tmp_path / "run", plan_of("random", num_trials=3))) == told(study)


def test_a_trial_taken_over_is_left_to_the_other(tmp_path):
    study = SharedStudy(tmp_path, plan_of("random", num_trials=2))
    mine = study.take()
    assert mine is not None
    mine.claim.path.write_text("{}")  # this process was silent too long
    with pytest.raises(Lost):
        mine.report(1, 0.5, is_last=False)
    with pytest.raises(Lost):
        study.tell(mine, "complete", value=0.5)
    assert study.records()[0].state == "running"
    assert study.records()[0].reports == ()


def test_a_trial_that_ends_every_process_is_given_up(tmp_path):
    plan = plan_of("random", num_trials=2)
    for _ in range(3):
        taken = SharedStudy(tmp_path, plan).take()
        assert taken is not None
        assert taken.number == 0
        taken.claim.path.unlink()  # as that of a process that is gone
    study = run(tmp_path, plan)
    first, second = study.records()
    assert first.state == "failed"
    assert "ended 3 times while it was trained" in first.reason
    assert second.state == "complete"


def test_a_person_may_stop_a_trial_as_often_as_they_like(tmp_path):
    plan = plan_of("random", num_trials=1)

    def stopped(trial: RunningTrial) -> Outcome:
        raise Stopped

    for _ in range(5):
        study = SharedStudy(tmp_path, plan)
        assert not work_on(study, train=stopped, should_stop=lambda: False, on_trial=lambda record: None)
    assert run(tmp_path, plan).records()[0].state == "complete"


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_killed_between_two_settings_a_trial_gets_those_it_would_have_had(tmp_path, sampler):
    whole = run(tmp_path / "whole", plan_of(sampler, num_trials=2)).records()
    for number in range(1, 3):  # settings chosen before the end
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        study = SharedStudy(folder, plan_of(sampler, num_trials=2))
        taken = study.take()
        assert taken is not None
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
        chosen = [place for place, line in enumerate(lines) if b'"param_name"' in line]
        (folder / JOURNAL).write_bytes(b"".join(lines[: chosen[number - 1] + 1]))
        taken.claim.path.unlink()
        assert run(folder, plan_of(sampler, num_trials=2)).records()[0].settings == whole[0].settings


def test_the_lock_of_a_dead_process_keeps_nobody_waiting(tmp_path):
    from ssl_ft import claims

    run(tmp_path, plan_of("random", num_trials=1))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = {"host": claims.socket.gethostname(), "pid": ended.pid, "boot": claims._boot(), "nonce": "0"}
    (tmp_path / f"{JOURNAL}.lock").write_text(json.dumps(mark))
    began = time.monotonic()
    run(tmp_path, plan_of("random", num_trials=2))
    assert time.monotonic() - began < 20
    assert not (tmp_path / f"{JOURNAL}.lock").exists()


def test_a_journal_of_another_study_is_refused(tmp_path):
    run(tmp_path, plan_of("random", num_trials=1))
    with pytest.raises(UserError, match=r"holds the study toy, and these settings make it other"):
        SharedStudy(tmp_path, plan_of("random", name="other"))


@pytest.mark.parametrize(
    "content", [b"hello\n", b'{"op_code":', b'{"op_code":99,"a":1}\n{"op_code":77}\n', b"\x00\x01"]
)
def test_what_is_no_journal_is_refused_or_mended(tmp_path, content):
    (tmp_path / JOURNAL).write_bytes(content)
    if content == b'{"op_code":':  # a first line cut off: nothing is lost with it
        assert run(tmp_path, plan_of("random", num_trials=1)).num_done == 1
        return
    with pytest.raises(UserError, match=r"is no journal of a study"):
        SharedStudy(tmp_path, plan_of("random"))
