"""Writes the pages on settings, metrics and alerts from the code that declares them."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from docs.site.declared import BOUNDS, Code, Field

SUFFIXES = {"Counter": "_total", "Gauge": "", "Histogram": ""}
KINDS = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram"}
OF_SERIES = re.compile(r"ray_\w+")
OF_A_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def pages(projects: dict[str, Path]) -> dict[str, str]:
    """Returns the text of each page, from the projects that the site is made from."""
    whole, own, chat = (code_of(projects[kind]) for kind in ("project", "own", "chat"))
    monitoring = projects["project"] / "deploy" / "monitoring"
    metrics = [*metrics_page(whole, own, monitoring)]
    return {
        "settings.md": "\n".join(settings_page(whole, own, chat)) + "\n",
        "metrics.md": "\n".join(metrics) + "\n",
        "alerts.md": "\n".join(alerts_page(monitoring / "alerts.yaml")) + "\n",
    }


def code_of(project: Path) -> Code:
    [package] = project.joinpath("src").iterdir()
    return Code(package)


def settings_page(whole: Code, own: Code, chat: Code) -> Iterator[str]:
    yield from ("# Settings", "")
    yield (
        "A Serve config sets these under `args:`. A setting that you leave out keeps its default. "
        "If a name does not exist, the command stops and reports it. "
        "[The configs](project/operations.md#the-configs) says which config is for what."
    )
    fields = whole.fields("app", "Settings")
    of_own, of_chat = own.fields("app", "Settings"), chat.fields("app", "Settings")
    # The fields of a class are described at a top-level setting, and other settings link there.
    places = {kind: name for name, field in fields.items() for kind in classes_in(whole, field)}
    groups = {
        "Every project": [name for name in fields if name in of_own],
        "Text models": [name for name in fields if name in of_chat and name not in of_own],
        "Votes": [name for name in fields if name not in of_chat],
    }
    for title, names in groups.items():
        yield from ("", f"## {title}")
        for name in names:
            yield from setting(whole, fields[name], name, places)
            theirs = fields_below(own, of_own.get(name))
            for each, inner in fields_below(whole, fields[name]).items():
                note = ""
                if name in of_own and each not in theirs:
                    # For example, the tokens among the limits.
                    note = "Only in projects with text models."
                elif each in theirs and (other := default_of(own, theirs[each])) != default_of(
                    whole, inner
                ):
                    note = f"With `page=own`: {', '.join(other)}."
                yield from setting(whole, inner, f"{name}.{each}", places, note)


def fields_below(code: Code, field: Field | None) -> dict[str, Field]:
    """Returns the settings within a setting, no matter which of its classes it has."""
    if field is None:
        return {}
    classes = (code.fields(field.module, kind) for kind in classes_in(code, field))
    return {name: inner for fields in classes for name, inner in fields.items()}


def classes_in(code: Code, field: Field) -> list[str]:
    """Returns the classes in a field's type that have fields themselves."""
    names = [node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)]
    return [name for name in names if code.fields(field.module, name)]


def setting(
    code: Code, field: Field, path: str, places: dict[str, str], note: str = ""
) -> Iterator[str]:
    said = [field.said, note]
    facts = []
    if classes := classes_in(code, field):
        [place] = {places[kind] for kind in classes}
        is_list = ast.unparse(field.annotation).startswith("tuple[")
        which = "that follow" if place == path else f"of [`{place}`](#{place})"
        said.append(f"{'Each entry' if is_list else 'It'} has the settings {which}.")
    else:
        facts = [f"`{spelled(code, field)}`"]
    facts += default_of(code, field)
    facts += [
        f"{BOUNDS[kind]} {code.value(field.module, end)}" for kind, end in field.bounds.items()
    ]
    line = ", ".join(facts)
    yield from ("", f"### `{path}`", "")
    if line:
        yield from (f"{line[0].upper()}{line[1:]}.", "")
    yield " ".join(filter(None, said))


def default_of(code: Code, field: Field) -> list[str]:
    if field.default is None:
        return ["required"]
    try:
        value = code.value(field.module, field.default)
    except ValueError:
        source = ast.unparse(field.default)
        if source == "dict()":
            return ["default `{}`"]
        return [] if source.endswith("()") else [f"default: `{source}`, in your files"]
    return ["not set by default" if value is None else f"default `{said_in_yaml(value)}`"]


