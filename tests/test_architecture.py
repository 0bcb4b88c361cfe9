"""The house keeps its shape: imports point one way, and no module shadows another's name."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distil"

# Floors of the house, from the nouns up: a room imports only from the floors below its own, and from itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "records", "interrupts", "bare_file"),
    ("process", "pictures", "spending", "sandbox"),
    ("messages", "tools", "embedded"),
    ("flags", "tasks", "teacher"),
    ("source", "store", "doctor", "rollout"),
    ("replay",),
    ("terminal",),
    ("run",),
    ("cli",),
    (
        "demo_concurrent",
        "demo_python_code",
        "demo_distillation",
        "demo_distillation_with_tools",
        "view_traces_enhanced",
        "__main__",
    ),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


LAUNCH = "distil.embedded.launch"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_of_embedded_teacher(path: Path) -> bool:
    return room_of(path) == "embedded" and path.name != "launch.py"


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported_modules(path)} - {"__version__"}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"distil.{alias.name}" for alias in node.names] if node.module == "distil" else [node.module]
            )
        modules |= {name for name in names if name.startswith("distil.")}
    return modules


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_from_doors_to_nouns(path: Path) -> None:
    room = room_of(path)
    if is_of_embedded_teacher(path):
        assert imported_rooms(path) <= {"embedded"}, "the embedded teacher knows nothing of the pipeline"
        return
    assert room in FLOOR_OF, f"give {room} its floor"
    for other in imported_rooms(path) - {room}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{path.name} imports {other}"
    of_embedded = {name for name in imported_modules(path) if name.startswith("distil.embedded")}
    assert of_embedded <= {LAUNCH}, "the pipeline meets the embedded teacher only as a server"


def test_only_the_teacher_imports_the_client() -> None:
    users = {room_of(path) for path in MODULES if "openai" in imported_packages(path)}
    assert users <= {"teacher", "run"}  # a run records its version


def test_no_module_beside_the_scripts_shadows_another() -> None:
    installed = {name for names in importlib.metadata.packages_distributions() for name in [names]} - {
        "distil"
    }
    for path in PACKAGE.iterdir():
        name = path.name.removesuffix(".py")
        assert name not in sys.stdlib_module_names or name.startswith("__"), name
        assert name not in installed, name


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == project["dependencies"]


def test_there_is_one_broad_except() -> None:
    broad = []
    for path in MODULES:
        if is_of_embedded_teacher(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
            ):
                broad.append(path.name)
    assert broad == ["threads.py"]


def test_nothing_below_the_plan_of_a_run_knows_a_flag() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if "flags" in imported_rooms(path) and room_of(path) != "run"
    }
    assert users == {"cli.py", "terminal/doctor.py"}


def test_help_waits_for_nothing_heavy() -> None:
    heavy = ("PIL", "numpy", "rich", "datasets", "openai", "pyarrow")
    code = f"import sys, distil.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
