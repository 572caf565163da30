r"""Run the notebooks on a run and keep their outputs in `notebooks/`, as they are committed.

    python tools/execute_notebooks.py runs/demo

Notebook 2 needs RUN/evaluation/before and after, notebook 3 RUN/drift:

    python recipes/evaluate.py --model recipes/demo/tiny-omni --tasks demo --modality both --log_samples true \
        --output_path runs/demo/evaluation/before
    python recipes/evaluate.py --model runs/demo --tasks demo --modality both --log_samples true \
        --output_path runs/demo/evaluation/after
    python recipes/analyze_drift.py --models before=recipes/demo/tiny-omni after=runs/demo --output runs/demo/drift
"""

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(notebook: Path, output: Path) -> None:
    """Run one notebook in the folder of the notebooks, and save it with its outputs; nothing of the machine in it."""
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(
        content, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}, record_timing=False
    ).execute()
    for cell in content.cells:
        if cell.cell_type == "code":  # warnings and progress bars name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    content.metadata["language_info"] = {"name": "python"}
    nbformat.write(content, output)


def main() -> None:
    """Execute all notebooks on one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("--output", type=Path, default=NOTEBOOKS, help="folder for the executed notebooks")
    parser.add_argument("--notebooks", nargs="*", help="names, such as 01_reward_curves; all if not given")
    args = parser.parse_args()
    os.environ["TARS_RUN"] = os.path.relpath(args.run, NOTEBOOKS)
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        if args.notebooks and notebook.stem not in args.notebooks:
            continue
        execute(notebook, args.output / notebook.name)
        print(f"{notebook.name}: {(args.output / notebook.name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
