"""The house's floors: a module imports from its own place and from lower floors, nothing else."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "qvl"

# A place is a module or folder directly under qvl. Siblings on one floor stay apart unless ALLOWED says so.
FLOOR = {
    "errors": 0,
    "hub": 0,
    "config": 0,
    "types": 0,
    "outputs": 0,
    "ops": 1,
    "network": 2,
    "processing": 2,
    "weights": 3,
    "engine": 4,
    "generation": 5,
    "modeling": 6,
    "auto": 6,
    "pipelines": 6,
    "serve": 7,
    "train": 7,
    "evaluate": 7,
    "cli": 8,
    "__init__": 8,
}
ALLOWED = {
    ("hub", "errors"),
    ("config", "errors"),
    ("config", "hub"),
    ("auto", "modeling"),
    ("pipelines", "auto"),
    ("pipelines", "modeling"),
}
TORCH_FREE = [
    "errors.py",
    "hub.py",
    "config/base.py",
    "config/qwen2_5_vl.py",
    "config/rope_scaling.py",
    "config/text.py",
    "config/vision.py",
    "types.py",
    "__init__.py",
    "engine/sequence.py",
    "engine/scheduler.py",
    "engine/budget.py",
    "engine/settings.py",
    "engine/stepsize.py",
    "processing/rows/files.py",
    "processing/rows/forms.py",
    "processing/rows/objects.py",
    "processing/rows/row.py",
    "processing/rows/tags.py",
]


def place(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of every module that the file imports outside ``if TYPE_CHECKING``."""
    package = ["qvl", *path.relative_to(SOURCE).parent.parts]
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names.update({stem} if stem != "qvl" else {f"qvl.{alias.name}" for alias in node.names})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def breaches(path: Path) -> list[str]:
    here = place(path)
    found = []
    for name in sorted(imported(path)):
        parts = name.split(".")
        if parts[0] == "transformers":
            found.append(f"{path.name} imports transformers, which only tests and benchmarks may")
        if parts[0] != "qvl" or len(parts) < 2 or parts[1] == here:
            continue
        there = parts[1]
        if there not in FLOOR and (here, there) not in ALLOWED:
            found.append(f"{here} imports {there}, which is not a place of the house")
        elif FLOOR[here] <= FLOOR[there] and (here, there) not in ALLOWED:
            found.append(f"{here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})")
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path):
    assert place(path) in FLOOR, f"{path} lives in a place that FLOOR does not name"
    assert breaches(path) == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_torch_free(name):
    path = SOURCE / name
    heavy = {"torch", "numpy", "PIL", "av"}
    assert not {n.split(".")[0] for n in imported(path)} & heavy


def test_the_reader_of_imports_sees_them():
    """Guards the test itself: modeling/ is known to import from the floors below it."""
    assert "qvl.engine" in {
        ".".join(n.split(".")[:2]) for n in imported(SOURCE / "modeling" / "__init__.py")
    } | {".".join(n.split(".")[:2]) for p in (SOURCE / "modeling").glob("*.py") for n in imported(p)}
