"""What the site takes from the code while it is built: tables of settings (`<!-- settings: module:Class -->`)."""

import dataclasses
import re
from importlib import import_module
from typing import Any

from tars_trl.cli import COMMANDS


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table in the place of each mark."""
    markdown = markdown.replace("<!-- commands -->", commands_table())
    return re.sub(r"<!-- settings: ([\w.]+):(\w+) -->", lambda found: settings_table(*found.groups()), markdown)


def commands_table() -> str:
    """What `tars-trl --help` lists."""
    lines = ["| | command | what |", "|---|---|---|"]
    for group, commands in COMMANDS.items():
        lines += [f"| {group} | `{name}` | {what} |" for name, (_, what) in commands.items()]
    return "\n".join(lines)


def settings_table(module: str, name: str) -> str:
    """The fields of a settings class that are this package's: name, default, and the help text with unit and source."""
    lines = ["| setting | default | what |", "|---|---|---|"]
    for described in dataclasses.fields(getattr(import_module(module), name)):
        rule = described.metadata.get("rule")
        if rule is None or not described.init:
            continue
        default = described.default
        if default is dataclasses.MISSING:
            assert described.default_factory is not dataclasses.MISSING
            default = described.default_factory()
        shown = "required" if rule.required and not default else "" if default in (None, []) else f"`{default}`"
        words = described.metadata["help"].replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
        choices = f" One of {', '.join(f'`{choice}`' for choice in rule.choices)}." if rule.choices else ""
        lines.append(f"| `{described.name}` | {shown} | {words}{choices} |")
    return "\n".join(lines)
