"""What `mkdocs build` does beside turning Markdown into pages: links out of docs/, and the pages that the code itself writes."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks")
OUTWARD = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository that are no pages lead to `repo_url`, where there is one, or become names of files."""

    def outward(link: re.Match[str]) -> str:
        label, path = link.groups()
        if not (ROOT / path).exists():
            LOG.warning("%s: there is no %s", page.file.src_uri, path)
        if config.repo_url:
            return f"[{label}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return f"`{path}`" if path.endswith(label.strip("`")) else f"{label} (`{path}`)"

    markdown = OUTWARD.sub(outward, markdown)
    for name, written in {"commands": commands, "settings": settings}.items():
        if (place := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(place, written())
    return markdown


def commands() -> str:
    """Every verb with its arguments and options, as `--help` has them."""
    from typer import Context
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from prefinetune.cli import app

    command = get_command(app)
    context = Context(command, info_name="prefinetune")
    verbs = [get_docs_for_click(obj=verb, ctx=context, indent=1, call_prefix="prefinetune") for verb in command.commands.values()]
    return "\n".join(verbs)


def settings() -> str:
    """A table per section of `prefinetune.config`."""
    from prefinetune.config import Config

    default = Config().model_dump()
    sections: dict[str, list[str]] = {}
    for name, field in fields(Config):
        shown = default
        for part in name.split("."):
            shown = shown[part]
        title = name.split(".")[0] if "." in name else "others"
        sections.setdefault(title, []).append(
            f"| `{name}` | `{'null' if shown is None else shown}` | {field.description or ''} |"
        )
    head = "| setting | default | meaning |\n| --- | --- | --- |\n"
    return "\n".join(f"## {title}\n\n{head}" + "\n".join(rows) + "\n" for title, rows in sections.items())


def fields(section: Any, before: str = "") -> Any:
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from fields(field.annotation, f"{before}{name}.")
        else:
            yield f"{before}{name}", field
