"""The TARS authors' copies of VoiceBench's MMSU and OpenBookQA, and of MMLU.

Columns: audio, key, question, options, answer_index, prompt_for_tts (what is spoken), category. On the hub they have
one split, `train`. The first two ids are those of the released evaluation script; that of MMLU is named there only as a
local folder (`MMLU_FULL/full_5k_hf_format.v1`) and follows the naming of the others: if the hub does not know it, give
`tars_mmlu=ID_OR_FOLDER`.
"""

from .base import Task
from .folder import load_folder

_CHANGES = "1: our system prompt, the question as `prompt_for_tts` has it."

TARS_MMSU = Task(
    "tars_mmsu", 1, _CHANGES, "yuantuo666/VB_MMSU-full_3074_hf_format.v0", load_folder, ("train",), domain="category"
)
TARS_OBQA = Task("tars_obqa", 1, _CHANGES, "yuantuo666/VB_OBQA-full_455_hf_format.v0", load_folder, ("train",))
TARS_MMLU = Task(
    "tars_mmlu", 1, _CHANGES, "yuantuo666/MMLU_FULL-full_5k_hf_format.v1", load_folder, ("train",), domain="category"
)
