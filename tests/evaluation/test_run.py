"""`recipes/evaluate.py` from its command line to its files, on a tiny random speech LLM."""

import json
import os
import subprocess
import sys

import pytest
from datasets import Audio, Dataset, load_dataset
from peft import LoraConfig, get_peft_model

from tars_trl import load_questions
from tars_trl.commands.evaluate import main
from tars_trl.data import journal
from tars_trl.errors import AudioError, NotLoggedError
from tars_trl.evaluation import results
from tars_trl.evaluation.jobs import draw_numbers
from tars_trl.models.loading import load_speech_llm
from tars_trl.models.qwen2_5_omni import Qwen2_5OmniThinker
from tars_trl.sampling.complete import complete
from tests.conftest import ROOT, clip, questions

LETTERS = "ABCD"


def right(number: int) -> str:
    """A completion that answers conftest's question `number` rightly."""
    return f"<think>so</think><answer>The answer is {LETTERS[number % 4]}.</answer>"


def wrong(number: int) -> str:
    return right(number + 1)


# ---- What is asked -------------------------------------------------------------------------------------------------


def test_completions_are_the_model_s_own(run, model_folder, questions_folder):
    """Both modalities, row by row what greedy decoding of the loaded model gives one by one."""
    content, samples, _ = run()
    model, processor = load_speech_llm(model_folder)
    rows = list(load_questions(questions_folder, "test"))
    for modality in ("speech", "text"):
        lines = samples[f"demo_{modality}"]
        alone = complete(model, processor, rows, modality, batch_size=1, max_completion_length=6)
        assert [line["resps"] for line in lines] == [[[done.text]] for done in alone]
        assert {line["tokens"] for line in lines} <= set(range(1, 7))
    assert samples["demo_speech"][0]["resps"] != samples["demo_text"][0]["resps"]
    assert content["n-samples"]["demo_text"] == {"original": 6, "effective": 6}


def test_a_checkpoint_s_own_decoding_does_not_leak_in(model_folder, questions_folder):
    """Qwen's checkpoints bring a repetition penalty and a top_k; what the settings say is what decodes."""
    model, processor = load_speech_llm(model_folder)
    rows = list(load_questions(questions_folder, "test"))
    options = {"max_completion_length": 8, "batch_size": 3}
    plain = list(complete(model, processor, rows, "text", **options))
    model.generation_config.repetition_penalty = 5.0
    assert list(complete(model, processor, rows, "text", **options)) == plain
    assert list(complete(model, processor, rows, "text", repetition_penalty=5.0, **options)) != plain


def test_an_adapter_is_measured_with_its_base_model(run, arguments, model_folder, tmp_path):
    """By --adapter, or as the model itself; its figures have a folder of their own and other weights."""
    import torch

    model = Qwen2_5OmniThinker().load(model_folder, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=4, init_lora_weights=False, target_modules=Qwen2_5OmniThinker().lora_targets)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    before, plain, _ = run()
    after, samples, _ = run("--adapter", str(tmp_path / "adapter"))
    assert samples["demo_text"][0]["resps"] != plain["demo_text"][0]["resps"]
    assert before["hashes"]["adapter"] is None and after["hashes"]["adapter"].startswith("sha256:")
    again, same, printed = run("--model", str(tmp_path / "adapter"))
    assert "Finished already" in printed and same == samples and again["model_name"] == str(tmp_path / "adapter")
    assert again["config"]["model_args"] == f"pretrained={model_folder},peft={tmp_path / 'adapter'}"


def test_limit_is_drawn_with_the_seed():
    ten = draw_numbers(100, 10, 0)
    assert ten == draw_numbers(100, 10, 0) == sorted(ten) != draw_numbers(100, 10, 1)
    assert len(draw_numbers(100, 0.25, 0)) == 25
    assert draw_numbers(5, 50, 0) == draw_numbers(5, None, 0) == list(range(5))


def test_limited_run_keeps_places(run):
    content, samples, _ = run("--limit", "3", "--seed", "4", "--modality", "text")
    assert [line["doc_id"] for line in samples["demo_text"]] == draw_numbers(6, 3, 4)
    assert [line["key"] for line in samples["demo_text"]] == [f"q{number}" for number in draw_numbers(6, 3, 4)]
    assert content["n-samples"]["demo_text"] == {"original": 6, "effective": 3}


