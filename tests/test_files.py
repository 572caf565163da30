"""JSON that was damaged, and files that are whole or as they were."""

from pathlib import Path

import pytest

from tars_trl.data.journal import read_lines
from tars_trl.errors import SettingError
from tars_trl.files import DEEPEST, json_object, parse_json, write_whole
from tars_trl.grpo.resuming import checkpoint_problem
from tars_trl.record import read_run


def nested(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 960, 990, 100_000])
def test_what_is_nested_near_the_limit_of_recursion_is_refused_where_it_is_read(tmp_path, levels):
    assert parse_json(nested(DEEPEST)) and parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    (tmp_path / "run.json").write_text(f'{{"settings": {{"seed": {nested(levels)}}}}}')
    with pytest.raises(SettingError, match=r"run\.json holds no JSON object \(it is nested deeper"):
        read_run(tmp_path)
    (tmp_path / "manifest.json").write_text(f'{{"step": {nested(levels)}, "files": {{}}}}')
    assert checkpoint_problem(tmp_path) == "its manifest.json is damaged"
    with pytest.raises(SettingError, match="generation_kwargs holds no JSON object"):
        json_object(f'{{"a": {nested(levels)}}}', "generation_kwargs")


def test_lines_that_are_none_are_left_out(tmp_path):
    whole = '{"key": "a", "text": "b"}'
    lines = [whole, "5", "null", '"a"', "[1]", '{"text": "c"}', '{"key": [1]}', f'{{"key": "d", "x": {nested(990)}}}']
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    assert read_lines([tmp_path / "lines.jsonl"]) == {"a": {"key": "a", "text": "b"}}


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    write_whole(tmp_path / "run.json", "one")

    def fill(path, text, **_):
        path.open("w").write(text[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "run.json", "two")
    assert (tmp_path / "run.json").read_bytes() == b"one"
