"""Findings as text: nothing is lost, verdicts are counted, an error is one line."""

import pytest

from ssl_ft.doctor.finding import Finding, as_lines, has_failed, print_findings, sentence_of

FINDINGS = [
    Finding("cpu", "pass", "2 cores"),
    Finding("precision", "fail", " ".join(["figures"] * 40), "train in float32"),
    Finding("data", "cannot check", "no source"),
]


def test_lines_hold_everything_in_columns():
    lines = as_lines(FINDINGS)
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["check", "verdict", "measured,", "and", "what", "to", "do"]
    column = lines[0].index("measured")
    assert lines[1] == f"{'cpu':<11}{'pass':<{column - 11}}2 cores"
    assert " ".join(line[column:] for line in lines).count("figures") == 40
    (advice,) = (line for line in lines if "->" in line)
    assert advice == f"{'':<{column}}-> train in float32"
    assert lines[-1] == "1 pass, 1 fail, 1 cannot check"


def test_only_a_failure_is_a_failure():
    assert has_failed(FINDINGS)
    assert not has_failed([FINDINGS[0], FINDINGS[2]])


def test_no_terminal_gets_no_colour(capsys):
    print_findings(FINDINGS)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines() == as_lines(FINDINGS)


def test_a_terminal_gets_a_table_with_the_same_words(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    # Square brackets are markup to the library that draws the table.
    print_findings([Finding("data", "fail", "[red] 3 images", "mend [them]")])
    out = capsys.readouterr().out
    assert all(word in out for word in ("[red] 3 images", "mend [them]", "fail", "0 pass, 1 fail"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("two\n lines"), "ValueError: two lines"),
        (KeyError(), "KeyError"),
        (PermissionError(13, "no", "runs"), "runs cannot be read or written: Permission denied; "),
    ],
)
def test_an_error_is_one_line(error, sentence):
    assert sentence_of(error).startswith(sentence)
    assert "\n" not in sentence_of(error)
