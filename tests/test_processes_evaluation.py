"""Evaluation on two processes, with a last batch that does not fill both."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("evaluation_run.py")


def evaluate(folder, processes, batch):
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes,
               SCRIPT, folder, batch]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "evaluation.json").read_text())
    return found["metrics"], found["rows"]


def test_uneven_last_batch(tmp_path):
    """Three questions of four rows, eight rows a pass: the last pass is filled up with the first question again."""
    one, rows = evaluate(tmp_path / "one", 1, 8)
    two, rows_of_two = evaluate(tmp_path / "two", 2, 4)
    assert len(rows) == 12 and rows_of_two[:12] == rows and [row[0] for row in rows_of_two[12:]] == [rows[0][0]] * 4
    assert [row[1] for row in rows_of_two] == ["speech", "speech", "text", "text"] * 4
    assert len({row[0] for row in rows}) == 3
    for metrics, found in ((one, rows), (two, rows_of_two)):
        passes = [found[start : start + 8] for start in range(0, len(found), 8)]
        for modality in ("speech", "text"):  # a mean over passes, as TRL's own metrics are
            shares = [[row[2] for row in part if row[1] == modality] for part in passes]
            expected = sum(sum(share) / len(share) for share in shares) / len(shares)
            assert metrics[f"eval_{modality}/accuracy"] == pytest.approx(expected)
        assert math.isfinite(metrics["eval_gap/accuracy"]) and math.isfinite(metrics["eval_alignment/no_reference"])
