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
ROOMS = (
    *("version", "splits", "stopping", "local_copies", "licenses", "schema", "randomness", "images", "augmentations"),
    *("metrics", "targets", "models", "store", "sources", "replay", "generation", "training"),
    *("cards", "hub", "importers", "evaluation", "transfer", ""),
)
APART = {"evaluate_module"}  # `evaluate` loads it by path, so it is no part of the package's own imports
HEAVY = {"torch", "transformers", "datasets", "accelerate", "timm", "numpy", "pyarrow", "PIL", "matplotlib", "jinja2"}
PUBLIC = sorted(name for name in hf_reinforce.__all__ if not name.startswith("__"))
MAX_LINES = 600
LONGER: dict[str, str] = {}  # module: reason
RESTRICTED = {"importers.ml_dr.unpickling"}  # reads pickles of the original implementation, of listed types


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules():
    return {module_name(p): p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in APART}


def imported(path):
    """Modules of the package that a file imports, anywhere in it."""
    known, found = modules(), set()
    for node in ast.walk(tree(path)):
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


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_go_downwards_and_in_no_circle():
    assert {room(name) for name in modules()} == set(ROOMS) and len(ROOMS) == len(set(ROOMS))
    waiting = {name: imported(path) - {name} for name, path in modules().items()}
    assert "schema" in waiting["replay.dataset"] and "training.trainer" in waiting[""], "imports are seen"
    for name, needs in waiting.items():
        higher = [module for module in needs if ROOMS.index(room(module)) > ROOMS.index(room(name))]
        assert not higher, f"{name} imports {higher}, which are of rooms that come later"
    while waiting:
        ready = [name for name, needs in waiting.items() if not needs & set(waiting)]
        assert ready, f"these import each other: {sorted(waiting)}"
        for name in ready:
            del waiting[name]


def test_the_core_knows_no_presentation():
    core = ROOMS[: ROOMS.index("training") + 1]
    for name, path in modules().items():
        shown = {module for module in imported(path) if room(module) in ("hub", "cards", "evaluation")}
        assert room(name) not in core or not shown, f"{name} imports {sorted(shown)}"


def test_one_module_spells_the_column_names():
    for name, path in modules().items():
        if name in ("schema", "images"):  # images exports a function that is called as a column is
            continue
        strings = {n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant)}
        assert not strings & {"augmentation_params", "image_hash", "source_row"}, name


def test_one_module_spells_what_a_distribution_over_classes_stores():
    """Its column, its fields and its K; `reinforcement.json` has K too, in version 1 beside everything else."""
    spelled = {"teacher_logits", "target_label", "target_value", "target_tail", "tail", "TAIL", "LABEL", "top_k"}
    for name, path in modules().items():
        words = set()
        for node in ast.walk(tree(path)):
            words |= {value for _, value in ast.iter_fields(node) if isinstance(value, str)}
        if name not in ("targets.class_distribution", "store.config"):
            assert not words & spelled, f"{name} spells {words & spelled}"


def test_importing_the_package_loads_no_library():
    script = "import sys, hf_reinforce; dir(hf_reinforce); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "hf_reinforce" in loaded and not HEAVY & set(loaded)


def test_type_checkers_see_the_names_that_are_imported_when_used():
    (block,) = (
        n for n in tree(PACKAGE / "__init__.py").body if isinstance(n, ast.If) and n.test.id == "TYPE_CHECKING"
    )
    seen = {alias.name: node.module.removeprefix("hf_reinforce.") for node in block.body for alias in node.names}
    assert seen == hf_reinforce._MODULES and sorted(seen) == PUBLIC
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", hf_reinforce.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        hf_reinforce.nowhere  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    value = getattr(hf_reinforce, name)
    doc = inspect.getdoc(value)
    assert doc and doc.split("\n")[0].endswith("."), f"{name}: the first line is a sentence"
    signature = inspect.signature(value if inspect.isfunction(value) else value.__init__)
    takes = [p for p in signature.parameters if p not in ("self", "args", "kwargs")]
    if isinstance(value, type):
        assert re.search(r"^(Args|Attributes):$", doc, re.M), f"{name} documents neither Args nor Attributes"
    elif takes and name != "load_policy":  # whose arguments' names and defaults say it
        for parameter in takes:
            section = re.search(r"Args:\n((?:    .*\n?)+)", doc + "\n")
            assert section and re.search(rf"^ +{parameter}: ", section[1], re.M), (
                f"{name} does not document {parameter}"
            )


def test_documented_arguments_exist():
    for path in modules().values():
        for node in ast.walk(tree(path)):
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
    found, names = [], {path.relative_to(ROOT).as_posix() for path in texts()}
    assert {"README.md", "Makefile", "hf_reinforce/schema.py", "docs/schema.md"} <= names, "texts are found"
    for path in (path for path in texts() if path.relative_to(ROOT).as_posix() not in exempt):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if any(re.search(pattern, line) for pattern in patterns):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_private_names_of_libraries_are_listed():
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainerCallback, TrainingArguments

    libraries = [Trainer, TrainerCallback, TrainingArguments, DataLoader, Dataset.from_dict({})]
    foreign = {name for library in libraries for name in dir(library)}
    fields = set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(Trainer)))  # which `dir` of the class lacks
    own, touched, others = set(), set(), set()
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            if isinstance(node, ast.ClassDef):
                others |= {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                touched.add(node.attr)
                own |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
            elif isinstance(node, ast.Attribute):
                others.add(node.attr)
            elif isinstance(node, ast.Name):
                own.add(node.id)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
    private = (others & foreign) | (touched & fields) | ((touched | others) - own)
    private = {name for name in private if re.match("_[a-z]", name)} - {"_exit"}  # os._exit is Python's
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Private names of libraries")[1]
    assert private == set(re.findall(r"^\| `(\w+)`", table.split("\n## ")[0], re.M))


def test_nothing_is_unpickled_and_no_remote_code_runs():
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
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
