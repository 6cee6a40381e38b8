"""Imports point one way: workflows -> tasks -> accordion; the library knows no orchestration; settings are light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from accordion.home import REPOSITORY

FORBIDDEN = {
    "accordion": {"tasks", "workflows", "model_registry", "benchmarks", "flytekit", "mlflow"},
    "model_registry": {"workflows", "flytekit"},
    "tasks": {"workflows"},
    "accordion/config": {"torch", "numpy", "transformers"},
    "accordion/store": {"torch", "mlflow"},
}
UPWARD = {  # folder of the library -> folders it must not know
    "config": {"store", "data", "model", "train", "rl", "extract", "study", "retrieval", "evaluate", "serve", "report"},
    "store": {"config", "data", "model", "train", "rl", "extract", "study", "retrieval", "evaluate", "serve", "report"},
    "model": {"train", "rl", "extract", "study", "retrieval", "evaluate", "serve", "report"},
    "data": {"model", "train", "rl", "extract", "study", "retrieval", "serve", "report"},
    "train": {"rl", "extract", "study", "retrieval", "serve", "report"},
}


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, module) of every import in the Python files under `folder`, also inside functions."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{p.relative_to(REPOSITORY)}: {m}"
        for p, m in imports(REPOSITORY / folder)
        if m.split(".")[0] in FORBIDDEN[folder]
    ]
    assert not wrong


@pytest.mark.parametrize("folder", UPWARD)
def test_the_library_has_no_upward_import(folder: str) -> None:
    wrong = []
    for path, module in imports(REPOSITORY / "accordion" / folder):
        parts = module.split(".")
        if parts[0] == "accordion" and len(parts) > 1 and parts[1] in UPWARD[folder]:
            wrong.append(f"{path.relative_to(REPOSITORY)}: {module}")
    assert not wrong


def test_dvc_is_known_in_one_file() -> None:
    assert {p.name for p, m in imports(REPOSITORY / "accordion") if m.split(".")[0] == "dvc"} <= {"dvc.py"}


def test_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, accordion.config; print([m for m in ('torch', 'numpy', 'flytekit', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
