"""The shape of the house: who may import whom, sizes of files, and that importing the package changes nothing."""

import ast
import importlib.util
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

# From the ground up; a module may import from its own layer and those below.
LAYERS = [
    {"errors", "seeding", "result", "__init__"},
    {"dist", "schedules", "runlog", "peak", "freed", "progress", "interrupt", "launch", "claims", "trackers"}
    | {"outputs", "processor"},
    {"data", "models", "muon", "optim", "sharded", "checkpoint", "sharded_checkpoint", "artifact"},
    {"objectives", "evaluate", "transfer", "labelling", "compress", "export", "tuning"}
    | {"backward", "loop", "compiling", "pretraining"},
    {"config", "recipe", "build", "handover", "report", "doctor", "bench"},
    {"cli", "__main__"},
]
# What knows settings; everything else gets plain objects.
KNOW_CONFIG = {"config", "build", "handover", "recipe", "bench"}
# Files that need a package which not every machine has; nothing imports them there.
NEED = {"ssl_ft.objectives.contrast_kernel": "triton"}
SOURCES = sorted((CHECKOUT / "ssl_ft").rglob("*.py"))


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module == "ssl_ft" else node.module for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("ssl_ft", "pipelines")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_imports_run_downward(path):
    part = path.relative_to(CHECKOUT / "ssl_ft").parts[0].removesuffix(".py")
    height = next(i for i, layer in enumerate(LAYERS) if part in layer)
    for name in imports_of(path):
        if name.startswith("pipelines"):
            assert part == "cli", f"{path} imports {name}"
            continue
        target = part_of(name)
        # `from ssl_ft import __version__` names a value, not a module.
        target = target if any(target in layer for layer in LAYERS) else "__init__"
        assert next(i for i, layer in enumerate(LAYERS) if target in layer) <= height, f"{path} imports {name}"
        if target == "config":
            assert part in KNOW_CONFIG, f"{path} knows settings"


@pytest.mark.parametrize(("folder", "most"), [("ssl_ft", 400), ("pipelines", 90), ("tests", 500)])
def test_files_stay_readable(folder, most):
    long = {str(p): n for p in (CHECKOUT / folder).rglob("*.py") if (n := len(p.read_text().splitlines())) > most}
    assert long == {}


def test_every_file_says_what_it_holds():
    files = [*SOURCES, *(CHECKOUT / "pipelines").glob("*.py"), *(CHECKOUT / "tests").rglob("test_*.py")]
    silent = [str(p) for p in files if p.read_text().strip() and ast.get_docstring(ast.parse(p.read_text())) is None]
    assert silent == []


def test_no_folder_of_tests_is_passed_over(request):
    patterns = request.config.getini("norecursedirs")
    folders = [path for path in (CHECKOUT / "tests").rglob("*") if path.is_dir()]
    assert [str(path) for path in folders if any(fnmatch(path.name, pattern) for pattern in patterns)] == []


def test_nothing_loads_a_pickle_or_runs_text():
    forbidden = ("import pickle", "torch.load(", "weights_only=False", "allow_pickle=True", "yaml.load(", "eval(")
    guilty = [
        (str(path), word)
        for path in [*SOURCES, *(CHECKOUT / "pipelines").glob("*.py")]
        for word in forbidden
        if word in path.read_text().replace(".eval()", "").replace(".eval(", "(")
    ]
    assert guilty == []


def test_importing_everything_changes_no_global_state():
    modules = [".".join(p.relative_to(CHECKOUT).with_suffix("").parts) for p in SOURCES]
    absent = {m for m, package in NEED.items() if importlib.util.find_spec(package) is None}
    names = [m.removesuffix(".__init__") for m in modules if not m.endswith("__main__") and m not in absent]
    code = f"""
import logging, os, random
import numpy, torch, timm
import torch.distributed.checkpoint, torchvision, sklearn.linear_model, scipy.optimize, matplotlib.figure
def state():
    numpy_state = numpy.random.get_state(legacy=False)["state"]
    return (torch.get_rng_state().tolist(), random.getstate(), str(numpy_state["pos"]), dict(os.environ),
            logging.root.level, len(logging.root.handlers), torch.get_default_dtype(), torch.get_num_threads())
before = state()
import importlib
for name in {names!r}:
    importlib.import_module(name)
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT, timeout=240)
