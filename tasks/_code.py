"""The code version of a stage: a hash of the sources that its function can reach inside this repository.

Part of the cache key, so that a changed module re-runs the stages that use it and no other. It is found
from the syntax alone (nothing is imported): the stage's module and, transitively, every module of
`PACKAGES` it imports, also inside functions. `from package import name` follows the module that defines
`name`; a package's `__init__` counts only where a name it defines itself is used, so that re-exports do not
tie every stage to every module.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("accordion", "model_registry")


def code_version(module: str, *, root: Path = ROOT, also: tuple[str, ...] = ()) -> str:
    """First 16 hex digits of the SHA-256 over the sources reachable from `module`.

    `also` names further files or folders under `root` that the stage reads as data, for example templates.
    """
    digest = hashlib.sha256()
    for path in [*reachable(module, root), *(file for name in also for file in _files(root / name))]:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def reachable(module: str, root: Path = ROOT) -> list[Path]:
    """Source files of `module` and of everything it imports from `PACKAGES`, sorted."""
    start = _source(module, root)
    if start is None:
        raise ValueError(f"{module}: no such module under {root}")
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(_imports(path, root, path.stat().st_mtime_ns))
    return sorted(seen)


@cache
def _imports(path: Path, root: Path, changed_ns: int) -> tuple[Path, ...]:
    """Files that the source at `path` imports from `PACKAGES`; `changed_ns` makes an edited file a new entry."""
    return tuple(_find_imports(path, root, changed_ns))


def _find_imports(path: Path, root: Path, changed_ns: int) -> Iterator[Path]:
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(_tree(path, changed_ns)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                target = _file(alias.name, root)
                if target:
                    yield target
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield from _origin(source, alias.name, root)


def _origin(module: str, name: str, root: Path) -> list[Path]:
    """The file that `from module import name` ends in, through the re-exports of package `__init__`s."""
    if module.split(".")[0] not in PACKAGES:
        return []
    submodule = _file(f"{module}.{name}", root)
    if submodule:
        return [submodule]
    path = _file(module, root)
    if path is None:
        return []
    if path.name == "__init__.py":
        for node in _tree(path, path.stat().st_mtime_ns).body:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _origin(node.module, alias.name, root)
    return [path]


def _file(module: str, root: Path) -> Path | None:
    return _source(module, root) if module.split(".")[0] in PACKAGES else None


def _source(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path}: named as data of a stage but not there")
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in inside if file.is_file() and "__pycache__" not in file.parts]


@cache
def _tree(path: Path, changed_ns: int) -> ast.Module:
    """The parsed source."""
    return ast.parse(path.read_text(), filename=str(path))
