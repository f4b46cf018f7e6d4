"""A study that processes share: each takes a trial, trains it, tells how it went; none is lost or done twice.

What a trial trains is the caller's. Who may take one is said by claims (`claims.py`): a trial whose process was
killed keeps its number and its settings, and the next one that looks trains it again.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_ft.claims import Claim, try_claim, waited_claim
from ssl_ft.errors import UserError
from ssl_ft.tuning.ladder import Ladder
from ssl_ft.tuning.optuna_parts import import_optuna, make_pruner, make_sampler, open_storage
from ssl_ft.tuning.records import TrialRecord
from ssl_ft.tuning.space import Dimension, restored, suggest

JOURNAL = "study.journal"
_CLAIMS = "claims"
# How often a trial's training was begun and not stopped by a person's wish, and the most there may be of that.
_BEGUN, _MOST_BEGUN = "begun", 3
# Between looks at trials that other processes train.
_LOOK_S = 0.2


class Pruned(Exception):  # noqa: N818 - no error, the trial is over
    """The trial is not among the best at its rung."""


class Lost(Exception):  # noqa: N818 - no error, the trial is another's
    """Another process has taken the trial over, for this one was silent too long; what it does is the other's."""


class Stopped(Exception):  # noqa: N818 - no error, the person's wish
    """The trial was stopped before its end; it will be trained again."""


