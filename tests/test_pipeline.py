"""dvc.yaml says what each stage reads; what is in git agrees with README and with a fresh run."""

import ast
import io
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from dvc.repo import Repo

from biox import metrics, notebook
from biox.config import PATHS, Section, Settings, load_settings

ROOT = Path(__file__).parents[1]
SETTINGS = load_settings(ROOT / "params.yaml")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in STAGES.items()}
# Weights in git are data, not derived anew from each change of the code: they depend on their
# settings alone, and `dvc repro -f pretrain` makes them again.
OF_WEIGHTS = ("pretrain", "dual_mask")
STAGES_OF_CODE = [name for name in STAGES if name not in OF_WEIGHTS]
SETTINGS_NOT_USED = {"sweep": {"search"}}  # the page reads it only where no lr_from is given
of_each_stage = pytest.mark.parametrize("stage", STAGES_OF_CODE)


def template(stage):
    return ROOT / STAGES[stage]["cmd"].split()[1]


def outs(stage):
    """Path of each out -> whether DVC caches it."""
    entries = [out if isinstance(out, dict) else {out: {}} for out in STAGES[stage]["outs"]]
    return {path: how.get("cache", True) for out in entries for path, how in out.items()}


def deps(stage):
    return [dep.rstrip("/") for dep in STAGES[stage].get("deps", [])]


def covered(path, entries):
    return any(path == entry or path.startswith(entry + "/") for entry in entries)


@cache
def code(path):
    """Syntax tree of a module or of a page's code cells, without what only type checkers read."""
    if path.suffix == ".py":
        text = path.read_text()
    else:
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    return tree


