"""Loading, converting and checking questions. Everything is local and written on the spot."""

import csv
import io
import json
from time import monotonic, sleep
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tars_trl.data import (
    COLUMNS,
    SYSTEM_PROMPT,
    build_prompt,
    check_rows,
    hub,
    spoken_text,
    written_question,
)
from tars_trl.data.audio import load_audio
from tars_trl.data.questions import draw_numbers, load_questions
from tars_trl.errors import QuestionError, SettingError
from tests.conftest import questions

OPTIONS = ["red", "green", "blue", "grey"]
SPOKEN = "What colour is grass?\n\nOption A: red\nOption B: green\nOption C: blue\nOption D: grey"
VOICEBENCH = (
    "What colour is grass?\nA. red\nB. green\nC. blue\nD. grey\n"
    "What is the answer to the above multiple choice question? Select one of the following: A, B, C, or D."
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`datasets` converts parquet into its cache; keep that out of the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def clip() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(4_000) / 5), 16_000, format="FLAC")
    return buffer.getvalue()


def schema_row(number=0, **changes):
    row = {
        "audio": {"bytes": clip(), "path": None},
        "prompt": build_prompt(SPOKEN),
        "question": "What colour is grass?",
    }
    row |= {"options": OPTIONS, "answer_index": 1, "key": f"q{number}", "topic": f"t{number}"}
    return row | changes


def tars_row(number=0, **changes):
    """A row with the columns of the published training set."""
    row = {"key": f"mmlu-{number}", "question_id": number, "question": "What __ is grass?", "options": OPTIONS}
    row |= {"answer": "B", "answer_index": 1, "question_for_tts": "What what is grass?", "prompt_for_tts": SPOKEN}
    row |= {"audio": {"bytes": clip(), "path": None}, "tts_wer": 0.05, "category": "nature"}
    return row | changes


def as_dataset(*rows):
    return Dataset.from_list(list(rows)).cast_column("audio", Audio())


def load_rows(tmp_path, *rows, **kwargs):
    as_dataset(*rows).save_to_disk(tmp_path / "rows")
    return load_questions(tmp_path / "rows", **kwargs)


def assert_questions(loaded, count):
    """Every row follows the schema, and its audio is there, undecoded."""
    check_rows(loaded)
    assert len(loaded) == count
    assert loaded.features["audio"] == Audio(decode=False)
    for row in loaded:
        assert len(load_audio(row["audio"])) == 4_000
        assert spoken_text(row["prompt"]) == SPOKEN and row["options"] == OPTIONS and row["answer_index"] == 1


class TestWriting:
    def test_written_question(self):
        assert written_question(" What colour is grass? ", OPTIONS) == SPOKEN

    @pytest.mark.parametrize("count", [0, 27])
    def test_options_without_letters(self, count):
        with pytest.raises(QuestionError, match=f"{count} options"):
            written_question("Which?", ["x"] * count)

    def test_prompt_without_instruction_holds_strings(self):
        assert build_prompt("Why?") == [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": "Why?"},
        ]

    def test_prompt_with_instruction_holds_parts(self):
        assert build_prompt("Why?", "Be brief.", "Answer now.") == [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}, {"type": "text", "text": "Answer now."}]},
        ]

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_prompt_without_system_turn(self, nothing):
        assert build_prompt("Why?", nothing) == [{"role": "user", "content": "Why?"}]

    @settings(deadline=None)
    @given(text=st.text(min_size=1).filter(str.strip), instruction=st.none() | st.text())
    def test_what_is_spoken_is_what_was_asked(self, text, instruction):
        assert spoken_text(build_prompt(text, instruction=instruction)) == text

    def test_the_last_user_turn_is_spoken(self):
        talk = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?"},
            *build_prompt("Why?", None),
        ]
        assert spoken_text(talk) == "Why?"

    @pytest.mark.parametrize(
        "prompt",
        [
            [],
            [{"role": "system", "content": "x"}],
            [{"role": "user", "content": " "}],
            [{"role": "user", "content": []}],
        ],
    )
    def test_nothing_to_speak(self, prompt):
        with pytest.raises(QuestionError, match="user turn"):
            spoken_text(prompt)