def test_two_tasks_of_one_name_are_refused(run, questions_folder):
    with pytest.raises(ValueError, match="two of them would both be called"):
        run("--tasks", f"demo={questions_folder},demo={questions_folder}")


def test_written_questions_need_no_audio(run, model_folder, tmp_path):
    rows = questions(2).remove_columns("audio")
    (tmp_path / "written").mkdir()
    rows.to_parquet(tmp_path / "written" / "test-00000-of-00001.parquet")
    content, _, _ = run("--tasks", str(tmp_path / "written"), "--modality", "text")
    assert list(content["results"]) == ["written_text"]


def test_unusable_audio_is_refused_by_key_or_counted(run, tmp_path):
    rows = [dict(row) for row in questions(4)]
    rows[2]["audio"] = {"bytes": b"no sound", "path": None}
    (tmp_path / "bad").mkdir()
    data = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
    data.to_parquet(tmp_path / "bad" / "test-00000-of-00001.parquet")
    with pytest.raises(AudioError, match="q2"):
        run("--tasks", str(tmp_path / "bad"))
    content, samples, _ = run("--tasks", str(tmp_path / "bad"), "--on_bad_audio", "skip")
    assert content["n-samples"]["bad_speech"] == {"original": 4, "effective": 3}
    assert [line["doc_id"] for line in samples["bad_speech"]] == [0, 1, 3]


# ---- Figures -------------------------------------------------------------------------------------------------------


def test_figures(run, canned):
    """Six questions: speech knows two of them, text four; one spoken answer is unreadable, one cut off."""
    spoken = {0: right(0), 1: right(1), 2: wrong(2), 3: wrong(3), 4: "no tags", 5: "<think>endless…"}
    written = {0: right(0), 1: wrong(1), 2: right(2), 3: right(3), 4: right(4), 5: wrong(5)}
    canned({(f"q{n}", m): t for m, texts in (("speech", spoken), ("text", written)) for n, t in texts.items()})
    content, samples, printed = run("--reference_accuracy", "80", "--domain", "voice")
    speech, text = content["results"]["demo_speech"], content["results"]["demo_text"]
    assert speech["acc,none"] == pytest.approx(2 / 6) and text["acc,none"] == pytest.approx(4 / 6)
    assert speech["extraction_failure,none"] == pytest.approx(2 / 6) and text["extraction_failure,none"] == 0
    assert speech["truncated,none"] == pytest.approx(1 / 6)
    assert speech["mean_tokens,none"] == pytest.approx((5 * 4 + 3 + 2 + 0) / 6, abs=1.5)
    pair = content["pairs"]["demo"]
    assert pair["gap"] == pytest.approx(2 / 6) and content["groups"]["demo"]["gap,none"] == pytest.approx(2 / 6)
    assert pair["mrr"] == pytest.approx(100 * (2 / 6) / 0.8) and pair["reference_accuracy"] == 80
    assert pair["recovery"] == pytest.approx(50) and content["groups"]["demo"]["recovery,none"] == pytest.approx(50)
    assert pair["mcnemar"] == {"only_first": 1, "only_second": 3, "p_value": pytest.approx(0.625)}
    assert pair["gap_interval"][0] < pair["gap"] < pair["gap_interval"][1]
    # Even questions have the domain high, odd ones low.
    third = pytest.approx(1 / 3)
    assert content["domains"]["demo_speech"]["high"] == {"n": 3, "acc": third, "acc_stderr": third}
    assert pair["gap_by_domain"] == {"high": pytest.approx(2 / 3), "low": 0}
    assert [line["acc"] for line in samples["demo_speech"]] == [1, 1, 0, 0, 0, 0]
    assert [line["filtered_resps"] for line in samples["demo_speech"]] == [["A"], ["B"], ["D"], ["A"], [""], [""]]
    assert "gap 33.3 points" in printed and "recovery 50.0 % of own text" in printed
    assert "MRR 41.7 % of the base model's text (80.00 %)" in printed


