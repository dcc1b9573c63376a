"""The combinations of answers, computed from cookiecutter.json; forbidden ones are refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .answers import (
    CHOICES,
    CONTEXT,
    GRAPH,
    MATRIX,
    TEMPLATE,
    Answers,
    every_answer_to,
    in_words,
    matrix_of,
    pairs_in,
)
from .conftest import Command

TOO_BIG: dict[str, Any] = {
    "answers": {"task": "summarization", "accelerator": "gpu", "parallel_models": False},
    "because": "summaries are short, so take the CPU.",
}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy of the template that tests may change."""
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    return shutil.copytree(TEMPLATE, tmp_path / "template", ignore=ignored)


def with_context(template: Path, **changes: object) -> dict[str, Any]:
    context = CONTEXT | changes
    (template / "cookiecutter.json").write_text(json.dumps(context), "utf-8")
    return context


def test_every_pair_of_answers_is_in_a_combination() -> None:
    assert set().union(*map(pairs_in, MATRIX.rows())) == MATRIX.pairs()


def test_forbidden_combinations_are_refused_and_not_in_the_matrix(
    template: Path, tmp_path: Path
) -> None:
    declared = [*CONTEXT["_forbidden"], TOO_BIG]
    matrix = matrix_of(with_context(template, _forbidden=declared))
    command = Command(tmp_path, template)

    for forbidden in declared:
        asked = in_words(forbidden["answers"]).split()
        result = command("--no-input", *asked)
        assert result.returncode != 0
        [said] = result.stderr.splitlines()
        named, _, reason = said.partition(" cannot be combined: ")
        assert sorted(named.split(" and ")) == sorted(asked)
        assert reason == forbidden["because"]
        assert list(command.output.iterdir()) == []
    rows = matrix.rows()
    assert not [row for row in rows if TOO_BIG["answers"].items() <= row.items()]
    assert set().union(*map(pairs_in, rows)) == matrix.pairs()


def test_combinations_cover_every_graph_and_skip_answers_without_effect() -> None:
    graphs = [{name: row[name] for name in GRAPH} for row in MATRIX.rows()]

    assert [each for each in every_answer_to(*GRAPH) if each not in graphs] == []
    own = [row for row in MATRIX.rows() if row["page"] == "own"]
    assert own
    for question in ("task", "parallel_models", "models", "votes"):
        assert {row[question] for row in own} == {CHOICES[question][0]}


def test_forbidden_pairs_need_not_be_covered(template: Path) -> None:
    pair: Answers = {"task": "summarization", "accelerator": "gpu"}
    matrix = matrix_of(with_context(template, _forbidden=[{"answers": pair, "because": "."}]))

    assert MATRIX.pairs() - matrix.pairs() == {frozenset(pair.items())}
    assert set().union(*map(pairs_in, matrix.rows())) == matrix.pairs()


def test_a_new_answer_appears_in_the_matrix_without_other_edits(template: Path) -> None:
    context = with_context(template, accelerator=["cpu", "gpu", "tpu"])
    shown = subprocess.run(
        [sys.executable, "-m", "tests.matrix"],
        cwd=template,
        env={**os.environ, "PYTHONPATH": str(template)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "accelerator=tpu" in shown
    assert f"cover all {len(matrix_of(context).pairs())} pairs" in shown
