"""The demo's spoken sums, 300 held-out questions in four voices (`recipes/demo/questions` of a checkout)."""

from pathlib import Path

from .base import Task
from .folder import load_folder

DEMO = Task(
    name="demo",
    version=1,
    changes="1: the 300 test questions, voices held apart as domains.",
    source=str(Path(__file__).parents[3] / "recipes" / "demo" / "questions"),
    rows=load_folder,
    domain="voice",
)
