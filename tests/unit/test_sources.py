"""What no module does: rules that are easier to see in the sources than in what runs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("proxy", "sidecar", "migrations")
# Whatever reads these may run what is in them.
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
# What takes SQL as text.
SQL = {"text", "exec_driver_sql", "literal_column"}


def modules(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


def beside(tree: ast.Module) -> Iterator[Path]:
    """The files of our tests that a module of them imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("tests."):
            base = ROOT / node.module.replace(".", "/")
            yield from (path for name in node.names if (path := base / f"{name.name}.py").is_file())
            if base.with_suffix(".py").is_file():
                yield base.with_suffix(".py")


def test_what_the_tests_of_clients_import_can_run_where_tollhouse_is_not_installed() -> None:
    waiting, looked = list((ROOT / "tests/clients").glob("*.py")), dict[str, set[str]]()
    while waiting:
        path = waiting.pop()
        if str(path) not in looked:
            tree = ast.parse(path.read_text())
            looked[str(path)] = imported(tree) & set(PACKAGES)
            waiting.extend(beside(tree))
    assert str(ROOT / "tests/e2e/house.py") in looked
    assert {file: found for file, found in looked.items() if found} == {}


def test_c9_no_module_imports_what_runs_the_data_that_it_reads() -> None:
    assert {file: found for file, tree in modules(*PACKAGES) if (found := imported(tree) & PICKLES)} == {}
    evaluating = {
        (file, called(call))
        for file, tree in modules(*PACKAGES)
        for call in calls(tree)
        if isinstance(call.func, ast.Name) and called(call) in {"eval", "exec", "compile", "__import__"}
    }
    assert evaluating == set()


def test_c8_models_are_loaded_without_their_code_from_this_machine_alone_as_safetensors() -> None:
    loads = [
        (file, call) for file, tree in modules("sidecar") for call in calls(tree) if called(call) == "from_pretrained"
    ]
    assert len(loads) > 3
    for file, call in loads:
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if file == "sidecar/catalog/convert.py":
            # Converting a GGUF: the words stand in a dictionary of their own.
            continue
        assert (told["trust_remote_code"], told["local_files_only"]) == ("False", "True"), file
        if "Model" in ast.unparse(call.func):
            assert told["use_safetensors"] == "True", file
    texts = (ROOT / "sidecar/catalog/convert.py").read_text()
    assert '"local_files_only": True, "trust_remote_code": False' in texts


def composed(value: ast.expr) -> bool:
    """Whether a text is put together from parts."""
    return isinstance(value, ast.JoinedStr | ast.BinOp) or (isinstance(value, ast.Call) and called(value) == "format")


def test_a9_no_sql_is_put_together_where_a_request_is_served() -> None:
    """Constants of a module may be: they are made of our own names, before anybody asks anything."""
    found = [
        (file, node.lineno)
        for file, tree in modules("proxy")
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in calls(function)
        if called(node) in SQL and node.args and composed(node.args[0])
    ]
    assert found == []


@pytest.mark.parametrize("planted", ['text(f"SELECT {name}")', 'text("DROP TABLE " + name)', 'text("{}".format(name))'])
def test_a9_the_rule_finds_what_it_looks_for(planted: str) -> None:
    (call,) = [call for call in calls(ast.parse(planted)) if called(call) == "text"]
    assert composed(call.args[0])