@dataclass(frozen=True)
class StudyPlan:
    """What is searched and how.

    Attributes:
        name: of the study, told by all that its numbers depend on.
        space: the ranges.
        sampler: random, grid, tpe or gp.
        pruner: none, hyperband or asha.
        num_trials: trials of the study.
        seed: of the sampler.
        ladder: the rungs; None without a pruner.
        subject: told by what is tuned on what alone: studies of one subject may be compared, however they search.
    """

    name: str
    space: tuple[Dimension, ...]
    sampler: str
    pruner: str
    num_trials: int
    seed: int
    ladder: Ladder | None = None
    subject: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        value: its score; the higher the better.
        steps: training steps it took.
    """

    value: float
    steps: int


class RunningTrial:
    """A trial that this process trains.

    Args:
        claim: on it.
        trial: optuna's, of the shared study.
        values: the settings chosen for it.
        ladder: the rungs; None without a pruner.
    """

    def __init__(self, claim: Claim, trial: Any, values: dict[str, Any], *, ladder: Ladder | None) -> None:
        self.claim, self.values = claim, values
        self.number: int = trial.number
        self.steps, self.began, self.device = 0, time.monotonic(), ""
        self._trial, self._judged_below = trial, math.inf if ladder is None else ladder.top
        self._known = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    @property
    def is_mine(self) -> bool:
        """Whether no other process has taken it over."""
        return self.claim.is_mine()

    def report(self, step: int, value: float, *, is_last: bool) -> None:
        """Say how good the trial is after some steps.

        Args:
            step: steps done.
            value: its score so far.
            is_last: nothing is left to save by stopping it.

        Raises:
            Pruned: it is to be stopped.
            Lost: it is another's.
        """
        self.steps = step
        if not math.isfinite(value):
            return
        if not self.is_mine:
            raise Lost
        # A trial that is trained again says the same once more, and was judged by it then.
        if step not in self._known:
            self._trial.report(value, step)
        is_judged = not is_last and max(self._known, default=0) <= step < self._judged_below
        if is_judged and self._trial.should_prune():
            raise Pruned


class SharedStudy:
    """The study in a run folder; the folder must exist.

    Raises:
        UserError: the folder's journal is damaged, or another study's.
    """

    def __init__(self, folder: Path, plan: StudyPlan) -> None:
        self.plan, self._optuna = plan, import_optuna()
        self.claims = folder / _CLAIMS
        self.claims.mkdir(exist_ok=True)
        path = folder / JOURNAL
        with waited_claim(self.claims / "study"):
            self._storage = open_storage(path)
            names = self._optuna.get_all_study_names(self._storage)
            if names not in ([], [plan.name]):
                raise UserError(
                    f"{path} holds the study {names[0]}, and these settings make it {plan.name}: it was begun with "
                    "other settings, or by another version; choose another out="
                )
            self._study = self._optuna.create_study(
                storage=self._storage,
                study_name=plan.name,
                direction="maximize",
                load_if_exists=True,
                sampler=self._optuna.samplers.RandomSampler(seed=0),  # asks nothing: see `_begin`
                pruner=make_pruner(plan.pruner, plan.ladder),
            )

    def take(self, *, should_stop: Callable[[], bool] = bool) -> RunningTrial | None:
        """A trial to train: one that a dead process left behind, else a new one; None where there is none just now."""
        with waited_claim(self.claims / "study", should_stop=should_stop) as is_held:
            if not is_held:
                return None
            known = self._study.get_trials(deepcopy=False)
            for trial in known:
                if not trial.state.is_finished() and (claim := try_claim(self._claim_path(trial.number))) is not None:
                    # It may have ended between the look and the claim.
                    now = self._study.get_trials(deepcopy=False)[trial.number]
                    if not now.state.is_finished() and now.user_attrs.get(_BEGUN, 0) < _MOST_BEGUN:
                        return self._begin(trial.number, claim, trial_id=trial._trial_id)
                    if not now.state.is_finished():
                        self._give_up(now)
                    claim.path.unlink(missing_ok=True)
            number = len(known)
            if number < self.plan.num_trials and (claim := try_claim(self._claim_path(number))) is not None:
                return self._begin(number, claim, trial_id=None)
        return None

    def _begin(self, number: int, claim: Claim, *, trial_id: int | None) -> RunningTrial:
        # Trials are chosen without the pruner: with it, a sampler would learn from trials of one bracket alone.
        asked = self._optuna.load_study(
            storage=self._storage,
            study_name=self.plan.name,
            sampler=make_sampler(self.plan.sampler, self.plan.space, seed=self.plan.seed, number=number),
            pruner=self._optuna.pruners.NopPruner(),
        )
        # optuna has no public way back to a trial that was begun; values chosen then are read, others chosen now.
        chosen = asked.ask() if trial_id is None else self._optuna.trial.Trial(asked, trial_id)
        assert chosen.number == number, "trials are begun under the study's claim"
        frozen = self._storage.get_trial(chosen._trial_id)

        def redraw(name: str, distribution: Any) -> None:
            # As many draws as at the first time: a process may have been killed between two settings of a trial.
            asked.sampler.sample_independent(asked, frozen, name, distribution)

        draws_each = self.plan.sampler in ("random", "tpe") and len(frozen.params) < len(self.plan.space)
        values = suggest(chosen, self.plan.space, redraw=redraw if draws_each else None)
        self._storage.set_trial_user_attr(chosen._trial_id, _BEGUN, frozen.user_attrs.get(_BEGUN, 0) + 1)
        shared = self._optuna.trial.Trial(self._study, chosen._trial_id)
        return RunningTrial(claim, shared, values, ladder=self.plan.ladder)

    def _give_up(self, trial: Any) -> None:
        """End a trial that ended every process that trained it: the kernel stops what takes too much memory."""
        reason = f"its process was ended {_MOST_BEGUN} times while it was trained; it may take too much memory"
        self._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def put_back(self, trial: RunningTrial) -> None:
        """Leave a trial that was stopped by a person's wish: it ended no process."""
        begun = self._storage.get_trial(trial._trial._trial_id).user_attrs.get(_BEGUN, 1)
        self._storage.set_trial_user_attr(trial._trial._trial_id, _BEGUN, begun - 1)

    def _claim_path(self, number: int) -> Path:
        return self.claims / f"trial-{number:04d}"

    def tell(self, trial: RunningTrial, state: str, *, value: float | None = None, reason: str = "") -> None:
        """Say that a trial is over.

        Args:
            trial: this process's own.
            state: complete, pruned or failed.
            value: of a complete one.
            reason: of a failed one.

        Raises:
            Lost: it is another's.
        """
        if not trial.is_mine:
            raise Lost
        attributes = {
            "steps": trial.steps, "seconds": round(time.monotonic() - trial.began, 3), "device": trial.device,
            "reason": reason,
        }  # fmt: skip
        states = self._optuna.trial.TrialState
        try:
            for name, told in attributes.items():
                trial._trial.set_user_attr(name, told)
            self._study.tell(
                trial.number,
                value,
                state={"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state],
                skip_if_finished=True,
            )
        except self._optuna.exceptions.UpdateFinishedTrialError as error:
            raise Lost from error

    @property
    def num_done(self) -> int:
        """Trials that are over."""
        return sum(trial.state.is_finished() for trial in self._study.get_trials(deepcopy=False))

    @property
    def is_done(self) -> bool:
        """Whether all trials are over."""
        return self.num_done >= self.plan.num_trials

    def records(self) -> tuple[TrialRecord, ...]:
        """Every trial, by number."""
        trials = self._study.get_trials(deepcopy=False)
        ended = sorted((t for t in trials if t.state.is_finished()), key=lambda t: (t.datetime_complete, t.number))
        places = {trial.number: place for place, trial in enumerate(ended)}
        return tuple(self._record(trial, places.get(trial.number)) for trial in trials)

    def _record(self, trial: Any, place: int | None) -> TrialRecord:
        states = self._optuna.trial.TrialState
        names = {states.COMPLETE: "complete", states.PRUNED: "pruned", states.FAIL: "failed"}
        state = names.get(trial.state, "running")
        return TrialRecord.model_validate(
            {
                "number": trial.number,
                "place": place,
                "state": state,
                "value": trial.value if state == "complete" else None,
                "steps": trial.user_attrs.get("steps", 0),
                "seconds": trial.user_attrs.get("seconds", 0.0),
                "settings": restored(trial.params, self.plan.space),
                "reports": sorted(trial.intermediate_values.items()),
                "reason": trial.user_attrs.get("reason", ""),
                "device": trial.user_attrs.get("device", ""),
            }
        )

    def importances(self) -> dict[str, float]:
        """What share of the variance of completed trials' values each setting explains; empty where none can be told.

        fANOVA (Hutter et al. 2014, "An efficient approach for assessing hyperparameter importance").
        """
        trials = [
            t for t in self._study.get_trials(deepcopy=False) if t.value is not None and t.state.name == "COMPLETE"
        ]
        if len(trials) < 4 or len({trial.value for trial in trials}) < 2:
            return {}
        evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = self._optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: round(float(share), 6) for name, share in shares.items()}