class TestSources:
    def test_saved_data_set(self, tmp_path):
        loaded = load_rows(tmp_path, schema_row(0), schema_row(1))
        assert_questions(loaded, 2)
        assert loaded["topic"][:] == ["t0", "t1"]

    def test_saved_splits(self, tmp_path):
        splits = {"train": as_dataset(schema_row(0)), "test": as_dataset(schema_row(1), schema_row(2))}
        DatasetDict(splits).save_to_disk(tmp_path / "saved")
        assert_questions(load_questions(tmp_path / "saved"), 1)
        assert load_questions(tmp_path / "saved", "test")["key"][:] == ["q1", "q2"]
        with pytest.raises(QuestionError, match="no split 'dev'.*'train', 'test'"):
            load_questions(tmp_path / "saved", "dev")

    def test_split_saved_in_its_own_folder(self, tmp_path):
        as_dataset(schema_row(3)).save_to_disk(tmp_path / "saved" / "test")
        assert_questions(load_questions(tmp_path / "saved", "test"), 1)

    @pytest.mark.parametrize("nested", ["", "data"])
    def test_folder_of_parquet_shards(self, tmp_path, nested):
        folder = tmp_path / "shards" / nested
        folder.mkdir(parents=True)
        as_dataset(schema_row(0)).to_parquet(folder / "train-00000-of-00002.parquet")
        as_dataset(schema_row(1)).to_parquet(folder / "train-00001-of-00002.parquet")
        as_dataset(schema_row(2)).to_parquet(folder / "test-00000-of-00001.parquet")
        assert_questions(load_questions(tmp_path / "shards"), 2)
        assert load_questions(tmp_path / "shards", "test")["key"][:] == ["q2"]

    def test_clone_of_a_hub_repository(self, tmp_path):
        repository = tmp_path / "clone"
        (repository / "spoken").mkdir(parents=True)
        as_dataset(schema_row(0)).to_parquet(repository / "spoken" / "test-00000-of-00001.parquet")
        card = "configs:\n- config_name: voices\n  data_files:\n  - split: test\n    path: spoken/test-*\n"
        (repository / "README.md").write_text(f"---\n{card}---\n# Spoken questions\n")
        assert_questions(load_questions(repository, "test", name="voices"), 1)

    def test_folders_of_one_name_with_one_card_are_not_mixed_up(self, tmp_path):
        """Also not what was in the folder before: a data set that was built again is read anew."""
        files = "{split: train, path: data/train-*.parquet}"
        card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - {files}\n---\n"
        folders = [tmp_path / name / "spoken" for name in ("one", "two")]
        for number, folder in enumerate(folders):
            (folder / "data").mkdir(parents=True)
            (folder / "README.md").write_text(card)
            as_dataset(schema_row(number)).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        assert [load_questions(folder)["key"][:] for folder in folders] == [
            [schema_row(0)["key"]],
            [schema_row(1)["key"]],
        ]
        as_dataset(schema_row(2)).to_parquet(folders[0] / "data" / "train-00000-of-00001.parquet")
        assert load_questions(folders[0])["key"][:] == [schema_row(2)["key"]]

    def test_single_parquet_file(self, tmp_path):
        as_dataset(tars_row()).to_parquet(tmp_path / "held_out.parquet")
        assert_questions(load_questions(tmp_path / "held_out.parquet", "test"), 1)

    @pytest.mark.parametrize("table", ["questions.jsonl", "metadata.jsonl", "train.jsonl", "train/questions.jsonl"])
    @pytest.mark.parametrize("column", ["audio", "file_name"])
    def test_folder_of_clips_with_a_table(self, tmp_path, monkeypatch, table, column):
        table = tmp_path / "folder" / table
        (table.parent / "clips").mkdir(parents=True)
        (table.parent / "clips" / "0.flac").write_bytes(clip())
        row = schema_row() | {"audio": None}
        table.write_text("\n" + json.dumps(row | {column: "clips/0.flac"}) + "\n")
        monkeypatch.chdir(tmp_path)
        assert_questions(load_questions("folder"), 1)
        monkeypatch.chdir("/")
        assert_questions(load_questions(table), 1)

    def test_csv(self, tmp_path):
        (tmp_path / "0.flac").write_bytes(clip())
        with (tmp_path / "questions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "question", "options", "answer_index", "prompt_for_tts", "key"])
            writer.writerow(["0.flac", "What, then?", json.dumps(OPTIONS), 1, SPOKEN, "q0"])
        assert_questions(load_questions(tmp_path), 1)

    def test_an_unnamed_table_is_not_taken_for_a_held_out_split(self, tmp_path):
        (tmp_path / "questions.jsonl").write_text(json.dumps(schema_row() | {"audio": "0.flac"}))
        with pytest.raises(ValueError, match="test"):
            load_questions(tmp_path, "test")

    def test_columns_that_only_later_rows_have(self, tmp_path):
        rows = [schema_row(number, audio="0.flac") for number in range(2)]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [rows[0], rows[1] | {"source": "mine"}])))
        assert load_questions(tmp_path / "q.jsonl")["source"][:] == [None, "mine"]

    def test_json_may_mix_strings_and_parts(self, tmp_path):
        parts = [{"role": "system", "content": "Think."}, build_prompt(SPOKEN, instruction="Now.")[-1]]
        rows = [schema_row(0, audio="0.flac"), schema_row(1, audio="0.flac", prompt=parts)]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
        loaded = load_questions(tmp_path / "q.jsonl")
        assert [spoken_text(prompt) for prompt in loaded["prompt"]] == [SPOKEN, SPOKEN]
        assert loaded[1]["prompt"][0]["content"] == [{"type": "text", "text": "Think."}]
        assert loaded[1]["prompt"][1]["content"][1] == {"type": "text", "text": "Now."}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{not json", "line 1: not JSON"),
            ('\n["a list"]', "line 2: not a JSON object"),
            ('{"key": "a"}\n{"key": ["b"]}', r"q.jsonl, row 2, key: \['b'\] has no place"),
            ("", "no rows"),
        ],
    )
    def test_broken_json(self, tmp_path, text, message):
        (tmp_path / "q.jsonl").write_text(text)
        with pytest.raises(QuestionError, match=message):
            load_questions(tmp_path / "q.jsonl")

    def test_other_files(self, tmp_path):
        (tmp_path / "q.txt").write_text("?")
        with pytest.raises(QuestionError, match="'.txt' file is no table"):
            load_questions(tmp_path / "q.txt")

    @pytest.mark.parametrize("path", ["/nowhere/questions", "./nowhere", "a/b/c", "nowhere.jsonl", "nowhere.parquet"])
    def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(self, path):
        with pytest.raises(FileNotFoundError, match="nowhere|a/b/c"):
            load_questions(path)

    def test_hub_id(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *args, **kw: calls.append((args, kw)) or as_dataset(tars_row())
        )
        assert_questions(load_questions("someone/questions", "test", name="voices", revision="v1"), 1)
        assert calls == [(("someone/questions", "voices"), {"split": "test", "revision": "v1"})]