def test_a_reference_accuracy_is_of_the_average_over_tasks(run, canned, questions_folder, tmp_path):
    """The paper's 77.70 is an average over two benchmarks: neither of them alone is divided by it."""
    (tmp_path / "other").mkdir()
    questions(2).to_parquet(tmp_path / "other" / "test-00000-of-00001.parquet")
    canned({(f"q{n}", m): right(n) for n in range(6) for m in ("speech", "text")[n > 2 :]})  # aloud the first three
    tasks = f"demo={questions_folder},{tmp_path / 'other'}"
    content, _, printed = run("--tasks", tasks, "--reference_accuracy", "80")
    assert [pair["mrr"] for pair in content["pairs"].values()] == [None] * 2
    (average,) = content["averages"].values()
    assert average["mrr"] == pytest.approx(100 * (0.5 + 1.0) / 2 / 0.8) and average["reference_accuracy"] == 80
    assert average["gap"] == pytest.approx(0.25) and average["questions"] == 8
    assert "average of demo, other: gap 25.0 points" in printed and "MRR 93.8 % of the base" in printed


def test_extractors_side_by_side(run, canned):
    """The same completions, read by both rules; a guess is a choice, and still a failure."""
    canned({("q0", "text"): "<think>B.</think> I say A.", ("q1", "text"): right(1), ("q2", "text"): "well"})
    content, samples, _ = run("--modality", "text", "--extractors", "strict,voicebench", "--limit", "6")
    figures = content["results"]["demo_text"]
    assert figures["acc,none"] == figures["acc,strict"] == pytest.approx(1 / 6)
    assert figures["acc,voicebench"] == pytest.approx(2 / 6)
    assert samples["demo_text"][0]["extracted"] == {"strict": None, "voicebench": 0}
    assert figures["extraction_failure,voicebench"] == pytest.approx(4 / 6)

    content, guessed, _ = run("--modality", "text", "--extractors", "voicebench,strict", "--voicebench_guess")
    assert all(line["extracted"]["voicebench"] is not None for line in guessed["demo_text"])
    assert content["results"]["demo_text"]["extraction_failure,voicebench"] == pytest.approx(4 / 6)
    assert guessed["demo_text"][2]["failed"] == {"voicebench": True, "strict": True}


def test_xfinder_reads_whole_completions(run, canned, monkeypatch, model_folder):
    seen = []

    class Finder:
        def __init__(self, model_id, device):
            seen.append(model_id)

        def __call__(self, asked, completions, options):
            seen.extend(completions)
            return [0] * len(completions)

    monkeypatch.setattr("tars_trl.evaluation.scoring.XFinder", Finder)
    canned({("q0", "text"): "<think>hm</think> surely one"})
    content, _, _ = run("--modality", "text", "--extractors", "xfinder", "--xfinder_model", model_folder)
    assert seen[:2] == [model_folder, "<think>hm</think> surely one"]
    assert content["results"]["demo_text"]["acc,xfinder"] == pytest.approx(2 / 6)  # q0 and q4 have A


def test_predict_only_scores_nothing(run, canned):
    canned({("q0", "text"): right(0)})
    content, samples, _ = run("--modality", "text", "--predict_only")
    assert not any("acc" in name for name in content["results"]["demo_text"]) and content["pairs"] == {}
    assert samples["demo_text"][0]["resps"] == [[right(0)]] and "acc" not in samples["demo_text"][0]


def test_word_error_rate_of_a_corpus(run, canned, tmp_path):
    (tmp_path / "heard").mkdir()
    rows = [
        {"id": f"u{n}", "audio": {"bytes": clip(0.4, n), "path": None}, "text": text}
        for n, text in enumerate(["THE CAT SAT ON THE MAT", "YES"])
    ]
    data = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
    data.to_parquet(tmp_path / "heard" / "test-00000-of-00001.parquet")
    asked = canned({("u0", "speech"): "The cat sat on a mat.", ("u1", "speech"): "No!"})
    task = f"librispeech={tmp_path / 'heard'}"
    content, samples, printed = run("--tasks", task, "--split", "test", "--modality", "speech")
    figures = content["results"]["librispeech_speech"]
    assert figures["wer,none"] == pytest.approx(2 / 7)  # edits over words, not the mean of 1/6 and 1
    assert [line["wer"] for line in samples["librispeech_speech"]] == [pytest.approx(1 / 6), 1.0]
    assert "acc,none" not in figures and content["higher_is_better"]["librispeech_speech"] == {"wer": False}
    assert "Transcribe the audio" in asked[0][2] and "28.6" in printed


