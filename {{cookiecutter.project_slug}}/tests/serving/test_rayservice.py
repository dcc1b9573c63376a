"""The RayService serves what `config/production.yaml` says."""

from pathlib import Path

from {{ cookiecutter.__package }}.serving.config import read_config

ROOT = Path(__file__).parents[2]


def test_the_rayservice_holds_the_production_config() -> None:
    service = read_config(ROOT / "deploy" / "kubernetes" / "rayservice.yaml")
    assert service == read_config(ROOT / "config" / "production.yaml")