class TestConversion:
    def test_published_training_rows(self, tmp_path):
        loaded = load_rows(tmp_path, tars_row(0), tars_row(1))
        assert_questions(loaded, 2)
        assert loaded["key"][:] == ["mmlu-0", "mmlu-1"] and loaded[0]["prompt"] == build_prompt(SPOKEN)
        assert loaded[0]["question"] == "What __ is grass?" and loaded["category"][:] == ["nature"] * 2
        assert set(COLUMNS) | set(tars_row()) == set(loaded.column_names)

    @pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "green", 1])
    def test_answer_without_index(self, tmp_path, answer):
        row = tars_row(answer=answer)
        del row["answer_index"]
        assert_questions(load_rows(tmp_path, row), 1)

    @pytest.mark.parametrize("answer", ["E", "yellow", "", None])
    def test_answer_that_is_no_option(self, tmp_path, answer):
        row = tars_row(answer=answer)
        del row["answer_index"]
        with pytest.raises(QuestionError, match="row 'mmlu-0', answer=.* names 0 of the options"):
            load_rows(tmp_path, row)

    def test_an_index_that_counts_from_one_is_noticed(self, tmp_path):
        with pytest.raises(QuestionError, match="row 'mmlu-0', answer_index=2, answer='B'"):
            load_rows(tmp_path, tars_row(answer_index=2))

    def test_options_that_are_numbers(self, tmp_path):
        row = tars_row(options=[7, 9, 11, 13])
        assert load_rows(tmp_path, row)[0]["options"] == ["7", "9", "11", "13"]

    def test_options_that_are_letters(self, tmp_path):
        """The option "B" is labelled A: either reading agrees with an index, neither decides alone."""
        row = tars_row(options=["B", "A"], answer="B")
        assert load_rows(tmp_path, row | {"answer_index": 0})[0]["answer_index"] == 0
        del row["answer_index"]
        with pytest.raises(QuestionError, match="names 2 of the options"):
            load_rows(tmp_path / "undecided", row)

    def test_written_form_without_prompt_for_tts(self, tmp_path):
        row = tars_row(question="What colour is grass?")
        del row["prompt_for_tts"]
        assert_questions(load_rows(tmp_path, row), 1)

    def test_key_falls_back_to_the_number(self, tmp_path):
        rows = [tars_row(number) for number in range(2)]
        without_key = [{name: row[name] for name in row if name != "key"} for row in rows]
        assert load_rows(tmp_path, *without_key)["key"][:] == ["0", "1"]
        without_id = [{name: row[name] for name in row if name != "question_id"} for row in without_key]
        as_dataset(*without_id).save_to_disk(tmp_path / "unnamed")
        assert load_questions(tmp_path / "unnamed")["key"][:] == ["train-000000", "train-000001"]

    def test_voicebench_rows(self, tmp_path):
        loaded = load_rows(tmp_path, {"prompt": VOICEBENCH, "audio": {"bytes": clip(), "path": None}, "reference": "B"})
        row = loaded[0]
        assert row["question"] == "What colour is grass?" and row["options"] == OPTIONS and row["answer_index"] == 1
        assert row["prompt"] == build_prompt(VOICEBENCH) and row["reference"] == "B"

    @pytest.mark.parametrize(
        ("prompt", "question", "options"),
        [
            ("Who?\nA. One\nB. Two", "Who?", ["One", "Two"]),
            ("I met\nA. Smith once.\nWho?\nA. One\nB. Two\n\nChoose.", "I met\nA. Smith once.\nWho?", ["One", "Two"]),
            ("Who?\n(A) One\n(B) Two\nlines\n(C) Three", "Who?", ["One", "Two\nlines", "Three"]),
        ],
    )
    def test_voicebench_prompts(self, tmp_path, prompt, question, options):
        row = load_rows(tmp_path, {"prompt": prompt, "audio": {"bytes": clip(), "path": None}, "reference": "A"})[0]
        assert (row["question"], row["options"]) == (question, options)

    @pytest.mark.parametrize("prompt", ["Talk about grass.", "A. One\nB. Two", ""])
    def test_voicebench_rows_that_are_no_choice(self, tmp_path, prompt):
        with pytest.raises(QuestionError, match="row 'train-000000', prompt"):
            load_rows(tmp_path, {"prompt": prompt, "audio": {"bytes": clip(), "path": None}, "reference": "A"})

    def test_system_prompt_and_instruction_of_converted_rows(self, tmp_path):
        loaded = load_rows(tmp_path, tars_row(), system_prompt="Be brief.", instruction="Answer now.")
        assert loaded[0]["prompt"] == build_prompt(SPOKEN, "Be brief.", "Answer now.")
        assert load_questions(tmp_path / "rows", system_prompt="")[0]["prompt"] == build_prompt(SPOKEN, None)

    def test_prompts_of_schema_rows_change_only_on_request(self, tmp_path):
        own = build_prompt(SPOKEN, "My own.", "My instruction.")
        assert load_rows(tmp_path, schema_row(prompt=own))[0]["prompt"] == own
        rows = tmp_path / "rows"
        assert load_questions(rows, system_prompt="New.")[0]["prompt"] == build_prompt(
            SPOKEN, "New.", "My instruction."
        )
        assert load_questions(rows, instruction="Now.")[0]["prompt"] == build_prompt(SPOKEN, "My own.", "Now.")
        without = load_questions(rows, system_prompt="", instruction="")[0]["prompt"]
        assert without == [{"role": "user", "content": [{"type": "text", "text": SPOKEN}]}]

    def test_new_system_prompt_keeps_plain_content_plain(self, tmp_path):
        loaded = load_rows(tmp_path, schema_row(), system_prompt="New.")
        assert loaded[0]["prompt"] == build_prompt(SPOKEN, "New.")

    def test_column_map(self, tmp_path):
        row = tars_row()
        row = {"text": row.pop("prompt_for_tts"), "label": row.pop("answer_index"), **row} | {
            "key": "old",
            "id2": "new",
        }
        del row["answer"]
        names = {"text": "prompt_for_tts", "label": "answer_index", "id2": "key"}
        loaded = load_rows(tmp_path, row, column_map=names)
        assert_questions(loaded, 1)
        assert loaded[0]["key"] == "new"
        with pytest.raises(QuestionError, match=r"\['txt'\]"):
            load_questions(tmp_path / "rows", column_map={"txt": "prompt_for_tts"})

    def test_a_dotted_name_takes_its_own_column_apart_and_no_other(self, tmp_path):
        row = tars_row(meta={"source": "x"}) | {"choices": {"text": OPTIONS, "label": ["1", "2", "3", "4"]}}
        del row["options"]
        loaded = load_rows(tmp_path, row, column_map={"choices.text": "options"})
        assert_questions(loaded, 1)
        assert loaded[0]["meta"] == {"source": "x"} and loaded[0]["choices.label"] == ["1", "2", "3", "4"]

    def test_a_data_set_in_a_single_column(self, tmp_path):
        """As MMLU's auxiliary_train; a field may be a recording."""
        row = {
            "text": SPOKEN,
            "question": "What?",
            "choices": OPTIONS,
            "answer": 1,
            "clip": {"bytes": clip(), "path": None},
        }
        rows = Dataset.from_list([{"train": row}])
        features = {**rows.features["train"], "clip": Audio()}
        rows.cast(datasets.Features({"train": features})).save_to_disk(tmp_path / "rows")
        names = {"text": "prompt_for_tts", "question": "question", "choices": "options", "answer": "answer"}
        names = {f"train.{theirs}": ours for theirs, ours in (names | {"clip": "audio"}).items()}
        assert_questions(load_questions(tmp_path / "rows", column_map=names), 1)

    @pytest.mark.parametrize("labels", [list("ABCD"), list("1234"), list("3124")])
    @pytest.mark.parametrize("options", [OPTIONS, list("4321")])
    @pytest.mark.parametrize("dotted", [True, False])
    def test_answers_that_are_labels(self, tmp_path, labels, options, dotted):
        row = tars_row(answer=labels[1]) | {"choices": {"text": options, "label": labels}}
        row = {name: value for name, value in row.items() if name not in ("options", "answer_index")}
        names = {"choices.text": "options", "choices.label": "option_labels"} if dotted else {"choices": "options"}
        loaded = load_rows(tmp_path, row, column_map=names)
        assert (loaded[0]["options"], loaded[0]["answer_index"]) == (options, 1)

    def test_labels_that_are_not_there_or_not_enough(self, tmp_path):
        row = {name: value for name, value in tars_row(answer="2").items() if name != "answer_index"}
        with pytest.raises(QuestionError, match="row 'mmlu-0', answer='2'.*choices.label=option_labels"):
            load_rows(tmp_path / "none", row)
        with pytest.raises(QuestionError, match="row 'mmlu-0', option_labels=.*not as many"):
            load_rows(tmp_path / "few", row | {"option_labels": ["1", "2"]})

    @pytest.mark.parametrize("index", ["B", "1", 1.5])
    def test_an_index_that_is_none_names_its_row(self, tmp_path, index):
        with pytest.raises(QuestionError, match=f"row 'mmlu-0', answer_index={index!r}.*from 0"):
            load_rows(tmp_path, tars_row(answer_index=index))

    def test_an_index_with_a_point(self, tmp_path):
        assert load_rows(tmp_path, tars_row(answer_index=1.0))[0]["answer_index"] == 1

    def test_seed_and_limit(self, tmp_path):
        rows = [schema_row(number) for number in range(8)]
        assert load_rows(tmp_path, *rows, limit=3)["key"][:] == ["q0", "q1", "q2"]
        whole = [f"q{number}" for number in range(8)]
        assert load_questions(tmp_path / "rows", seed=1)["key"][:] == whole
        drawn = load_questions(tmp_path / "rows", seed=1, limit=3)["key"][:]
        assert len(drawn) == 3 and drawn == sorted(drawn) and drawn != whole[:3]
        assert load_questions(tmp_path / "rows", seed=2, limit=3)["key"][:] != drawn
        assert len(load_questions(tmp_path / "rows", limit=100)) == 8
        assert len(load_questions(tmp_path / "rows", limit=0.5, seed=1)) == 4
        with pytest.raises(SettingError, match="limit=0"):
            load_questions(tmp_path / "rows", limit=0)

    def test_drawn_numbers(self):
        assert draw_numbers(5, None, 3) == [0, 1, 2, 3, 4]
        assert draw_numbers(5, 2.0, None) == [0, 1] and draw_numbers(5, 0.01, None) == [0]
        assert set(draw_numbers(50, 5, 1)) < set(draw_numbers(50, 0.2, 1)) and len(draw_numbers(50, 0.2, 1)) == 10
        for limit in (0, -1, 2.5, float("nan")):
            with pytest.raises(SettingError, match="limit=.*whole number of rows, a share"):
                draw_numbers(5, limit, None)

    def test_without_audio(self, tmp_path):
        rows = Dataset.from_list([tars_row()]).remove_columns("audio")
        rows.save_to_disk(tmp_path / "text")
        with pytest.raises(QuestionError, match="there is no audio"):
            load_questions(tmp_path / "text")
        loaded = load_questions(tmp_path / "text", audio_required=False)
        assert loaded.features["audio"] == Audio(decode=False) and loaded[0]["audio"] is None
        loaded.save_to_disk(tmp_path / "again")  # datasets cannot save {"bytes": None, "path": None}
        assert load_questions(tmp_path / "again")[0]["prompt"] == build_prompt(SPOKEN)

    def test_a_second_recording_stays_undecoded_too(self, tmp_path):
        rows = as_dataset(tars_row(voice={"bytes": clip(), "path": None})).cast_column("voice", Audio())
        rows.save_to_disk(tmp_path / "two")
        assert load_questions(tmp_path / "two")[0]["voice"]["bytes"] == clip()

    def test_nothing_is_written_beside_the_data(self, tmp_path):
        load_rows(tmp_path, tars_row())
        before = sorted((tmp_path / "rows").iterdir())
        load_questions(tmp_path / "rows", seed=0, limit=1)
        assert sorted((tmp_path / "rows").iterdir()) == before

    def test_rows_that_are_no_questions(self, tmp_path):
        with pytest.raises(QuestionError, match=r"\['audio', 'caption'\].*no questions"):
            load_rows(tmp_path, {"audio": {"bytes": clip(), "path": None}, "caption": "A dog."})


