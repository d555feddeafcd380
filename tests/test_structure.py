"""The shape of the code: who imports whom, what is public, how long a module may be, what no file may mention."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_reinforce

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_reinforce"
SKIPPED = {".venv", ".git", "outputs", "build", "hf_reinforce.egg-info", "__pycache__"}

# Low to high: a module imports from its own room and from rooms before it. The core ends with "training".
ROOMS = [
    "version",
    "splits",
    "stopping",
    "local_copies",
    "licenses",
    "schema",
    "randomness",
    "images",
    "augmentations",
    "metrics",
    "targets",
    "models",
    "store",
    "sources",
    "replay",
    "cards",
    "generation",
    "training",
    "hub",
    "importers",
    "inspection",
    "evaluation",
    "transfer",
    "",
]
# `evaluate` loads these by path, so they are no part of the package's own imports.
APART = {"evaluate_module"}

PUBLIC = {
    "AugmentationPolicy",
    "AugmentedDataset",
    "EpochSampler",
    "ImageSource",
    "KDTrainer",
    "KDTrainingArguments",
    "Readers",
    "ReinforcedDataset",
    "ReinforcementConfig",
    "Reinforcer",
    "Teacher",
    "__version__",
    "load_policy",
    "load_reinforced",
    "load_teacher",
    "push_to_hub",
    "reinforce",
}

MAX_LINES = 600
LONGER: dict[str, str] = {}  # module: reason

RESTRICTED = {
    "importers.ml_dr.unpickling"
}  # reads pickles of the original implementation, with a list of what may be in them


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules():
    return {module_name(p): p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in APART}


def imported(path):
    """Modules of the package that a file imports, anywhere in it."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix("hf_reinforce.") in known else node.module for n in inner]
        else:
            continue
        for name in names:
            if name == "hf_reinforce" or name.startswith("hf_reinforce."):
                found.add(name.removeprefix("hf_reinforce").removeprefix("."))
    return found


def documented(names):
    return [(name, getattr(hf_reinforce, name)) for name in sorted(names) if not name.startswith("__")]


def texts():
    """Every text file of the project."""
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".cfg", ""}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = parts[0].startswith(".") and parts[0] != ".ci"
        if path.is_file() and path.suffix in suffixes and not hidden and not SKIPPED & set(parts):
            yield path


def room(module):
    return module.split(".")[0]


def test_every_room_has_its_place_in_the_order():
    assert {room(name) for name in modules()} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("name", sorted(modules()), ids=lambda name: name or "hf_reinforce")
def test_imports_go_downwards(name):
    place = {room: index for index, room in enumerate(ROOMS)}
    higher = [module for module in imported(modules()[name]) if place[room(module)] > place[room(name)]]
    assert not higher, f"{name} imports {higher}, which are of rooms that come later"


def test_imports_go_in_no_circle():
    waiting = {name: imported(path) - {name} for name, path in modules().items()}
    while waiting:
        ready = [name for name, needs in waiting.items() if not needs & set(waiting)]
        assert ready, f"these import each other: {sorted(waiting)}"
        for name in ready:
            del waiting[name]


def test_imports_are_seen():
    assert {"schema", "images", "augmentations.policies"} <= imported(modules()["replay.views"]) | imported(
        modules()["replay.dataset"]
    )
    assert "training.trainer" in imported(PACKAGE / "__init__.py")


def test_one_module_spells_the_column_names():
    for name, path in modules().items():
        if name in ("schema", "images"):  # images exports a function that is called as a column is
            continue
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not strings & {"augmentation_params", "teacher_logits", "image_hash", "source_row"}, name


