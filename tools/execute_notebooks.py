r"""Run the notebooks on a run and keep their outputs in `notebooks/`, as they are committed.

    python tools/execute_notebooks.py runs/demo

Notebook 2 needs RUN/evaluation/before and after, notebook 3 RUN/drift:

    tars-trl evaluate --model recipes/demo/tiny-omni --tasks demo=recipes/demo/questions --log_samples true \
        --output_dir runs/demo/evaluation/before
    tars-trl evaluate --model runs/demo --tasks demo=recipes/demo/questions --log_samples true \
        --output_dir runs/demo/evaluation/after
    tars-trl analyze-drift --models before=recipes/demo/tiny-omni after=runs/demo --dataset recipes/demo/questions \
        --output_dir runs/demo/drift
"""

import os
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tars_trl.settings import Settings, parse, run, setting

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@dataclass
class NotebookSettings(Settings):
    """Which run the notebooks show, and where they go."""

    run: str = setting("runs/demo", "Output folder of a training run.", positional=True)
    output_dir: str = setting(str(NOTEBOOKS), "Folder for the executed notebooks.")
    notebooks: list[str] = setting(
        [], "Names, such as 01_reward_curves. Empty: all that show a run; 00_start, which trains one, is named."
    )


def execute(notebook: Path, output_file: Path) -> None:
    """Run one notebook in the folder of the notebooks, and save it with its outputs; nothing of the machine in it."""
    content = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(content, timeout=900, resources=resources, record_timing=False).execute()
    for cell in content.cells:
        if cell.cell_type == "code":  # warnings and progress bars name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    content.metadata["language_info"] = {"name": "python"}
    nbformat.write(content, output_file)


def main(args: list[str] | None = None) -> None:
    (settings,) = parse(NotebookSettings, args=args, description=__doc__)
    os.environ["TARS_RUN"] = os.path.relpath(settings.run, NOTEBOOKS)
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        chosen = notebook.stem in settings.notebooks if settings.notebooks else notebook.stem != "00_start"
        if not chosen:
            continue
        output_file = Path(settings.output_dir) / notebook.name
        execute(notebook, output_file)
        print(f"{notebook.name}: {output_file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    run(main)
