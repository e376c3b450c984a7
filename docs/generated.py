"""Write the pages that come from code: the command line, the settings, exit codes and metrics."""

import ast
import inspect
import re
from pathlib import Path

import parameters


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
        rows = [p.get_help_record(context) or (p.make_metavar(context), getattr(p, "help", "") or "")
                for p in command.params if not common & set(p.opts)]  # with their defaults, as --help shows them
        usage = " ".join([*names, *command.collect_usage_pieces(context)])
        text = inspect.cleandoc(command.help or "")
        out.extend([f"{'#'*depth} `{' '.join(names)}`", "", f"`{usage}`", "", text, ""])
        lines = [f"| `{cell(name)}` | {cell(says)} |" for name, says in rows]
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


KINDS = {"counter": "counter", "gauge": "gauge", "histogram": "histogram"}
SCORING = "scalai_score_"
PROCESSES = {"serving": ("The service", "`scalai serve` answers them at `/metrics`."),
             "dash": ("The dashboards", "`scalai dash` answers them at `/metrics`, with a token."),
             "jobs": ("The scheduler", "`scalai scheduler --metrics-port PORT` answers them."),
             SCORING: ("Scoring of tables", "The process that scores a table counts these, such as a job.")}

def metrics() -> str:
    "Describe every metric for Prometheus: what it counts, its labels, and which process has it."
    found: dict[str, set[tuple]] = {}
    for module, tree in parameters.modules().items():
        for node in ast.walk(tree):
            if not (metric := metric_of(node)): continue
            place = SCORING if metric[0].startswith(SCORING) else module.partition(".")[0]
            if place in PROCESSES: found.setdefault(place, set()).add(metric)
    out = ["# Metrics", "", "The long-running processes offer their counts to Prometheus. A counter only grows, a gauge goes "
           "up and down, and a histogram counts sizes in buckets (`_bucket`, `_sum`, `_count`).", ""]
    for place, (title, text) in PROCESSES.items():
        out += [f"## {title}", "", text, "", "| metric | kind | labels | what it counts |", "|---|---|---|---|"]
        for name, kind, labels, says in sorted(found[place]):
            name = f"{name}_total" if kind == "counter" and not name.endswith("_total") else name
            out.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {cell(says)} |")
        out.append("")
    return "\n".join(out)


def metric_of(node: ast.AST) -> tuple[str, str, tuple[str, ...], str] | None:  # name, kind, labels, what it counts
    "Read one metric from the code that makes it."
    texts = lambda nodes: [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    if isinstance(node, ast.Call) and node.args:
        kind = KINDS.get(getattr(node.func, "id", getattr(node.func, "attr", "")).lower())
        first = texts(node.args[:1])
        if not kind or not first or not first[0].startswith("scalai_"): return None
        labels = [label for a in node.args[2:] for label in texts(a.elts if isinstance(a, ast.Tuple) else [a])]
        return first[0], kind, tuple(labels), texts(node.args)[1]
    if isinstance(node, ast.Tuple) and len(found := texts(node.elts)) == 2 and found[0].startswith("scalai_"):
        seconds = found[0].endswith("_seconds")
        return found[0], "histogram" if seconds else "gauge", ("model", "version", "code") if seconds else (), found[1]
    return None


def write(out: Path,  # Sphinx's source
          root: Path,  # of the project
         ) -> None:
    "Write the pages that come from code, and those that are files of the project."
    (out/"cli.md").write_text(commands())
    (out/"settings.md").write_text(settings())
    (out/"metrics.md").write_text(metrics())
    _, _, measured = (root/"tests/bench/RESULTS.md").read_text().partition("\n## ")  # without its first lines
    (out/"results.md").write_text(f"## {measured}")
    (out/"changes.md").write_text((root/"CHANGELOG.md").read_text())
