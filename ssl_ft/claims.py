"""Work shared out through files: who creates a claim owns the work, and a claim without a heartbeat is taken over.

A folder that all processes see is enough: workers on one machine, or several machines on a shared one. What is
claimed is the caller's; a result is written whole or not at all, so that a piece done twice by mistake does no harm.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

# A holder touches its claim this often; shared folders tell of it seconds late.
HEARTBEAT_S = 5.0
# Without a touch for this long a holder on another machine counts as dead.
SILENCE_S = 60.0
# Between looks at a claim that somebody else holds.
_LOOK_S = 0.2


class Claim:
    """A claim this process holds; as a context it is kept alive by a thread and given back at the end.

    Args:
        path: the claim's file, which this process made.
        mark: what it wrote into it, by which it knows its own.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path, self.mark = path, mark
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        # Taken over while this process was stopped or asleep, it is another's to give back.
        if self.is_mine():
            self.path.unlink(missing_ok=True)

    def is_mine(self) -> bool:
        """Whether the claim is still this one's."""
        return _read(self.path) == self.mark

    def _beat(self) -> None:
        while not self._is_over.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(self.path)


def try_claim(path: Path) -> Claim | None:
    """The claim on `path`, or None while a living process holds it; a dead one's claim is taken over.

    A process is dead where its number is gone from this machine, or its claim has not been touched for `SILENCE_S`.
    The folder of `path` must exist.
    """
    mark = json.dumps(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot": _boot(),
            "born": _born(os.getpid()),
            "nonce": os.urandom(8).hex(),
        }
    )
    if not _create(path, mark):
        before = _read(path)
        if before is None or not _is_dead(path, before) or not _remove(path, before):
            return None
        if not _create(path, mark):
            return None
    return Claim(path, mark)


@contextmanager
def waited_claim(path: Path, *, should_stop: Callable[[], bool] = bool) -> Iterator[bool]:
    """Hold the claim on `path` while open, waiting for it; gives False, without it, once `should_stop()` says so."""
    claim = try_claim(path)
    while claim is None and not should_stop():
        time.sleep(_LOOK_S)
        claim = try_claim(path)
    if claim is None:
        yield False
        return
    with claim:
        yield True


def _create(path: Path, mark: str) -> bool:
    """Make the file with its mark in one step: a claim half written would have no owner."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.{os.urandom(4).hex()}")
    draft.write_text(mark, encoding="utf-8")
    try:
        os.link(draft, path)  # fails where the name is taken, on NFS as well
    except FileExistsError:
        return False
    except OSError:
        return _create_exclusively(path, mark)  # a file system without hard links
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, mark: str) -> bool:
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write(mark)
    return True


def _remove(path: Path, mark: str) -> bool:
    """Take a dead claim away, unless somebody else was quicker: renamed first, which only one process can."""
    grave = path.with_name(f".{path.name}.dead.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return False
    is_it = _read(grave) == mark
    if not is_it:
        # Between the look and the rename the dead claim became a living one: it is put back where none came since.
        with suppress(FileExistsError, OSError):
            os.link(grave, path)
    grave.unlink(missing_ok=True)
    return is_it


def _is_dead(path: Path, mark: str) -> bool:
    try:
        told = json.loads(mark)
        host, pid, boot, born = str(told["host"]), int(told["pid"]), str(told["boot"]), str(told.get("born", ""))
    except (ValueError, KeyError, TypeError):
        host, pid, boot, born = "", 0, "", ""
    # Of another container on this machine the number says nothing here.
    is_seen = not born or not _born(os.getpid()) or born.split()[-1] == _born(os.getpid()).split()[-1]
    if host == socket.gethostname() and boot == _boot() and is_seen:
        return not _is_running(pid) or (bool(born) and _born(pid) != born)
    try:
        # The folder's own clock: two machines' clocks may differ by more than a heartbeat.
        return _now_at(path.parent) - path.stat().st_mtime > SILENCE_S
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A killed child is there until its parent asks after it; it works no more.
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def _born(pid: int) -> str:
    """When a process started and in which namespace, by which its number given to another one later is told apart."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, IndexError):
        return ""


def _now_at(folder: Path) -> float:
    probe = folder / f".clock.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _boot() -> str:
    """This start of this machine, so that a process number from before a restart is not mistaken for a living one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def work_through(
    folder: Path,
    names: Sequence[str],
    *,
    is_done: Callable[[str], bool],
    work: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Do all named pieces of work together with whoever else does; come back when all are done, whoever did them.

    While others hold the last claims this waits, so that it can take over what a dead one leaves behind.

    Args:
        folder: where claims lie; it must exist.
        names: the pieces, names of files.
        is_done: whether a piece's result is there, whole.
        work: does a piece and leaves its result.
        should_stop: asked between pieces.

    Returns:
        False where it stopped before the end.
    """
    left = list(names)
    while left := [name for name in left if not is_done(name)]:
        has_worked = False
        for name in left:
            if should_stop():
                return False
            claim = None if is_done(name) else try_claim(folder / name)
            if claim is None:
                continue
            with claim:
                # Done by another between the look and the claim.
                if not is_done(name):
                    work(name)
                has_worked = True
        if not has_worked:
            if should_stop():
                return False
            time.sleep(_LOOK_S)
    return True