def test_open_answers_name_the_reference(run, canned, tmp_path):
    rows = [
        {"audio": {"bytes": clip(0.4, n), "path": None}, "prompt": f"who {n}", "reference": "Ada Lovelace"}
        for n in range(2)
    ]
    data = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
    data.save_to_disk(tmp_path / "open" / "usa")
    canned({("usa-000000", "speech"): "It was Ada Lovelace.", ("usa-000001", "speech"): "Ada, I think"})
    content, _, _ = run("--tasks", f"sd_qa={tmp_path / 'open'}", "--modality", "both")
    assert content["results"]["sd_qa_speech"]["acc,none"] == 0.5
    assert content["domains"]["sd_qa_speech"]["usa"]["n"] == 2


# ---- Cascades ------------------------------------------------------------------------------------------------------


def test_cascade_from_a_file(run, canned, tmp_path):
    """The transcript stands where the question was spoken; its own word error rate is reported."""
    rows = questions(6)
    said = {row["key"]: row["question"] for row in rows} | {"q1": "what"}
    (tmp_path / "heard.json").write_text(json.dumps(said))
    asked = canned({("q1", "text"): right(1)})
    content, samples, _ = run("--modality", "cascade,text", "--transcripts", str(tmp_path / "heard.json"))
    line = samples["demo_cascade"][1]
    assert line["transcript"] == "what" and '"text": "what"' in line["arguments"]["gen_args_0"]["arg_0"]
    assert json.loads(asked[1][2])[-1]["content"][0] == {"type": "text", "text": "what"}
    words = sum(sample["transcript_words"] for sample in samples["demo_cascade"])
    assert content["results"]["demo_cascade"]["transcript_wer,none"] == pytest.approx(line["transcript_edits"] / words)
    assert line["transcript_edits"] == line["transcript_words"] - 1
    assert content["pairs"]["demo_cascade"]["gap"] == 0 and "demo" not in content["pairs"]


def test_self_cascade_transcribes_first(run, canned):
    asked = canned({("q0", "speech"): "what is one plus two", ("q0", "text"): right(0)})
    content, samples, _ = run("--modality", "self_cascade", "--limit", "6")
    assert [(key, modality) for key, modality, _ in asked[:4]] == [
        *(("q0", "speech"), ("q1", "speech"), ("q0", "text"), ("q1", "text"))
    ]
    assert "Transcribe" in asked[0][2] and "what is one plus two" in asked[2][2]
    assert samples["demo_self_cascade"][0]["transcript"] == "what is one plus two"
    assert content["results"]["demo_self_cascade"]["acc,none"] == pytest.approx(1 / 6)


def test_transcripts_of_other_questions_are_refused(run, tmp_path):
    (tmp_path / "heard.jsonl").write_text('{"key": "q0", "transcript": "a"}\n')
    with pytest.raises(ValueError, match="5 of 6 rows have none, such as .'q1'"):
        run("--modality", "cascade", "--transcripts", str(tmp_path / "heard.jsonl"))
    (tmp_path / "heard.jsonl").write_text('{"key": "q0"}\n')
    with pytest.raises(ValueError, match="not a table of transcripts"):
        run("--modality", "cascade", "--transcripts", str(tmp_path / "heard.jsonl"))


# ---- Again ---------------------------------------------------------------------------------------------------------


def test_a_finished_evaluation_is_not_repeated(run, canned):
    first, samples, _ = run()
    asked = canned({})
    second, _, printed = run()
    assert not asked and "Finished already" in printed and second == first
    third, other, _ = run("--overwrite")
    assert len(asked) == 12 and third["date"] > first["date"] and other != samples


def test_other_figures_cost_no_completions(run, canned):
    run("--extractors", "strict")
    asked = canned({})
    content, _, _ = run("--extractors", "strict,voicebench", "--reference_accuracy", "77.7")
    assert not asked and content["pairs"]["demo"]["reference_accuracy"] == 77.7
    run("--max_completion_length", "5", "--modality", "text")
    assert len(asked) == 6  # whatever changes completions does