class TestOddFiles:
    """Every failure names file, row and field, and none is Arrow's, a TypeError or an OverflowError."""

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{}, {"question": ["a"]}], r"q.jsonl, row 2, question: \['a'\] has no place"),
            ([{}, {"answer_index": 10**30}], "q.jsonl, row 2, answer_index: 1000.* has no place"),
            ([{"answer_index": 10**30}, {}], "q.jsonl, row 1, answer_index: 1000.* has no place"),
            ([{}, {"key": "\ud800"}], "q.jsonl, row 2, key: .* has no place"),
            ([{"question": 7}, {"question": 8}], "q.jsonl.*column 'question': it holds .*int64"),
            ([{"prompt_for_tts": [1]}, {"prompt_for_tts": [2]}], "q.jsonl.*column 'prompt_for_tts'"),
            ([{"options": {"a": "b"}}] * 2, "q.jsonl.*column 'options'"),
            ([{}, {"options": ["red", None]}], "q.jsonl.*row 'q1', question=.*options="),
            ([{"option_labels": 3}] * 2, "q.jsonl.*column 'option_labels'"),
            ([{"prompt": [{"role": "user", "content": SPOKEN}]}, {"prompt": None}], "row 'q1', prompt: None"),
            ([{"prompt": [{"role": None, "content": SPOKEN}]}] * 2, "row 'q0', prompt: .*no list of messages"),
            ([{"prompt": [{"role": "user", "content": None}]}] * 2, "row 'q0', prompt: the content None"),
            ([{"prompt": [{"role": "user", "content": [{"type": "text", "text": None}]}]}] * 2, "no part with text"),
            ([{"prompt": ["a"]}] * 2, "row 'q0', prompt: .*no list of messages"),
            ([{"audio": 3}, {"audio": 4}], "column 'audio': it holds .*no audio"),
            ([{"answer_index": 1e300}] * 2, "row 'q0', answer_index=1e"),
            ([{"answer_index": True}] * 2, "row 'q0', answer_index=True"),
            ([{}, {"answer_index": float("nan"), "answer": None}], "row 'q1', answer=None: it names 0"),
            ([{}, {"question": float("nan")}], "row 'q1', question=None"),
        ],
    )
    @pytest.mark.parametrize("system_prompt", [None, "New."])
    def test_a_table(self, tmp_path, rows, message, system_prompt):
        whole = [tars_row(number, key=f"q{number}", audio="0.flac") | row for number, row in enumerate(rows)]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
        with pytest.raises(QuestionError, match=message):
            load_questions(tmp_path / "q.jsonl", system_prompt=system_prompt)

    def test_nan_is_nothing(self, tmp_path):
        """What pandas writes for a missing cell: a key falls back, a further column is empty."""
        rows = [tars_row(number, key=float("nan"), question_id=float("nan"), audio="0.flac") for number in range(2)]
        rows[1] |= {"category": float("nan"), "prompt_for_tts": float("nan"), "question": "What colour is grass?"}
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = load_questions(tmp_path / "q.jsonl")
        assert loaded["key"][:] == ["train-000000", "train-000001"] and loaded["category"][:] == ["nature", None]
        assert spoken_text(loaded[1]["prompt"]) == SPOKEN

    def test_nan_in_a_parquet_file_of_pandas(self, tmp_path):
        rows = [tars_row(number, prompt_for_tts=float("nan"), answer_index=1.0) for number in range(2)]
        rows = [row | {"question": "What colour is grass?"} for row in rows]
        pd.DataFrame(rows).to_parquet(tmp_path / "q.parquet")
        assert_questions(load_questions(tmp_path / "q.parquet"), 2)
        rows[1]["answer_index"] = rows[1]["answer"] = None
        pd.DataFrame(rows).to_parquet(tmp_path / "r.parquet")
        with pytest.raises(QuestionError, match="r.parquet.*row 'mmlu-1', answer=None"):
            load_questions(tmp_path / "r.parquet")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("q.jsonl", b"\xff\xfe{}", "q.jsonl: it cannot be read as a table"),
            ("q.jsonl", b"[" * 100_000, "q.jsonl, line 1: not JSON"),
            ("q.jsonl", b'{"key": ' + b"9" * 5000 + b"}", "q.jsonl, line 1: not JSON"),
            ("q.csv", b"key,question\na,b,c\n", "q.csv, row 1: it has more cells"),
            ("q.csv", b"key,options\na,red\n", "q.csv, row 1, options: it is read as JSON"),
            ("q.csv", b"key\n" + b"x" * 200_000, "q.csv: it cannot be read as a table, field larger"),
            ("q.parquet", b"PAR1 no", "q.parquet: it cannot be read as a data set"),
            ("q.parquet", b"", "q.parquet: it cannot be read as a data set"),
        ],
    )
    def test_a_broken_file(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QuestionError, match=message):
            load_questions(tmp_path / name)

    def test_a_broken_saved_data_set(self, tmp_path):
        as_dataset(schema_row()).save_to_disk(tmp_path / "rows")
        (file,) = (tmp_path / "rows").glob("*.arrow")
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(QuestionError, match="rows: it cannot be read as a data set"):
            load_questions(tmp_path / "rows")

    def test_a_byte_order_mark(self, tmp_path):
        line = json.dumps(tars_row(audio="0.flac"))
        (tmp_path / "q.jsonl").write_text("\ufeff" + line, encoding="utf-8")
        assert load_questions(tmp_path / "q.jsonl")["key"][:] == ["mmlu-0"]


