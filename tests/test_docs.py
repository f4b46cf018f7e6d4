"""The documents hold: commands parse, settings and recipes exist, links and files are there, the tree is the tree.

Nothing is trained, and prose is not judged; measured figures are the README's own responsibility.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import pipelines
from ssl_ft import cli
from ssl_ft.build.tuning_space import open_space
from ssl_ft.config import TuneSettings
from ssl_ft.recipe import describe, load_settings, recipe_names
from tests.conftest import CHECKOUT

README = CHECKOUT / "README.md"
DOCUMENTS = [README, CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "CHANGELOG.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
# Also read by strangers, so also free of one machine's places.
PUBLIC = [
    *DOCUMENTS,
    *sorted((CHECKOUT / "configs").glob("*.yaml")),
    *(CHECKOUT / name for name in ("Makefile", "pyproject.toml", "constraints.txt")),
]
TOP_FOLDERS = ("ssl_ft", "pipelines", "tests", "configs", "docs", ".ci")


def blocks(document: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline_code(document: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(document))


def stage_words(line: str) -> list[str] | None:
    """The words after `ssl-ft` of a command line, however it is started; None for another command."""
    words = shlex.split(line, comments=True)
    for start in (["-m", "ssl_ft"], ["ssl-ft"]):
        for place in range(len(words)):
            if words[place : place + len(start)] == start:
                return words[place + len(start) :]
    return None


def commands() -> list[tuple[str, list[str]]]:
    """Every command of ours in a document, with the document's name."""
    found = []
    for document in DOCUMENTS:
        lines = [line for block in blocks(document, "sh") for line in block.replace("\\\n", " ").splitlines()]
        # In prose, capitals and dots stand for what the reader fills in.
        lines += [code for code in inline_code(document) if code.startswith("ssl-ft ") and "STAGE" not in code]
        words = [stage_words(line) for line in lines]
        found += [(document.name, each) for each in words if each]
    return found


@pytest.mark.parametrize(("document", "words"), commands(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_every_command_line_is_accepted(document, words, monkeypatch, capsys):
    # The command itself parses; only the stage's work is left out.
    monkeypatch.setattr(pipelines, "stage_main", lambda stage, settings, *, is_dry: 0)
    assert cli.main(words) == 0, f"{document}: {capsys.readouterr().err}"


def test_every_stage_has_an_example():
    shown = {words[0] for document, words in commands() if document == README.name}
    assert set(cli.STAGES) <= shown


def test_settings_named_in_prose_exist():
    known = {
        name for stage in cli.STAGES if stage != "schema" for name, _, _ in describe(pipelines.stage_settings(stage))
    }
    known |= {name.rpartition(".")[0] for name in known} | {"key"}  # `key=value` is how settings are spoken of
    keys = [
        (document.name, match[1])
        for document in DOCUMENTS
        for code in inline_code(document)
        if (match := re.match(r"'?([a-z_.]+)=", code)) and " " not in code
    ]
    assert len(keys) > 10
    assert [(document, key) for document, key in keys if key not in known] == []


def test_the_search_space_of_the_documents_fits(tmp_path):
    (example,) = blocks(CHECKOUT / "docs" / "tuning.md", "yaml")
    (tmp_path / "own.yaml").write_text(example)
    settings = load_settings(pipelines.stage_settings("tune"), recipe=str(tmp_path / "own.yaml"), overrides=[])
    assert isinstance(settings, TuneSettings)
    assert [each.name for each in open_space(settings)] == sorted(settings.space)


def test_recipe_of_ones_own_is_valid(tmp_path):
    (example,) = blocks(README, "yaml")
    assert isinstance(yaml.safe_load(example), dict)
    (tmp_path / "own.yaml").write_text(example)
    load_settings(pipelines.stage_settings("run"), recipe=str(tmp_path / "own.yaml"), overrides=[])


def test_recipes_that_come_along_are_those_in_the_table():
    table = README.read_text().split("Recipes that come along:")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == recipe_names()


def links() -> list[tuple[Path, str]]:
    return [
        (document, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(document))
        if not target.startswith("https://")
    ]


@pytest.mark.parametrize(("document", "target"), links(), ids=lambda value: getattr(value, "name", value))
def test_links_lead_somewhere(document, target):
    path, _, heading = target.partition("#")
    linked = document.parent / path if path else document
    assert linked.exists(), f"{document.name} links to {target}"
    if heading:
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]


def test_files_named_in_prose_exist():
    named = {
        (document.name, code.partition(":")[0])
        for document in DOCUMENTS
        for code in inline_code(document)
        if code.split("/")[0] in TOP_FOLDERS and re.fullmatch(r"[\w./]+(:\w+)?", code) and "/" in code
    }
    assert len(named) > 20
    assert [(document, name) for document, name in sorted(named) if not (CHECKOUT / name).exists()] == []


def tree() -> dict[str, str]:
    """Path -> phrase of every line of the README's tree."""
    (block,) = (text for text in blocks(README, "text") if text.startswith("README.md"))
    entries: dict[str, str] = {}
    above: list[str] = []
    for line in block.splitlines():
        match = re.fullmatch(r"( *)(\S+)  +(\S.*)", line)
        assert match, f"not 'name  phrase': {line!r}"
        depth = len(match[1]) // 2
        above = [*above[:depth], match[2]]
        entries["".join(above)] = match[3]
    return entries


def test_the_tree_names_what_is_there_and_leaves_nothing_out():
    entries = tree()
    assert [name for name in entries if not (CHECKOUT / name).exists()] == []
    # A folder whose files are listed at all is listed in full.
    opened = {name.rpartition("/")[0] for name in entries if name.endswith(".py")}
    assert {"ssl_ft", "pipelines"} <= opened
    there = [path for folder in sorted(opened) for path in sorted((CHECKOUT / folder).glob("*.py"))]
    there += [path.parent for path in sorted((CHECKOUT / "ssl_ft").glob("*/__init__.py"))]
    names = [f"{path.relative_to(CHECKOUT)}{'/' if path.is_dir() else ''}" for path in there if path.stat().st_size]
    assert [name for name in names if name not in entries] == []


@pytest.mark.parametrize("document", PUBLIC, ids=lambda path: path.name)
def test_nothing_of_one_machine_is_told(document):
    text = document.read_text()
    places = re.findall(r"(?<![\w.:/])/(?:work|home|root|tmp|opt|mnt|data|Users)/\S*", text)
    hosts = re.findall(r"\S*(?:index-url|find-links|/simple/|pypi\.|file://|localhost|\d+\.\d+\.\d+\.\d+:)\S*", text)
    assert places + hosts == []
