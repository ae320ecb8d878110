"""The rules of the house: who imports whom, what every verb brings along, and that what is written about it is so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest
import yaml

from hanse import VERBS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PACKAGES = ("common", "configs", "data_pipelines", "train", "launch", "consortium")
# What each may import of ours, besides itself. Of launch, `train` takes what starts local ranks; for plans, what a site
# is and how another verb is asked for its configuration; for the page of a sweep, its runs and how far they are.
MAY_IMPORT = {
    "common": set(),
    "configs": set(),
    "data_pipelines": {"common"},
    "train": {
        "common",
        "data_pipelines",
        "launch.local",
        "launch.site",
        "launch.verb",
        "launch.sweep_record",
        "launch.progress",
    },
    "launch": {"common"},
    "consortium": {"common", "data_pipelines", "train", "launch.local"},
    "hanse": {"common"},
}
HEAVY = ("torch", "deepspeed", "transformers")


def modules(package: str) -> list[Path]:
    return [ROOT / "hanse.py"] if package == "hanse" else sorted((ROOT / package).rglob("*.py"))


@cache
def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_the_house_allows(package):
    allowed = {package, *MAY_IMPORT[package]}
    for path in modules(package):
        for name in imported(path):
            if name.partition(".")[0] in MAY_IMPORT:
                inside = any(name == one or name.startswith(f"{one}.") for one in allowed)
                assert inside, f"{path.relative_to(ROOT)} imports {name}"


def test_every_package_is_under_these_rules():
    tracked = subprocess.run(["git", "ls-files", "*/__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    there = {line.partition("/")[0] for line in tracked.stdout.splitlines()} - {"tests", "benchmarks", "docs"}
    assert there == set(PACKAGES) == set(MAY_IMPORT) - {"hanse"}


def test_login_nodes_need_neither_torch_nor_deepspeed():
    program = ROOT / "launch/speed.py"  # measures a node, in a process of its own
    for path in [*modules("common"), *modules("launch"), *modules("configs")]:
        names = imported(path)
        heavy = {name for name in names if name.partition(".")[0] in HEAVY}
        assert not heavy or path == program, f"{path.relative_to(ROOT)} imports {heavy}"
        assert "launch.speed" not in names, f"{path.relative_to(ROOT)} imports {program.name}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_schema_a_function_and_a_config(verb):
    schema = VERBS[verb].load(VERBS[verb].schema)
    assert callable(schema.problems)
    module, function = VERBS[verb].function.split(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    text = (CONFIGS / f"{verb}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# hanse {verb}: ")
    assert f"{verb}_schema" in yaml.safe_load(text)["defaults"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_key(verb, hanse, capsys):
    """(That it imports nothing heavy is for tests/common/test_verbs.py.)"""
    assert hanse(verb, "--help") == 0
    told = capsys.readouterr().out
    for key in yaml.safe_load((CONFIGS / f"{verb}.yaml").read_text(encoding="utf-8")):
        assert key == "defaults" or f"\n{key}:" in told


def leaves(node: yaml.MappingNode) -> list[yaml.ScalarNode]:
    """The keys of a YAML mapping that hold no block of further keys."""
    found = []
    for key, value in node.value:
        block = isinstance(value, yaml.MappingNode) and not value.flow_style
        found += leaves(value) if block else [key]
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_says_what_it_means(verb):
    text = (CONFIGS / f"{verb}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    places = {key.value: key.start_mark.line for key in leaves(yaml.compose(text)) if key.value != "defaults"}
    silent = [key for key, line in places.items() if "#" not in lines[line] and not lines[line - 1].startswith("#")]
    assert not silent, f"configs/{verb}.yaml: no comment behind or above {', '.join(silent)}"


def test_all_experiments_compose_without_a_problem(capsys):
    from common.verbs import main

    for folder in sorted((CONFIGS / "experiment").iterdir()):
        for file in sorted(folder.glob("*.yaml")):
            code = main(VERBS, [file.stem, f"experiment={folder.name}", "--cfg", "job"])
            assert code == 0, f"hanse {file.stem} experiment={folder.name}: {capsys.readouterr().err}"


# --- what is written about it ---------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text: str) -> list[tuple[str, str]]:
    """(program, first argument) of the commands in shell blocks and in code spans."""
    spans = re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.DOTALL) + re.findall(r"(?<!`)`([^`\n]+)`", text)
    return re.findall(r"(?:^|[$\n;&|] *)(hanse|make) +([a-z][\w-]*)", "\n".join(spans))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for program, argument in commands(page.read_text(encoding="utf-8")):
        assert argument in (VERBS if program == "hanse" else targets), f"{program} {argument}"


def test_readme_lists_every_verb_and_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {argument for program, argument in commands(text) if program == "make"} >= {"demo", "test"}
    missing = [verb for verb in VERBS if f"`hanse {verb}`" not in text]
    assert not missing


def test_files_named_in_the_documentation_are_there():
    folders = ("common", "configs", "data_pipelines", "train", "launch", "consortium", "tests", "docs", "benchmarks")
    pattern = re.compile(rf"`((?:{'|'.join(folders)})/[\w./-]*\.\w+|\w+\.(?:py|md|toml|txt))`")
    examples = {"configs/source/archive_pt.yaml", "mine.txt"}
    for page in PAGES:
        for name in pattern.findall(page.read_text(encoding="utf-8")):
            if name not in examples and "NAME" not in name:
                places = [ROOT / name, *(ROOT / folder / name for folder in folders)]
                assert any(place.exists() for place in places), f"{page.name}: {name}"


# --- packaging ------------------------------------------------------------------------------------------------------


def test_every_direct_dependency_is_pinned_at_a_version_that_satisfies_it():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tested = [*project["dependencies"], *(line for extra in extras if extra != "gpu" for line in extras[extra])]
    for requirement in map(Requirement, tested):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement}, but constraints.txt says {version}"


@pytest.mark.slow
def test_wheel_holds_every_config_and_template(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    subprocess.run([*build, str(source)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("hanse-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=source, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.splitlines()) - packed == set()
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_no_tracked_file_names_a_machine_or_a_registry():
    forbidden = re.compile("|".join([
        r"(?<![\w.])/(?:root|home/\w+)/", r"(?<![\w.])/wor" "k/", r"files\.python" "hosted", r"registry\.npm" "js",
        r"deb\.deb" "ian", r"download\.py" "torch",
    ]))  # fmt: skip
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".ico"):
            found = forbidden.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name}: {found[0]}"