class TestPathsOfClips:
    @pytest.fixture
    def folder(self, tmp_path):
        """A clip in the data set's folder, one beside it, and a link from within to the one beside."""
        (tmp_path / "data").mkdir()
        for place in ("data/in.flac", "out.flac"):
            (tmp_path / place).write_bytes(clip())
        (tmp_path / "data/link.flac").symlink_to(tmp_path / "out.flac")
        return tmp_path / "data"

    @pytest.mark.parametrize("path", ["/etc/passwd", "../out.flac", "link.flac", "{folder}/../out.flac"])
    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_out_of_the_folder_only_if_asked(self, folder, path, kind, monkeypatch):
        monkeypatch.chdir(folder)
        path = path.format(folder=folder)
        rows = [schema_row(0, audio="in.flac"), schema_row(1, audio=path)]
        if kind == "jsonl":
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            rows = [row | {"audio": {"bytes": None, "path": row["audio"]}} for row in rows]
            Dataset.from_list(rows).to_parquet(folder / "train.parquet")
        with pytest.raises(QuestionError, match="(?s)row 'q1', audio: .* leads to .*audio_anywhere: true") as refused:
            load_questions(folder)
        assert "'q0'" not in str(refused.value)
        assert len(load_questions(folder, audio_anywhere=True)) == 2

    def test_a_path_that_looks_like_an_address_is_one_of_this_machine(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        (folder / "x:").mkdir()
        (folder / "x:" / "up").symlink_to(folder.parent)
        (folder.parent / "private.wav").write_bytes(clip())
        Dataset.from_list([schema_row(audio={"bytes": None, "path": "x://up/private.wav"})]).to_parquet("train.parquet")
        with pytest.raises(QuestionError, match="leads to"):
            load_questions("train.parquet")

    @pytest.mark.parametrize("wrong", [{"limit": float("inf")}, {"limit": "5"}, {"limit": True}, {"system_prompt": 5}])
    def test_arguments_that_cannot_work(self, folder, wrong):
        Dataset.from_list([schema_row(audio={"bytes": clip(), "path": None})]).to_parquet(folder / "train.parquet")
        with pytest.raises(SettingError, match=next(iter(wrong))):
            load_questions(folder, **wrong)

    def test_a_path_beside_bytes_is_only_a_name(self, folder):
        row = schema_row(audio={"bytes": clip(), "path": "/home/author/clip.flac"})
        Dataset.from_list([row]).to_parquet(folder / "train.parquet")
        assert_questions(load_questions(folder), 1)


class TestWhereQuestionsAre:
    def test_a_mistyped_local_path(self, tmp_path, monkeypatch):
        (tmp_path / "recipes" / "questions").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="^recipes/qestions: there is no such .* mean recipes/questions"):
            load_questions("recipes/qestions")
        with pytest.raises(FileNotFoundError, match="Correct the path: recipes holds no xyz"):
            load_questions("recipes/xyz/abc")

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "silent"])
    def test_without_a_network_a_hub_id_fails_soon_in_one_sentence(self, endpoint, monkeypatch):
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "SECONDS", 0.5)
        if endpoint == "silent":  # as where packets are dropped
            monkeypatch.setattr(
                hub.huggingface_hub, "HfApi", lambda: SimpleNamespace(repo_info=lambda *_, **__: sleep(9))
            )
        else:
            api = hub.huggingface_hub.HfApi
            monkeypatch.setattr(hub.huggingface_hub, "HfApi", lambda: api(endpoint=endpoint))
        begin = monotonic()
        with pytest.raises(ConnectionError, match="^someone/questions: .* cannot be reached .*HF_HUB_OFFLINE=1"):
            load_questions("someone/questions")
        assert monotonic() - begin < 5

    def test_the_hub_is_asked_once_unless_it_has_failed(self, monkeypatch):
        asked, answers = [], [OSError("busy"), None, None]
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)

        def answer(*names, **_):
            asked.append(names)
            if (error := answers.pop(0)) is not None:
                raise error

        monkeypatch.setattr(hub.huggingface_hub, "HfApi", lambda: SimpleNamespace(repo_info=answer))
        with pytest.raises(ConnectionError, match="busy"):
            hub.check_on_hub("someone/once")
        for name in ("someone/once", "someone/once", "someone/other"):
            hub.check_on_hub(name)
        assert asked == [("someone/once",), ("someone/once",), ("someone/other",)]

    def test_a_name_that_no_repository_can_have_is_not_blamed_on_the_network(self):
        with pytest.raises(FileNotFoundError, match="^some--one/qu..estions: .*no repository can have this name"):
            load_questions("some--one/qu..estions")

    def test_a_hub_id_that_is_not_cached_and_may_not_be_asked_for(self):
        with pytest.raises(ConnectionError, match="someone/questions: .*not cached"):
            load_questions("someone/questions")


