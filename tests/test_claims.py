"""Claims: one owner at a time, the dead are taken over, the living are not, and no work is lost or done twice."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_ft import claims
from ssl_ft.claims import try_claim, waited_claim, work_through
from tests.conftest import CHECKOUT


def dead_mark(**changes: object) -> str:
    """A claim of a process of this machine that ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark = {"host": claims.socket.gethostname(), "pid": ended.pid, "boot": claims._boot(), "nonce": "0"}
    return json.dumps({**mark, **changes})


def test_a_claim_has_one_owner_and_is_given_back(tmp_path):
    claim = try_claim(tmp_path / "a")
    assert claim is not None
    with claim:
        assert try_claim(tmp_path / "a") is None
        assert try_claim(tmp_path / "b") is not None
    assert not (tmp_path / "a").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"], "drafts are cleared away"


def test_a_dead_process_loses_its_claim(tmp_path):
    (tmp_path / "a").write_text(dead_mark())
    claim = try_claim(tmp_path / "a")
    assert claim is not None
    assert json.loads((tmp_path / "a").read_text())["pid"] == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_claim_from_before_a_restart_is_judged_by_its_age(tmp_path):
    # Its process number may be somebody else's by now: only silence tells.
    (tmp_path / "a").write_text(dead_mark(boot="another", pid=os.getpid()))
    assert try_claim(tmp_path / "a") is None
    old = time.time() - claims.SILENCE_S - 1
    os.utime(tmp_path / "a", (old, old))
    assert try_claim(tmp_path / "a") is not None


def test_another_machine_lives_while_it_touches_its_claim(tmp_path, monkeypatch):
    (tmp_path / "a").write_text(dead_mark(host="another"))
    assert try_claim(tmp_path / "a") is None, "its process number means nothing here"
    old = time.time() - claims.SILENCE_S - 1
    os.utime(tmp_path / "a", (old, old))
    claim = try_claim(tmp_path / "a")
    assert claim is not None
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.01)
    os.utime(tmp_path / "a", (old, old))
    with claim:
        deadline = time.monotonic() + 60
        while (tmp_path / "a").stat().st_mtime < old + 1:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.01)


def test_a_claim_taken_over_is_not_given_back_by_its_first_owner(tmp_path):
    claim = try_claim(tmp_path / "a")
    assert claim is not None
    with claim:
        (tmp_path / "a").write_text("another's")
    assert (tmp_path / "a").read_text() == "another's"


def test_a_damaged_claim_is_judged_by_its_age(tmp_path):
    (tmp_path / "a").write_text("{")
    assert try_claim(tmp_path / "a") is None
    old = time.time() - claims.SILENCE_S - 1
    os.utime(tmp_path / "a", (old, old))
    assert try_claim(tmp_path / "a") is not None


def test_a_claim_put_back_where_a_living_one_was_moved_away(tmp_path):
    # Somebody took over between our look and our rename: theirs is put back.
    (tmp_path / "a").write_text("theirs")
    assert not claims._remove(tmp_path / "a", "the dead one's")
    assert (tmp_path / "a").read_text() == "theirs"


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*paths: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    assert try_claim(tmp_path / "a") is not None
    assert try_claim(tmp_path / "a") is None


def test_waiting_ends_with_the_claim_or_with_the_wish_to_stop(tmp_path):
    held = try_claim(tmp_path / "a")
    assert held is not None
    with waited_claim(tmp_path / "a", should_stop=lambda: True) as has_it:
        assert not has_it
    (tmp_path / "a").unlink()
    with waited_claim(tmp_path / "a") as has_it:
        assert has_it


def test_work_stops_between_pieces(tmp_path):
    done: list[str] = []
    stopped = work_through(
        tmp_path, ["1", "2", "3"], is_done=done.__contains__, work=done.append, should_stop=lambda: len(done) == 2
    )
    assert (stopped, done) == (False, ["1", "2"])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_piece_gives_its_claim_back(tmp_path):
    def fail(name: str) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="1"):
        work_through(tmp_path, ["1"], is_done=lambda name: False, work=fail, should_stop=bool)
    assert list(tmp_path.iterdir()) == []


def _count(folder: str, names: list[str], seconds: float) -> None:
    """A worker: each piece appends a line to a log and leaves its result."""
    top = Path(folder)

    def work(name: str) -> None:
        time.sleep(seconds)
        with (top / "log").open("a") as log:
            log.write(f"{name}\n")
        (top / "done" / name).touch()

    work_through(
        top / "claims", names, is_done=lambda name: (top / "done" / name).exists(), work=work, should_stop=bool
    )


@pytest.mark.dist
def test_many_workers_do_each_piece_once_though_one_is_killed(tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "done").mkdir()
    names = [f"{n:02d}" for n in range(40)]
    # A dead process holds some claims from the start: all workers see them at once, and one takes each.
    for name in names[:10]:
        (tmp_path / "claims" / name).write_text(dead_mark())
    fork = multiprocessing.get_context("forkserver")
    workers = [fork.Process(target=_count, args=(str(tmp_path), names, 0.03)) for _ in range(4)]
    for worker in workers:
        worker.start()
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().split()) < 8:
        assert any(worker.is_alive() for worker in workers), "all ended before one could be killed"
        time.sleep(0.005)
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(300)
    counted = sorted((tmp_path / "log").read_text().split())
    # Killed between its line and its result, the one killed may leave a piece to be done again: results are whole.
    assert sorted(set(counted)) == names
    assert len(counted) <= len(names) + 1
    # Killed between its result and giving the claim back, it leaves a claim on what is done, which keeps nobody; or,
    # killed while it made one, the draft of a claim.
    left = [claim.name for claim in (tmp_path / "claims").iterdir() if not claim.name.startswith(".")]
    assert len(left) <= 1
    assert all((tmp_path / "done" / name).exists() for name in left)


def test_the_module_needs_no_torch():
    code = "import sys, ssl_ft.claims; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


def test_a_process_of_another_container_is_judged_by_its_claims_age(tmp_path):
    """With one host name and one start of the machine, its number says nothing here."""
    (tmp_path / "a").write_text(dead_mark(born="1 pid:[1]"))
    assert try_claim(tmp_path / "a") is None
    old = time.time() - claims.SILENCE_S - 1
    os.utime(tmp_path / "a", (old, old))
    assert try_claim(tmp_path / "a") is not None


def test_a_number_given_to_another_process_keeps_no_claim(tmp_path):
    """Small process numbers are soon taken again."""
    claim = try_claim(tmp_path / "a")
    assert claim is not None
    told = json.loads((tmp_path / "a").read_text())
    (tmp_path / "b").write_text(json.dumps(told))
    assert try_claim(tmp_path / "b") is None
    (tmp_path / "b").write_text(json.dumps(told | {"born": f"1 {told['born'].split()[-1]}"}))
    assert try_claim(tmp_path / "b") is not None
