"""Write the pages that come from code: the command line and the settings."""

import inspect
import re
from pathlib import Path


def commands() -> str:
    "Describe every verb of `scalai`: usage, arguments, options."
    import click
    from typer.main import get_command

    from scalai_nb.cli.main import app
    out = ["# Command line", "", "Every verb takes `--json` (one document on standard output), `--settings PATH` and "
           "`--debug`. Exit codes: 0 done, 1 the work failed, 2 the request was wrong and nothing was started, 3 a "
           "service could not be reached, 124 timed out, 130 cancelled.", ""]
    common = {"--json", "--settings", "--debug", "--help"}

    def describe(command, names: list[str], depth: int) -> None:
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            if names[1:]: out.extend([f"{'#'*depth} `{' '.join(names)}`", "", command.help or "", ""])
            for name, one in command.commands.items(): describe(one, [*names, name], depth + (1 if names[1:] else 0))
            return
        context = click.Context(command, info_name=" ".join(names))
        rows = [(p, p.get_help_record(context)) for p in command.params if not common & set(p.opts)]
        usage = " ".join([*names, *command.collect_usage_pieces(context)])
        text = inspect.cleandoc(command.help or "")
        out.extend([f"{'#'*depth} `{' '.join(names)}`", "", f"`{usage}`", "", text, ""])
        lines = [f"| `{p.make_metavar(context) if r is None else r[0]}` | {cell(getattr(p, 'help', '') or '')} |"
                 for p, r in rows]
        if lines: out.extend(["| argument or option | what it does |", "|---|---|", *lines, ""])

    describe(get_command(app), ["scalai"], 2)
    return "\n".join(out)


def cell(text: str) -> str: return " ".join(text.split()).replace("|", "\\|")


def settings() -> str:
    "Describe settings.ini: every section and key, its default and what its comment says."
    from pydantic_core import PydanticUndefined

    from scalai_nb.core.settings import Settings
    out = ["# Settings", "", "`settings.ini` is read from the working directory upwards. The environment variable "
           "`SCALAI_SECTION__KEY` overrides a key. An unknown key is an error that names the nearest one.", ""]
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if not hasattr(kind, "model_fields"): continue
        out.extend([f"## `[{name}]`", "", kind.__doc__ or "", "", "| key | default | what it sets |", "|---|---|---|"])
        comments = {}  # a section's first keys may be in a class that it extends
        for c in reversed(kind.__mro__[:-2]): comments |= comments_of(inspect.getsource(c))
        for key, f in kind.model_fields.items():
            default = "" if f.default is PydanticUndefined else f.default
            out.append(f"| `{key}` | `{default!r}` | {cell(comments.get(key, ''))} |")
        out.append("")
    return "\n".join(out)


def comments_of(source: str) -> dict[str, str]:  # field → comment next to it or above it
    "Read the comments of a class's fields."
    found, above = {}, []
    for line in source.splitlines()[1:]:
        if m := re.match(r"\s+# (.*)", line): above.append(m[1])
        elif m := re.match(r"\s+(\w+): .*?(?:  # (.*))?$", line):
            found[m[1]] = m[2] or " ".join(above)
            above = []
        else: above = []
    return found


def write(out: Path,  # Sphinx's source
          root: Path,  # of the project
         ) -> None:
    "Write the pages that come from code, and those that are files of the project."
    (out/"cli.md").write_text(commands())
    (out/"settings.md").write_text(settings())
    _, _, measured = (root/"tests/bench/RESULTS.md").read_text().partition("\n## ")  # without its first lines
    (out/"results.md").write_text(f"## {measured}")
    (out/"changes.md").write_text((root/"CHANGELOG.md").read_text())