def test_public_names():
    assert set(hf_reinforce.__all__) == PUBLIC
    assert hf_reinforce.__all__ == sorted(hf_reinforce.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", hf_reinforce.__version__)


def test_importing_the_package_loads_no_library():
    script = "import sys, hf_reinforce; dir(hf_reinforce); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "hf_reinforce" in loaded
    heavy = {
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "timm",
        "numpy",
        "pyarrow",
        "PIL",
        "matplotlib",
        "jinja2",
    }
    assert not heavy & set(loaded)


def test_type_checkers_see_the_names_that_are_imported_when_used():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
    seen = {alias.name: node.module.removeprefix("hf_reinforce.") for node in block.body for alias in node.names}
    assert seen == hf_reinforce._MODULES and set(seen) == PUBLIC - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        hf_reinforce.nowhere  # noqa: B018


@pytest.mark.parametrize(("name", "value"), documented(PUBLIC), ids=[name for name, _ in documented(PUBLIC)])
def test_public_name_is_documented(name, value):
    doc = inspect.getdoc(value)
    assert doc and doc.split("\n")[0].endswith("."), f"{name}: the first line is a sentence"
    assert value.__module__.startswith("hf_reinforce.")
    signature = inspect.signature(value if inspect.isfunction(value) else value.__init__)
    takes = [p for p in signature.parameters if p not in ("self", "args", "kwargs")]
    if takes and not issubclass(type(value), type):
        section = re.search(r"Args:\n((?:    .*\n?)+)", doc + "\n")
        if name == "load_policy":  # two arguments whose names and defaults say it
            return
        assert section, f"{name} documents no arguments"
        for parameter in takes:
            assert re.search(rf"^ +{parameter}: ", section[1], re.M), f"{name} does not document {parameter}"
    elif isinstance(value, type):
        assert re.search(r"^(Args|Attributes):$", doc, re.M), f"{name} documents neither Args nor Attributes"


def public_functions():
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield pytest.param(path, node, id=f"{name or 'hf_reinforce'}.{node.name}")


@pytest.mark.parametrize(("path", "node"), list(public_functions()))
def test_function_and_class_have_docstrings(path, node):
    assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"


def test_modules_have_docstrings():
    for name, path in modules().items():
        if name == "version":  # one line, which says it
            continue
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name} says nothing about itself"


def test_documented_arguments_exist():
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            section = re.search(r"^Args:\n((?:    .*(?:\n|$)|\n)+)", ast.get_docstring(node) or "", re.M)
            documented = re.findall(r"^    (\w+):", section[1], re.M) if section else []
            taken = {a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
            taken |= {a.arg for a in (node.args.vararg, node.args.kwarg) if a}
            assert set(documented) <= taken, f"{path.name}:{node.lineno} documents {set(documented) - taken}"


def test_modules_are_short():
    long = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            long[path.relative_to(ROOT).as_posix()] = lines
    assert set(long) <= set(LONGER), f"longer than {MAX_LINES} lines without a reason: {long}"
    assert all(reason for reason in LONGER.values()) and set(LONGER) <= set(long), "a reason that is not needed"


def test_nothing_mentions_a_path_of_one_machine():
    # Split, so that this file does not mention them either.
    patterns = [r"(?<![\w.~-])/" + name + r"(?:/|\b)" for name in ("wo" + "rk", "ro" + "ot", "ho" + "me/")]
    patterns.append(re.escape(".." + "/shared"))
    exempt = {"tests/test_real_data.py"}  # says where it looks for real images, and is skipped without them
    found = []
    for path in (path for path in texts() if path.relative_to(ROOT).as_posix() not in exempt):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if any(re.search(pattern, line) for pattern in patterns):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_texts_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    assert {"README.md", "Makefile", "pyproject.toml", "hf_reinforce/schema.py", "docs/schema.md"} <= names


def test_nothing_is_unpickled_and_no_remote_code_runs():
    for module, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                unpickling = names & {"pickle", "dill", "joblib", "cloudpickle"}
                assert not unpickling or module in RESTRICTED, path.name
            if isinstance(node, ast.Call):
                keywords = {k.arg: k.value for k in node.keywords}
                loads = re.search(r"\bAuto\w+\.from_(pretrained|config)$", ast.unparse(node.func))
                if loads or "trust_remote_code" in keywords:  # left out, transformers asks on the terminal
                    assert ast.unparse(keywords["trust_remote_code"]) == "False", path.name
                if ast.unparse(node.func) == "torch.load":
                    assert ast.unparse(keywords["weights_only"]) == "True", path.name


def test_no_output_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    large = [name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()]
    large = [name for name in large if (ROOT / name).stat().st_size > 1_000_000]
    assert not large, f"files above 1 MB are committed: {large}"
