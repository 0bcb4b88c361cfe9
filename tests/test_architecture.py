"""The house keeps its shape: imports point one way, and no module shadows another's name."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from distil.tools.toolbox import all_tools
from distil.tools.zoom import BOX_ARGUMENT

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "distil"

# Floors of the house, from the nouns up: a room imports only from the floors below its own, and from itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("lazy_picture",),
    ("errors", "records", "interrupts", "bare_file"),
    ("process", "pictures", "spending", "sandbox"),
    ("messages", "tools", "embedded"),
    ("commands", "tasks", "teacher"),
    ("source", "store", "doctor", "rollout", "own_code"),
    ("replay", "index"),
    ("exports",),
    ("viewer",),
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


def test_only_the_terminal_imports_what_draws_in_one() -> None:
    users = {room_of(path) for path in MODULES if imported_packages(path) & {"rich", "tqdm"}}
    assert users == {"terminal"}  # elsewhere a person is told by `tell`, or gets a text


def test_no_module_beside_the_scripts_shadows_another() -> None:
    installed = {name for names in importlib.metadata.packages_distributions() for name in [names]} - {
        "distil"
    }
    for path in PACKAGE.iterdir():
        name = path.name.removesuffix(".py")
        assert name not in sys.stdlib_module_names or name.startswith("__"), name
        assert name not in installed, name


def test_a_class_has_a_name_of_its_own() -> None:
    """One word for one thing: who reads a name in one room needs not ask which of two is meant."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


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
            if not isinstance(node, ast.ExceptHandler):
                continue
            name = node.type.id if isinstance(node.type, ast.Name) else node.type and ""
            passes_on = any(isinstance(line, ast.Raise) and line.exc is None for line in node.body)
            is_around_code = room_of(path) == "sandbox"  # of a model: whatever it raises is its result
            takes_all = name == "BaseException" and not passes_on and not is_around_code
            if name in (None, "Exception") or takes_all:
                broad.append(path.name)
    assert broad == ["threads.py"]


def test_nothing_below_the_plan_of_a_run_knows_a_flag() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if "commands" in imported_rooms(path) and room_of(path) not in ("run", "commands", "exports")
    }
    of_exports = {"terminal/exporting.py", "terminal/previewing.py", "terminal/checking.py"}
    of_view = {"terminal/traces.py", "terminal/web.py", "terminal/verification.py", "viewer/preview_page.py"}
    assert users - of_exports - of_view == {"cli.py", "terminal/doctor.py"}


def test_exports_know_no_flags_but_their_own() -> None:
    known = set()
    for path in MODULES:
        if room_of(path) in ("exports", "viewer"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == "distil.commands.flags":
                    known |= {alias.name for alias in node.names if alias.name.endswith("Flags")}
    assert known == {"ExportFlags", "FormFlags", "SelectionFlags", "CheckFlags"}


def test_help_waits_for_nothing_heavy() -> None:
    heavy = ("PIL", "numpy", "rich", "datasets", "openai", "pyarrow")
    code = f"import sys, distil.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# What only the one task that there is may speak of: words of a name or of a text in the code.
WORDS_OF_A_TASK = frozenset(
    [
        "km",
        "haversine",
        "geoguessr",
        "geolocation",
        "lat",
        "lon",
        "latitude",
        "longitude",
        "distance",
        "radius",
        "radii",
    ]
)
NAMES_OF_A_TASK = frozenset({"Place", "points"})  # as whole names: other places and points there are many
TOOL_WORDS = frozenset({*(tool.name for tool in all_tools()), BOX_ARGUMENT})
TOOL_CLASSES = frozenset(type(tool).__name__ for tool in all_tools())


def names_of(tree: ast.AST) -> set[str]:
    """Every name that code defines, takes or asks for."""
    found = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            found |= {name} if isinstance(name, str) else set()
    return found


def texts_of(tree: ast.AST) -> set[str]:
    """Every text that is not a docstring."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements
    ]
    return {node.value for node in constants if isinstance(node.value, str)}


def words_of(text: str) -> set[str]:
    """The words of a name or a text: `distance_km`, `distance@km` and `DistanceKm` have two."""
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()))


def words_in(texts: set[str]) -> set[str]:
    return set().union(*map(words_of, texts))


PIPELINE = [path for path in MODULES if not is_of_embedded_teacher(path)]
FLAGS_OF_A_TASK = {"lat_column", "lon_column"}  # a run knows them as those of the task's `fields`


@pytest.mark.parametrize(
    "path",
    [path for path in PIPELINE if room_of(path) != "tasks"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_nothing_outside_the_tasks_speaks_of_places_or_kilometres(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = names_of(tree) - (FLAGS_OF_A_TASK if room_of(path) == "commands" else set())
    assert not WORDS_OF_A_TASK & words_in(names)
    assert not NAMES_OF_A_TASK & names_of(tree)
    assert not (WORDS_OF_A_TASK | {"points"}) & words_in(texts_of(tree))


@pytest.mark.parametrize(
    "path",
    [path for path in PIPELINE if room_of(path) != "tools"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_nothing_outside_the_tools_asks_for_one_by_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {word for text in texts_of(tree) for word in TOOL_WORDS if word in text}
    used = TOOL_CLASSES & names_of(tree)
    assert used <= ({"ZoomTool"} if room_of(path) == "doctor" else set()), "the doctor alone asks by a tool"


def test_the_words_of_tasks_and_tools_are_found_where_they_are() -> None:
    task = ast.parse((PACKAGE / "tasks" / "geolocation.py").read_text(encoding="utf-8"))
    assert words_in(names_of(task) | texts_of(task)) >= WORDS_OF_A_TASK | {"points"}
    assert "Place" in names_of(task)
    tools = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES if room_of(path) == "tools"]
    assert set().union(*map(texts_of, tools)) >= TOOL_WORDS
    assert set().union(*map(names_of, tools)) >= TOOL_CLASSES
