"""The real directions, through the same notebooks as the simulated ones.

They are no DVC stages, because a stage whose recordings are not on the disk would break
``dvc repro`` for everybody who only wants the default.
"""

import os
import sys
from pathlib import Path

from biox.config import Settings, load_settings
from biox.data import reader_named
from biox.experiment import PATHS
from biox.files import project_root

STAGES = ("teacher", "activations", "positions", "bridge")


def run_real(recordings: Path | str) -> int:
    """Execute windows, teacher, activations, positions and bridge, then Table 1 of real data.

    Parameters
    ----------
    recordings : path
        Folder with a sub-folder for each dataset of ``real_datasets`` in params.yaml.

    Returns
    -------
    int
        0 if all went well; 1 if recordings are missing or a direction failed. A failure stops its
        own direction only; what is missing is said in one sentence each.
    """
    recordings, root = Path(recordings).resolve(), project_root()
    recordings = Path(os.path.relpath(recordings, root))  # no path of this machine in notebooks
    os.chdir(root)
    settings = load_settings(root / "params.yaml")
    missing = _missing(settings, recordings)
    for sentence in missing:
        print(f"missing: {sentence}", file=sys.stderr)
    if missing:
        return 1
    for stale in _results(settings):  # a failure must not leave an older run's results behind
        stale.unlink(missing_ok=True)
    failed = []
    for name in settings.real_datasets:
        where = {"dataset": name, "folder": str(recordings / name)}
        if not _execute("windows", f"windows-{name}", where):
            failed.append(name)
            continue
        failed += [
            direction
            for direction, d in settings.real_directions.items()
            if d.dataset == name
            and not all(
                _execute(stage, f"{stage}-{direction}", {"direction": direction})
                for stage in STAGES  # stops at the first that fails
            )
        ]
    if failed:
        print(f"failed, so no Table 1: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0 if _execute("table1", "table1_real", {"collection": "real_directions"}) else 1


def _results(settings: Settings) -> list[Path]:
    """What says that a direction, or the table, is finished."""
    names = ("table1_real", "table1_real_paired")
    tables = [PATHS.figures / "tables" / f"{n}.{kind}" for n in names for kind in ("csv", "md")]
    return [*tables, *(PATHS.bridge(d) / "scores.json" for d in settings.real_directions)]


def _missing(settings: Settings, recordings: Path) -> list[str]:
    """One sentence for each dataset that is not there: what to download, from where."""
    sentences = []
    for name, choice in settings.real_datasets.items():
        try:
            reader_named(choice.reader or name).subjects(recordings / name)
        except (FileNotFoundError, ValueError) as error:
            sentences.append(str(error))
    return sentences


def _execute(template: str, name: str, parameters: dict) -> bool:
    """Execute a notebook; say in one sentence what failed, if something did."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    executed = f"notebooks/executed/{name}.ipynb"
    print(f"{template} -> {executed}", flush=True)
    try:
        papermill.execute_notebook(f"notebooks/{template}.ipynb", executed, parameters)
    except PapermillExecutionError as error:
        print(f"{name}: {error.ename}: {error.evalue}", file=sys.stderr)
        return False
    except Exception as error:  # a dead kernel, a full disk: the next direction may still run
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True
