"""The code version changes with what a stage can reach and with nothing else."""

from pathlib import Path

import pytest

from tasks._code import code_version, reachable

FILES = {
    "accordion/__init__.py": "",
    "accordion/a/__init__.py": "from accordion.a.one import first\nfrom accordion.a.two import second\n",
    "accordion/a/one.py": "import json\nfirst = 1\n",
    "accordion/a/two.py": "from accordion.shared import helper\nsecond = 2\n",
    "accordion/stage.py": "from accordion.a import first\ndef run():\n    from accordion import lazy\n",
    "accordion/lazy.py": "from . import deep\n",
    "accordion/deep.py": "import accordion.shared\n",
    "accordion/shared.py": "helper = 3\n",
    "accordion/unrelated.py": "x = 1\n",
    "templates/page.txt": "hello",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_follows_imports_through_reexports_and_functions(tree: Path) -> None:
    names = [p.relative_to(tree / "accordion").as_posix() for p in reachable("accordion.stage", tree)]
    assert names == ["a/one.py", "deep.py", "lazy.py", "shared.py", "stage.py"]


@pytest.mark.parametrize(
    ("changed", "invalidates"),
    [("stage", True), ("a/one", True), ("shared", True), ("a/two", False), ("unrelated", False)],
)
def test_changes_only_with_reachable_sources(tree: Path, changed: str, invalidates: bool) -> None:
    before = code_version("accordion.stage", root=tree)
    with open(tree / "accordion" / f"{changed}.py", "a") as file:
        file.write("# edited\n")
    assert (code_version("accordion.stage", root=tree) != before) == invalidates


def test_counts_data_files(tree: Path) -> None:
    before = code_version("accordion.stage", root=tree, also=("templates",))
    (tree / "templates" / "page.txt").write_text("changed")
    assert code_version("accordion.stage", root=tree, also=("templates",)) != before


def test_unknown_module_is_an_error(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"accordion\.absent"):
        code_version("accordion.absent", root=tree)
