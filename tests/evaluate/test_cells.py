"""Cells on disk: whole or absent, read back as they were, damage and mix-ups told."""

from dataclasses import fields

import numpy as np
import pytest

from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import (
    Cell,
    CellKey,
    all_keys,
    cell_path,
    failure_path,
    is_over,
    num_over,
    read_cell,
    read_failure,
    write_cell,
    write_failure,
)

KEY = CellKey("simclr", "probe", 2, 0, 1)
CELL = Cell(
    np.array([3, 0], np.int16), np.array([0.5, 1.0], np.float16), ("a=1", "b=2"), 0.25, None, 7, 10, 20, 1.5, 0.5, 99.0
)


@pytest.mark.parametrize("budget", [2, 0.1, "all"])
def test_a_cell_comes_back_as_it_was(tmp_path, budget):
    key = CellKey("simclr", "probe", budget, 0, 1)
    write_cell(tmp_path, key, CELL)
    found = read_cell(tmp_path, key)
    for field in fields(Cell):
        ours, theirs = getattr(CELL, field.name), getattr(found, field.name)
        np.testing.assert_array_equal(ours, theirs) if isinstance(ours, np.ndarray) else None
        assert isinstance(ours, np.ndarray) or ours == theirs
    assert [p.name for p in tmp_path.iterdir()] == [f"{key.name}.npz"]


def test_keys_are_all_there_once_and_all_labels_have_one_draw():
    keys = all_keys(["a", "b"], ["probe", "full"], [2, "all"], draws=3, seeds=range(2))
    assert len(keys) == len({key.name for key in keys}) == 2 * 2 * (3 + 1) * 2
    assert {key.draw for key in keys if key.budget == "all"} == {0}


def test_a_damaged_cell_says_what_to_do(tmp_path):
    write_cell(tmp_path, KEY, CELL)
    path = cell_path(tmp_path, KEY)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot be read .*delete it, and the same command computes it anew"):
        read_cell(tmp_path, KEY)


def test_a_renamed_cell_is_not_taken_for_another(tmp_path):
    write_cell(tmp_path, KEY, CELL)
    other = CellKey("simclr", "probe", 10, 0, 1)
    cell_path(tmp_path, KEY).rename(cell_path(tmp_path, other))
    with pytest.raises(UserError, match=r"is the cell simclr--probe--2--draw0--seed1, renamed"):
        read_cell(tmp_path, other)


def test_pickles_are_refused(tmp_path):
    np.savez(cell_path(tmp_path, KEY), about=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        read_cell(tmp_path, KEY)


def test_a_failed_write_leaves_nothing(tmp_path):
    cell_path(tmp_path, KEY).mkdir()
    with pytest.raises(OSError, match="directory"):
        write_cell(tmp_path, KEY, CELL)
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY.name}.npz"]


def test_a_failed_cell_is_over_and_tells_why(tmp_path):
    assert (is_over(tmp_path, KEY), read_failure(tmp_path, KEY), num_over(tmp_path)) == (False, None, 0)
    write_failure(tmp_path, KEY, "the loss stopped being finite")
    write_cell(tmp_path, CellKey("simclr", "full", "all", 0, 0), CELL)
    (tmp_path / f".{KEY.name}.npz.1.partial").write_bytes(b"PK")
    assert is_over(tmp_path, KEY)
    assert read_failure(tmp_path, KEY) == "the loss stopped being finite"
    assert num_over(tmp_path) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"cannot be read .*delete it"), ('{"key": {}}', r"cannot be read"), (None, r"is the cell .*seed1, renamed")],
)
def test_a_damaged_or_renamed_failure_says_what_to_do(tmp_path, text, message):
    key = CellKey("simclr", "probe", 10, 0, 1)
    write_failure(tmp_path, KEY, "it diverged")
    failure_path(tmp_path, KEY).rename(failure_path(tmp_path, key))
    if text is not None:
        failure_path(tmp_path, key).write_text(text)
    with pytest.raises(UserError, match=message):
        read_failure(tmp_path, key)