def module_file(name):
    """File of a dotted name below biox; None if it is no module."""
    path = ROOT / name.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imported(path):
    """Files of biox that a module or page imports itself."""
    for node in ast.walk(code(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == "biox":
                parts = name.split(".")
                parents = [module_file(".".join(parts[: i + 1])) for i in range(len(parts))]
                yield from (file for file in parents if file is not None)


def calls(path):
    return [node for node in ast.walk(code(path)) if isinstance(node, ast.Call)]


def chooses_by_name(path):
    return any("import_module" in ast.unparse(call.func) for call in calls(path))


def says_nothing(path):
    """Whether a package's file has a docstring and a version at most."""
    plain = ast.Expr | ast.Assign
    return path.name == "__init__.py" and all(isinstance(n, plain) for n in code(path).body)


@cache
def read_by(page):
    """Files of biox that a page needs, with all that these import, relative to the root.

    A package that imports its modules by name may need any of them: the whole folder is read.
    """
    found, todo = set(), [page]
    while todo:
        new = [file for file in imported(todo.pop()) if file not in found]
        for file in list(new):
            if chooses_by_name(file):
                new += [other for other in file.parent.glob("*.py") if other not in found]
        found.update(new)
        todo += new
    return {file.relative_to(ROOT).as_posix() for file in found if not says_nothing(file)}


def test_modules_import_only_what_comes_before_them():
    """One direction, no way back; data and backbones know nothing else of biox."""
    order = "data backbones config metrics plots notebook cka teacher bridge training activations "
    order = (order + "positions baselines fusion sweep predict __main__").split()
    rooms = {"__init__": []} | {room: order[:i] for i, room in enumerate(order)}
    rooms["backbones"] = []
    for path in (ROOT / "biox").rglob("*.py"):
        own = path.relative_to(ROOT / "biox").parts[0].removesuffix(".py")
        others = {file.relative_to(ROOT / "biox").parts[0] for file in imported(path)}
        others = {other.removesuffix(".py") for other in others} - {own, "__init__"}
        assert others <= set(rooms[own]), path


def test_models_are_named_in_backbones_alone():
    """As classes; settings name them in strings."""
    classes = {
        node.name
        for path in (ROOT / "biox/backbones").glob("*.py")
        for node in code(path).body
        if isinstance(node, ast.ClassDef) and "Backbone" in map(ast.unparse, node.bases)
    }
    assert len(classes) >= 7, classes
    for path in (ROOT / "biox").rglob("*.py"):
        if path.parent.name != "backbones":
            named = (n for n in ast.walk(code(path)) if isinstance(n, ast.Name | ast.Attribute))
            used = {ast.unparse(n).rsplit(".")[-1] for n in named}
            assert not used & classes, path


@of_each_stage
def test_a_stage_depends_on_all_code_that_its_page_imports(stage):
    missing = [path for path in sorted(read_by(template(stage))) if not covered(path, deps(stage))]
    assert not missing, f"{stage}: dvc.yaml leaves out {missing}"
    assert template(stage).relative_to(ROOT).as_posix() in deps(stage)


@of_each_stage
def test_a_stage_depends_on_no_other_code(stage):
    code_deps = [dep for dep in deps(stage) if dep.startswith("biox")]
    read = read_by(template(stage))
    assert not [dep for dep in code_deps if not any(covered(path, [dep]) for path in read)]


def files_read(path):
    """Folders of data/, and files beside the notebooks, that a page names itself."""
    for node in ast.walk(code(path)):
        if isinstance(node, ast.Constant) and str(node.value).startswith(
            ("notebooks/", "figures/")
        ):
            yield node.value
    for call in calls(path):
        *_, owner, kind = ["", *ast.unparse(call.func).split(".")]
        if (owner, kind) == ("notebook", "reported"):
            yield "notebooks/reported.yaml"
        if owner != "PATHS" or not hasattr(PATHS, kind):
            continue
        if kind == "results":
            if isinstance(call.args[0], ast.Constant):
                yield f"data/{call.args[0].value}"
        else:
            names = ("dataset", "split") if kind in ("windows", "activations") else ("name",)
            yield "/".join(getattr(PATHS, kind)(*names).parts[:2])


@of_each_stage
def test_a_stage_depends_on_the_data_that_its_page_names(stage):
    named = [*deps(stage), *outs(stage)]
    through_activations = {"data/windows", "data/pretrained"} if "activations" in str(named) else {}
    for path in set(files_read(template(stage))) - set(through_activations):
        assert any(known == path or known.startswith(f"{path}/") for known in named), path


def sections_read(path):
    """Sections of the settings that a page reads: of ``run.settings.bridge.rank``, ``bridge``."""
    for node in ast.walk(code(path)):
        chain = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
        if "settings" in chain[:-1]:
            yield chain[chain.index("settings") + 1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_settings_that_its_page_reads(stage):
    listed = [re.sub(r"\$\{.*\}", "x", key).split(".") for key in STAGES[stage].get("params", [])]
    read = set(sections_read(template(stage))) & set(Settings.model_fields)
    missing = read - {key for key, *_ in listed} - SETTINGS_NOT_USED.get(stage, set())
    assert stage in OF_WEIGHTS or not missing, f"{stage}: dvc.yaml leaves out {missing}"
    for key, *rest in listed:
        section = Settings.model_fields[key].annotation
        if rest and isinstance(section, type) and issubclass(section, Section):
            assert rest[0] in section.model_fields


def test_weights_in_git_depend_on_their_settings_alone():
    """Neither a fresh clone nor a change of code trains them anew."""
    for stage in OF_WEIGHTS:
        assert deps(stage) == [] and set(outs(stage).values()) == {False}
        assert all(key.startswith(stage) for key in STAGES[stage]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_executed_pages_are_leaves_and_what_is_in_git_is_not_cached(stage):
    assert not [dep for dep in deps(stage) if dep.startswith("notebooks/executed")]
    executed = [path for path in outs(stage) if path.startswith("notebooks/executed/")]
    assert len(executed) == (stage != "pretrain")
    for path, cached in outs(stage).items():
        assert cached == (path.startswith("data/") and not path.startswith("data/pretrained")), path


TYPES = {"str": str, "int": int, "float": (int, float), "list": list, "bool": bool}


def test_commands_are_plain_papermill_with_parameters_that_exist():
    """Of every stage, with all keys and options that params.yaml puts in."""
    with Repo(ROOT) as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages}
    assert len(stages) >= len(STAGES) + len(SETTINGS.directions)
    for name, stage in stages.items():
        papermill, page, executed, *options = shlex.split(stage.cmd)
        stem = Path(page).stem
        assert papermill == "papermill" and executed.startswith(f"notebooks/executed/{stem}"), name
        assert options[::3] == ["-p"] * (len(options) // 3), name
        declared = notebook.declared_parameters(ROOT / page)
        given = dict(zip(options[1::3], map(yaml.safe_load, options[2::3]), strict=True))
        for option, value in given.items():
            kind, _ = declared[option]
            assert isinstance(value, TYPES[kind]), f"{name}: {option} {value!r}"


@pytest.mark.parametrize(("name", "options"), SETTINGS.ablations.runs.items())
def test_runs_of_the_sweep_change_one_thing_to_a_possible_value(name, options):
    words = options.split()
    given = dict(zip(words[1::3], map(yaml.safe_load, words[2::3]), strict=True))
    known = {
        key: value for key, value in given.items() if key in type(SETTINGS.bridge).model_fields
    }
    changed = SETTINGS.override("bridge", known).bridge
    assert changed != SETTINGS.bridge or "share" in given, name


def test_stages_come_in_the_right_order():
    """Folders as dependencies bring all stages that write into them."""
    with Repo(ROOT) as repo:
        graph = repo.index.graph
        before = {stage.addressing: set() for stage in graph}
        for stage in graph:  # edges lead to what a stage needs
            todo = [stage]
            while todo:
                for need in graph.successors(todo.pop()):
                    if need.addressing not in before[stage.addressing]:
                        before[stage.addressing].add(need.addressing)
                        todo.append(need)
    for name, direction in SETTINGS.directions.items():
        assert {f"bridge@{name}", f"baselines@{name}", f"positions@{name}"} <= before["table1"]
        needs = {f"teacher@{name}", f"positions@{name}", f"windows@{direction.dataset}"}
        weights = f"pretrain@{direction.new_key}"
        needs |= {weights if weights in before else "dual_mask"}
        assert needs <= before[f"bridge@{name}"]
        assert f"baselines@{name}" not in before[f"bridge@{name}"]
    assert {f"sweep@{run}" for run in SETTINGS.ablations.runs} <= before["figure4"]
    one = before[f"bridge@{SETTINGS.ablations.direction}"]
    assert len([name for name in one if not name.startswith(OF_WEIGHTS)]) == 4
    assert not [name for name in before if name.startswith(OF_WEIGHTS) and before[name]]


# --- what is in git -------------------------------------------------------------------------------


def test_pictures_tables_and_pages_in_git_are_made_by_a_stage():
    """Nothing is left over from stages that are gone; `make bench` makes three, a sweep one."""
    with Repo(ROOT) as repo:
        made = {out.fs_path for stage in repo.index.stages for out in stage.outs}
    made = {Path(path).relative_to(ROOT).as_posix() for path in made}
    bench = {"18": "efficiency", "26": "pairs", "27": "stand_ins"}
    made |= {f"notebooks/executed/{number}_{name}.ipynb" for number, name in bench.items()}
    made |= {f"figures/{name}" for name in bench.values()}
    tables = [*bench.values(), "centre"]
    made |= {f"figures/tables/{name}.{kind}" for name in tables for kind in ("csv", "md")}
    made |= {f"notebooks/executed/{page}.ipynb" for page in ("03_pretrain-ecg", "25_sweep")}
    command = ["git", "ls-files", "figures", "notebooks/executed"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [path for path in listed if not covered(path, made)]


def committed(path):
    """Text of a file as in the last commit, or on the disk where there is no git."""
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True)
    return (ROOT / path).read_text() if shown.returncode else shown.stdout.decode()


def scores_in_git():
    """Balanced accuracy in per cent of Table 1: (direction, method) -> value."""
    table = pd.read_csv(io.StringIO(committed("figures/tables/table1.csv")))
    return table.set_index(["direction", "method"])["balanced_accuracy"]


def test_readme_shows_the_scores_of_the_table():
    """Between the marks, each row is a direction, and each column of a method has its scores."""
    text = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- table1 -->(.*)<!-- /table1 -->", text, re.DOTALL)[1]
    header, _, *rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in shown.splitlines()
        if line.strip().startswith("|")
    ]
    kept = pd.read_csv(ROOT / "figures/tables/table1.csv")
    kept = kept.set_index(["direction", "method"])
    scores, trained = kept["balanced_accuracy"], kept["n_parameters"]
    directions = [direction for direction, *_ in rows]  # a user may have more
    assert directions == [name for name in SETTINGS.directions if name in directions]
    assert {"BioX-Bridge", "KD", "Oracle"} <= set(header)
    means = kept.loc[directions].groupby("method")[["balanced_accuracy", "auroc"]].mean()
    for method, before in (("BioX-Bridge", "AUROC "), ("KD", ""), ("Bridge (ours)", "AUROC ")):
        score, area = means.loc[method]
        assert f"{score:.1f} % ({before}{area:.1f})" in text, method
    for name, *cells in rows:
        simulated = SETTINGS.dataset(SETTINGS.directions[name].dataset).source == "simulated"
        known = {"data": "simulated" if simulated else "real"}
        known["KD / bridge"] = f"{trained[name, 'KD'] / trained[name, 'BioX-Bridge']:.1f}"
        for column, cell in zip(header[1:], cells, strict=True):
            assert cell == (known.get(column) or f"{scores[name, column]:.1f}"), (name, column)


def test_scores_in_git_agree_with_a_fresh_run():
    """Scores are computed anew from the predictions in data/; README states the tolerance."""
    names = [name for name, d in SETTINGS.directions.items() if d.new_model is None]
    kinds = {n: ("bridges", "baselines", "computed") for n in names}
    kinds |= {n: ("folds",) for n in names if f"directions.{n}" in STAGES["folds"]["params"]}
    folders = [ROOT / PATHS.results(kind, n) for n in names for kind in kinds[n]]
    folders = [folder for folder in folders if (folder / "predictions.csv").is_file()]
    if not folders:
        pytest.skip("no bridge and no baseline has been run here: dvc repro table1")
    predictions, _, runs = metrics.read_results(folders)
    fresh = metrics.score_table(predictions, runs, by=["direction", "method"])
    fresh = fresh.set_index(["direction", "method"])["balanced_accuracy"]
    kept = scores_in_git()[fresh.index]
    readme = (ROOT / "README.md").read_text()
    tolerance = float(re.search(r"within \*\*([\d.]+) points\*\*", readme)[1])
    differ = (fresh - kept).abs()
    assert (differ <= tolerance).all(), differ[differ > tolerance]


def test_a_fresh_clone_has_what_dvc_lock_promises():
    """Weights and tables in git are those that the last run of their stages wrote."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    with Repo(ROOT) as repo, repo.lock:
        stages = {stage.addressing: stage for stage in repo.index.stages}
        for name in set(lock) & set(stages):  # a stage that a user has added may not have run
            if name.startswith(OF_WEIGHTS):
                assert not stages[name].changed(), f"run: dvc repro -f {name}"
