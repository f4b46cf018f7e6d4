"""optuna, imported when it is first needed: its samplers and pruners as a study wants them, and its journal in a file.

Samplers are made anew for each trial, seeded by its number, so that nothing of them has to be stored.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_ft.claims import Claim, try_claim
from ssl_ft.errors import UserError
from ssl_ft.seeding import derive_seed
from ssl_ft.tuning.ladder import Ladder
from ssl_ft.tuning.space import Dimension, grid_values

# Between looks at a journal that somebody else writes.
_LOOK_S = 0.005


def import_optuna() -> Any:
    """The package optuna, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("tune needs the package optuna; pip install '.[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def unproven() -> Iterator[None]:
    """While open, optuna does not warn that a part of it may change: its version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_optuna().exceptions.ExperimentalWarning)
        yield


def make_sampler(name: str, space: tuple[Dimension, ...], *, seed: int, number: int) -> Any:
    """The sampler of one trial.

    Args:
        name: random, grid, tpe or gp.
        space: what is searched.
        seed: of the study.
        number: of the trial. The grid's order is one for all.
    """
    samplers = import_optuna().samplers
    own = derive_seed(seed, "tune", *([] if name == "grid" else [number])) % 2**31
    with unproven():
        match name:
            case "random":
                return samplers.RandomSampler(seed=own)
            case "grid":
                return samplers.GridSampler(grid_values(space), seed=own)
            case "tpe":
                # Trials that run elsewhere count as bad ones, so that two workers do not try the same.
                return samplers.TPESampler(seed=own, constant_liar=True)
            case "gp":
                return samplers.GPSampler(seed=own)
    raise AssertionError(f"no sampler {name!r}")


def make_pruner(name: str, ladder: Ladder | None) -> Any:
    """The pruner of a study; without rungs it stops nothing."""
    pruners = import_optuna().pruners
    if name == "none" or ladder is None:
        return pruners.NopPruner()
    if name == "asha":
        return pruners.SuccessiveHalvingPruner(
            min_resource=ladder.first, reduction_factor=ladder.reduction, min_early_stopping_rate=0
        )
    # One more than the top: the number of brackets is the logarithm of a quotient, rounded down.
    return pruners.HyperbandPruner(
        min_resource=ladder.first, max_resource=ladder.top + 1, reduction_factor=ladder.reduction
    )


def open_storage(journal: Path) -> Any:
    """optuna's storage in a journal that many processes may share.

    Raises:
        UserError: it is no journal, or damaged.
    """
    optuna = import_optuna()
    lock = ClaimLock(journal.absolute())
    _check_is_journal(journal)
    lock.acquire()
    lock.release()
    backend = optuna.storages.journal.JournalFileBackend(str(journal.absolute()), lock_obj=lock)
    try:
        return optuna.storages.JournalStorage(backend)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{journal} is no journal of a study, or damaged; start anew with another out=") from error


class ClaimLock:
    """A lock on the journal in optuna's sense: a claim, which a process that was killed holds no longer.

    optuna's own locks are taken from a dead owner after half a minute. The file's name is the one they use, so that
    other programs with the journal open, such as its dashboard, wait for it.
    """

    def __init__(self, journal: Path) -> None:
        self.journal, self.path = journal, journal.with_name(f"{journal.name}.lock")
        self._claim: Claim | None = None

    def acquire(self) -> bool:
        """Wait for the lock; then a last line that its writer did not end, the disk being full, is cut off.

        What is appended to such a line would be lost with it.
        """
        claim = try_claim(self.path)
        while claim is None:
            time.sleep(_LOOK_S)
            claim = try_claim(self.path)
        self._claim = claim
        self._mend()
        return True

    def _mend(self) -> None:
        if not self.journal.is_file() or not self.journal.stat().st_size:
            return
        with self.journal.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def release(self) -> None:
        """Give it back."""
        claim, self._claim = self._claim, None
        if claim is not None and claim.is_mine():
            self.path.unlink(missing_ok=True)


def _check_is_journal(path: Path) -> None:
    """See that a file, where there is one, begins as a journal does.

    Raises:
        UserError: it is something else.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        begin = file.read(10)
    if begin and not begin.startswith(b'{"op_code"'[: len(begin)]):
        raise UserError(f"{path} is no journal of a study; start anew with another out=")