def test_an_interrupted_evaluation_goes_on(run, evaluated, monkeypatch, tmp_path):
    """Stopped in the middle of writing its third batch, then continued: what an unbroken run writes."""
    _, unbroken, _ = run("--output_dir", str(tmp_path / "unbroken"))
    append, calls = journal.append_lines, []

    def interrupted(path, lines):
        calls.append([line["key"] for line in lines])
        if len(calls) == 3:
            append(path, lines[:1])
            path.write_bytes(path.read_bytes() + json.dumps(lines[1], ensure_ascii=False).encode()[:-9])
            raise KeyboardInterrupt
        append(path, lines)

    monkeypatch.setattr(journal, "append_lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated()

    def recorded(path, lines):
        calls.append([line["key"] for line in lines])
        append(path, lines)

    monkeypatch.setattr(journal, "append_lines", recorded)
    _, samples, _ = run()
    assert calls[:3] == [["q0", "q1"], ["q2", "q3"], ["q4", "q5"]]
    assert calls[3] == ["q4", "q5"]  # the batch of the torn line is asked again, then the written questions
    assert samples == unbroken


@pytest.mark.slow
def test_two_processes_share_the_rows(run, arguments, tmp_path):
    """The same samples as one process writes, from the batches in turn."""
    _, alone, _ = run("--output_dir", str(tmp_path / "alone"))
    # `accelerate launch --cpu` starts one process unless mpirun is there; torchrun starts several on any machine.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "recipes/evaluate.py", *arguments]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("McNemar") == 1
    assert results.read_samples(tmp_path / "out") == alone
    assert results.read_results(tmp_path / "out")["config"]["processes"] == 2
    files = sorted((tmp_path / "out").glob("*/completions/demo_speech.*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [4, 2]  # batches of two, whole


# ---- Comparing -----------------------------------------------------------------------------------------------------


def test_paired_difference(run, canned, tmp_path, capsys):
    canned({(f"q{n}", "text"): wrong(n) for n in range(6)})
    run("--modality", "text", "--output_dir", str(tmp_path / "before"))
    canned({(f"q{n}", "text"): right(n) for n in range(5)})
    run("--modality", "text", "--output_dir", str(tmp_path / "after"))
    main(["--compare", str(tmp_path / "before"), str(tmp_path / "after")])
    assert "+83.3" in capsys.readouterr().out
    row = results.paired_difference(tmp_path / "before", tmp_path / "after")["demo_text"]
    assert (row["questions"], row["first"], row["second"]) == (6, 0, pytest.approx(5 / 6))
    assert row["mcnemar"] == {"only_first": 0, "only_second": 5, "p_value": pytest.approx(2 / 2**5)}


def test_pairs_are_of_the_same_questions_only(run, canned, tmp_path, capsys):
    """Questions of one evaluation alone are counted; another prompt may be compared, another question may not."""
    canned({})
    both = ("--modality", "text", "--output_dir")
    run(*both, str(tmp_path / "before"))
    run(*both, str(tmp_path / "prompted"), "--system_prompt", "Think.", "--instruction", "Answer.", "--limit", "4")
    main(["--compare", str(tmp_path / "before"), str(tmp_path / "prompted")])
    assert "2 questions that only one of the two answered are left out" in capsys.readouterr().out
    rows = [dict(row) for row in questions(6)]
    rows[3] |= {"options": ["four", "three", "two", "one"]}
    (tmp_path / "changed").mkdir()
    data = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
    data.to_parquet(tmp_path / "changed" / "test-00000-of-00001.parquet")
    run(*both, str(tmp_path / "after"), "--tasks", f"demo={tmp_path / 'changed'}")
    with pytest.raises(ValueError, match="demo_text: 1 of 6 keys, such as 'q3', stand for different questions"):
        results.paired_difference(tmp_path / "before", tmp_path / "after")


def test_pairs_need_common_questions(run, canned, tmp_path):
    canned({})
    run("--modality", "text", "--output_dir", str(tmp_path / "text"))
    run("--modality", "speech", "--output_dir", str(tmp_path / "speech"))
    with pytest.raises(ValueError, match="no question was answered in both"):
        results.paired_difference(tmp_path / "text", tmp_path / "speech")
    with pytest.raises(NotLoggedError, match="no such file or folder"):
        results.paired_difference(tmp_path / "nothing", tmp_path / "speech")


def test_a_folder_of_several_models_is_not_guessed_at(tmp_path):
    for model in ("one", "two"):
        results.write_results(tmp_path / model, {"results": {}, "pairs": {}}, {}, results.date_id())
    with pytest.raises(NotLoggedError, match="holds the results of several models, and one is read. Give one of .*one"):
        results.read_pair(tmp_path)
    with pytest.raises(NotLoggedError, match="0 results in both modalities"):
        results.read_pair(tmp_path / "one")
    (tmp_path / "one.json").write_text('{"speech_accuracy": 1}')
    with pytest.raises(NotLoggedError, match="one.json is no results file"):
        results.read_pair(tmp_path / "one.json")


# ---- Files ---------------------------------------------------------------------------------------------------------

# What lm-evaluation-harness documents of its files (lm_eval/result_schema.py of 0.4.13): name -> type of the value.
RESULTS = {
    "results": dict, "groups": dict, "group_subtasks": dict, "configs": dict, "versions": dict, "n-shot": dict,
    "higher_is_better": dict, "n-samples": dict, "config": dict, "git_hash": (str, type(None)), "date": float,
    "transformers_version": str, "model_source": str, "model_name": str, "model_name_sanitized": str,
    "system_instruction": (str, type(None)), "system_instruction_sha": (str, type(None)),
    "fewshot_as_multiturn": bool, "chat_template": (str, type(None)), "chat_template_sha": (str, type(None)),
    "task_hashes": dict, "total_evaluation_time_seconds": str,
}  # fmt: skip
SAMPLE = {
    "doc_id": int, "doc": dict, "target": str, "arguments": dict, "resps": list, "filtered_resps": list, "filter": str,
    "metrics": list, "doc_hash": str, "prompt_hash": str, "target_hash": str,
}  # fmt: skip
BY_TASK = ("configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes")


def test_files_follow_lm_evaluation_harness(run, tmp_path):
    content, samples, printed = run("--extractors", "strict,voicebench")
    path = results.results_file(tmp_path / "out")
    for name, kind in RESULTS.items():
        assert isinstance(content[name], kind), name
    tasks = set(content["results"])
    assert tasks == {"demo_speech", "demo_text"} == set(samples)
    assert all(set(content[name]) == tasks for name in BY_TASK)
    assert content["group_subtasks"] == {"demo": ["demo_speech", "demo_text"]} and set(content["groups"]) == {"demo"}
    for part in (*content["results"].values(), *content["groups"].values()):
        for name, value in part.items():  # every figure is `metric,filter`, a number, with its standard error beside it
            if name not in ("name", "alias", "sample_len"):
                metric, _, extractor = name.partition(",")
                assert metric and extractor in ("none", "strict", "voicebench") and isinstance(value, float), name
    assert "acc_stderr,none" in content["results"]["demo_text"]
    assert all(isinstance(version, float) for version in content["versions"].values())
    for task, lines in samples.items():
        file = path.parent / f"samples_{task}_{path.stem.removeprefix('results_')}.jsonl"
        # lm-evaluation-harness takes task and date apart at the first and the last underscore.
        assert file.name[file.name.find("_") + 1 : file.name.rfind("_")] == task and file.is_file()
        for line in lines:
            assert all(isinstance(line[name], kind) for name, kind in SAMPLE.items())
            assert isinstance(line["arguments"]["gen_args_0"]["arg_0"], str) and isinstance(line["acc"], float)
            assert isinstance(line["resps"][0][0], str) and "audio" not in line["doc"]
        assert set(load_dataset("json", data_files=str(file), split="train").column_names) == set(line)


def test_files_say_how_they_were_made(run, model_folder):
    content, samples, _ = run("--modality", "speech", "--system_prompt", "Think well.", "--seed", "3")
    config = content["configs"]["demo_speech"]
    decoding = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 6}
    assert config["modality"] == "speech" and config["generation_kwargs"] == decoding
    assert config["extractors"] == ["strict"] and "Think well." in config["prompt"]
    assert content["system_instruction"] == "Think well." and content["config"]["random_seed"] == 3
    assert content["package_versions"]["torch"] and content["hashes"]["model"].startswith("sha256:")
    assert len(content["hashes"]["demo_speech"]) == 64 and content["chat_template"]


def test_torn_and_foreign_lines(tmp_path):
    """A completion may hold any character; a line that an interruption cut is left out, and what follows is kept."""
    path = tmp_path / "completions.jsonl"
    odd = {"key": "a", "text": 'one\u2028two\x85three\n"four" é'}
    journal.append_lines(path, [odd])
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps({"key": "b", "text": "é" * 9}, ensure_ascii=False).encode()[:-4])
    journal.append_lines(path, [{"key": "c", "text": ""}])
    assert journal.read_lines([path]) == {"a": odd, "c": {"key": "c", "text": ""}}
