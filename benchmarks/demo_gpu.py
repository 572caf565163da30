"""Two hundred steps of the demo's recipe on the GPU, against the CPU's curve.

    python benchmarks/demo_gpu.py                     # six minutes on the CPU, then the GPU
    python benchmarks/demo_gpu.py --second cpu        # control: the CPU against itself, which is bit for bit

Both run the demo's recipe with the same seed. Sampling draws from other random numbers on a GPU, so curves are compared
by their means over the last quarter of the steps; it ends with an error if they are further apart than `--tolerance`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

METRICS = ("speech/accuracy", "text/accuracy", "alignment/layer_similarity/last_third")


def train(device: str, folder: Path, steps: int) -> tuple[list[dict], float]:
    """Logs and seconds of one run of the recipe."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
               "recipes/tars_qwen_omni.py", "--config", "recipes/qwen2_5_omni/demo.yaml",
               "--output_dir", str(folder), "--max_steps", str(steps), "--logging_steps", "1",
               "--report_to", "none"]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
    seconds = time.perf_counter() - start
    state = json.loads((folder / "trainer_state.json").read_text())
    return [log for log in state["log_history"] if "loss" in log], seconds


def main() -> None:
    """Two runs and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--second", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tolerance", type=float, default=0.1, help="between the two means of a metric")
    parser.add_argument("--output", type=Path, default=Path("runs/demo_gpu"))
    options = parser.parse_args()
    if options.second == "gpu" and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/demo_gpu.py: there is no GPU here. Run it on a machine that has one, or give --second cpu."
        )
    output = options.output.resolve()
    runs = {
        "cpu": train("cpu", output / "cpu", options.steps),
        options.second + "2" * (options.second == "cpu"): train(options.second, output / "second", options.steps),
    }
    means = {}
    for name, (logs, _) in runs.items():
        last_quarter = pd.DataFrame(logs[-max(1, len(logs) // 4) :]).reindex(columns=METRICS)
        means[name] = last_quarter.astype(float).mean().to_dict()
    one, two = means.values()
    report = {
        "device": torch.cuda.get_device_name() if options.second == "gpu" else "CPU",
        "steps": options.steps,
        "seconds": {name: round(seconds, 1) for name, (_, seconds) in runs.items()},
        "last_quarter": means,
        "curves": {name: {m: [log.get(m) for log in logs] for m in METRICS} for name, (logs, _) in runs.items()},
    }
    (output / "curves.json").write_text(json.dumps(report, indent=2) + "\n")
    print("Means over the last quarter, and seconds:")
    print(pd.DataFrame(means).round(3), pd.Series(report["seconds"]), sep="\n\n")
    apart = {metric: abs(one[metric] - two[metric]) for metric in METRICS}
    if any(difference > options.tolerance for difference in apart.values()):
        raise SystemExit(f"The curves are apart by {apart}, where {options.tolerance} is allowed. See {output}.")


if __name__ == "__main__":
    main()