def work_on(
    study: SharedStudy,
    *,
    train: Callable[[RunningTrial], Outcome],
    should_stop: Callable[[], bool],
    on_trial: Callable[[TrialRecord], None],
) -> bool:
    """Train trials together with whoever else does; come back when all are over, whoever trained them.

    Args:
        study: the study.
        train: trains a trial, reporting; may raise `UserError` where its settings lead nowhere.
        should_stop: whether the person wants to stop.
        on_trial: called with each trial of this process that ended.

    Returns:
        Whether all trials are over.
    """
    while not study.is_done:
        if should_stop():
            return False
        taken = study.take(should_stop=should_stop)
        if taken is None:
            time.sleep(_LOOK_S)
            continue
        with taken.claim:
            try:
                _train_one(study, taken, train)
            except Stopped:
                study.put_back(taken)
                return False
            except Lost:
                continue
        on_trial(study.records()[taken.number])
    return True


def _train_one(study: SharedStudy, taken: RunningTrial, train: Callable[[RunningTrial], Outcome]) -> None:
    try:
        outcome = train(taken)
    except Pruned:
        study.tell(taken, "pruned")
    except UserError as error:
        study.tell(taken, "failed", reason=str(error))
    else:
        taken.steps = outcome.steps
        study.tell(taken, "complete", value=outcome.value)