class TestCheck:
    @pytest.mark.parametrize("name", COLUMNS)
    def test_missing_column(self, name):
        with pytest.raises(QuestionError, match=rf"\['{name}'\] of the question schema are missing"):
            check_rows(as_dataset(schema_row()).remove_columns(name))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("key", "q1"),
            ("key", " "),
            ("key", None),
            ("question", ""),
            ("question", None),
            ("options", []),
            ("options", ["red", ""]),
            ("options", ["red"]),
            ("options", ["red", "green", " red "]),
            ("options", [f"number {number}" for number in range(27)]),
            ("options", None),
            ("answer_index", 4),
            ("answer_index", -1),
            ("answer_index", None),
            ("prompt", [{"role": "system", "content": "Think."}]),
            ("prompt", [{"role": "user", "content": ""}]),
            ("prompt", []),
            ("prompt", None),
            ("prompt", [*build_prompt(SPOKEN), {"role": "assistant", "content": "Green."}]),
            ("prompt", build_prompt("What does <|AUDIO|> say?")),
            ("prompt", build_prompt(SPOKEN, "Be brief.<|im_end|>")),
        ],
    )
    def test_a_wrong_field_is_named_with_its_row(self, field, value):
        rows = Dataset.from_list([schema_row(1), schema_row(2), schema_row(0, **{field: value})])
        check_rows(rows.select([0, 1]))
        row = f"row '{value}'" if value in ("q1", " ") else "row number 2" if field == "key" else "row 'q0'"
        with pytest.raises(QuestionError, match=f"fields of 3 rows cannot be used:\n  {row}, {field}: ") as refused:
            check_rows(rows)
        assert "q2" not in str(refused.value)

    def test_a_part_that_is_no_text(self):
        parts = [{"type": "audio", "text": None}, {"type": "text", "text": SPOKEN}]
        rows = Dataset.from_list([schema_row(prompt=[{"role": "user", "content": parts}])])
        with pytest.raises(QuestionError, match="row 'q0', prompt: .*'audio'.*no part with text"):
            check_rows(rows)

    def test_the_placeholders_of_a_model(self):
        rows = Dataset.from_list([schema_row(prompt=build_prompt("What does <audio> mean?"))])
        check_rows(rows)
        with pytest.raises(QuestionError, match="row 'q0', prompt: '<audio>' in the user turn"):
            check_rows(rows, placeholders=["<audio>"])

    def test_benchmarks_are_measured_as_they_are(self, tmp_path):
        rows = Dataset.from_list([schema_row(0, options=["a", "a"]), schema_row(1, options=["a"], answer_index=0)])
        check_rows(rows, strict=False)
        with pytest.raises(QuestionError, match="(?s)2 fields.*'q0', options: two .*same.*'q1', options: .*only one"):
            check_rows(rows)
        rows.save_to_disk(tmp_path / "rows")
        assert len(load_questions(tmp_path / "rows", strict=False)) == 2

    def test_columns_that_are_not_required_are_checked_where_they_are(self):
        rows = Dataset.from_list([schema_row(0, answer_index=9)])
        check_rows(rows.select_columns(["prompt"]), required=["prompt"])
        with pytest.raises(QuestionError, match="'q0', answer_index: 9"):
            check_rows(rows.select_columns(["prompt", "key", "options", "answer_index"]), required=["prompt"])

    def test_at_most_twenty(self):
        rows = Dataset.from_list([schema_row(number, answer_index=9) for number in range(23)])
        with pytest.raises(QuestionError, match="(?s)23 fields of 23 rows.*and 3 more") as refused:
            check_rows(rows)
        assert "'q19'" in str(refused.value) and "'q20'" not in str(refused.value)