def said_in_yaml(value: object) -> str:
    """Returns a value as a config spells it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def spelled(code: Code, field: Field) -> str:
    """Returns a type in which names of patterns are replaced by the plain type."""

    class Plain(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            found = code.find(field.module, node.id)
            return plain(found[1].value) if found and isinstance(found[1], ast.Assign) else node

        def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
            return self.generic_visit(plain(node))

    copy = ast.parse(ast.unparse(field.annotation), mode="eval").body
    text = ast.unparse(Plain().visit(copy)).removesuffix(" | None")
    return re.sub(r"^tuple\[(.*), \.\.\.\]$", r"list[\1]", text)


def plain(node: ast.expr) -> ast.expr:
    """Removes the pattern from a type."""
    match node:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
            return inner
    return node


def metrics_page(whole: Code, own: Code, monitoring: Path) -> Iterator[str]:
    yield from ("# Metrics and the dashboard", "")
    yield (
        "Ray's endpoint for Prometheus has these, on each node. "
        "[What to watch](project/operations.md#what-to-watch) says how to read them, and "
        "[A metric](project/changing.md#a-metric) how to add one of your own."
    )
    every = {metric[0] for metric in metrics(own)}
    found = {metric[0]: metric for metric in metrics(whole)}
    for title, names in (
        ("Of every project", [name for name in found if name in every]),
        ("Of text models", [name for name in found if name not in every]),
    ):
        yield from ("", f"## {title}", "", "| Metric | Kind, labels | What it counts |")
        yield "| --- | --- | --- |"
        for name in names:
            _, kind, labels, said = found[name]
            listed = ", ".join([kind, *(f"`{label}`" for label in labels)])
            yield f"| `{name}` | {listed} | {said} |"
    yield from ("", "A histogram has three series: `_bucket`, `_sum` and `_count`.")
    panels = json.loads((monitoring / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    yield from ("", "## What the dashboard shows", "")
    yield "With `deploy=docker` or `deploy=kubernetes`, a project has it in `deploy/monitoring`."
    for panel in panels:
        used = sorted({name for query in panel["targets"] for name in series_in(query["expr"])})
        yield from ("", f"### {panel['title']}", "", panel.get("description", ""), "")
        yield f"From {', '.join(f'`{name}`' for name in used)}."
    rules = (monitoring / "alerts.yaml").read_text("utf-8")
    asked = {name for panel in panels for q in panel["targets"] for name in series_in(q["expr"])}
    theirs = sorted((asked | series_in(rules)) - found.keys())
    yield from ("", "## Of Ray and Serve", "")
    yield "The dashboard and the alerts also use these, which Ray and Serve count:"
    yield ""
    yield from (f"- `{name}`" for name in theirs)


def metrics(code: Code) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yields the name in Prometheus of each metric, its kind, its labels and what it counts."""
    for module, call in code.calls(*KINDS):
        kind = ast.unparse(call.func)
        name, said, *rest = call.args
        labels = code.value(module, rest[-1]) if rest else ()
        text = f"ray_{code.value(module, name)}{SUFFIXES[kind]}"
        listed = tuple(map(str, labels)) if isinstance(labels, tuple) else ()
        yield text, KINDS[kind], listed, str(code.value(module, said))


def series_in(query: str) -> set[str]:
    return {OF_A_HISTOGRAM.sub("", name) for name in OF_SERIES.findall(query)}


def alerts_page(rules: Path) -> Iterator[str]:
    yield from ("# Alerts", "")
    yield (
        "With `deploy=docker` or `deploy=kubernetes`, a project has these in "
        "`deploy/monitoring/alerts.yaml`. [When an alert fires](project/operations.md"
        "#when-an-alert-fires) says how they reach Prometheus, and "
        "[how the objectives are measured](project/operations.md#how-the-objectives-are-measured) "
        "what `objective:missed` is."
    )
    groups = yaml.safe_load(rules.read_text("utf-8"))["spec"]["groups"]
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        severity = rule.get("labels", {}).get(
            "severity", "`critical` or `warning`, as in `objective:missed`"
        )
        waits = f" It fires when that has lasted for {rule['for']}." if "for" in rule else ""
        said = rule["annotations"]
        yield from ("", f"## `{rule['alert']}`", "", said["summary"], "")
        runbook = said["runbook"].removeprefix("docs/")
        yield f"Severity: {severity}.{waits} [What to do](project/{runbook})."
        yield from ("", "```text", rule["expr"].strip(), "```")
