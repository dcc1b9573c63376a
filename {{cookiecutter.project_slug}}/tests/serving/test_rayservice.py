"""The RayService serves what `config/production.yaml` says."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_rayservice_holds_the_production_config() -> None:
    manifest = (ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text("utf-8")
    [service] = [each for each in yaml.safe_load_all(manifest) if each["kind"] == "RayService"]
    config = (ROOT / "config" / "production.yaml").read_text("utf-8")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == yaml.safe_load(config)