# ---- Clips and transcripts -----------------------------------------------------------------------------------------


def unlabelled(tmp_path, **columns):
    rows = questions(2).select_columns(["audio"])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    path = tmp_path / "train.parquet"
    rows.to_parquet(path)
    return path


def test_clips_and_transcripts_are_enough(tmp_path):
    """No options, no answers, no system prompt; and what a data set has of labels does not come along."""
    path = unlabelled(tmp_path, transcript=["Tell me a joke.", "Good night."], answer=["Knock", "Sleep well"])
    rows = load_questions(path, labelled=False)
    assert rows.column_names == ["audio", "transcript", "key", "prompt"]
    assert rows["prompt"][0] == [{"role": "user", "content": "Tell me a joke."}]
    assert rows["key"][:] == ["train-000000", "train-000001"]
    told = load_questions(path, labelled=False, system_prompt="Be short.", column_map={"answer": "id"})
    assert told["prompt"][1][0] == {"role": "system", "content": "Be short."} and told["key"][1] == "Sleep well"


def test_questions_without_their_answers(questions_folder):
    rows = load_questions(questions_folder, "test", labelled=False)
    assert not {"question", "options", "answer_index"} & set(rows.column_names)
    assert rows["prompt"][:] == load_questions(questions_folder, "test")["prompt"][:]
    replaced = load_questions(questions_folder, "test", labelled=False, system_prompt="Be short.")["prompt"][0]
    assert replaced[0]["content"][0]["text"] == "Be short."


def test_transcripts_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(QuestionError, match="train-000001.*text"):
        load_questions(unlabelled(tmp_path, text=["Hello.", " "]), labelled=False)
    with pytest.raises(QuestionError, match="none holds what is said"):
        load_questions(unlabelled(tmp_path, words=["a", "b"]), labelled=False)
