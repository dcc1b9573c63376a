"""Composes an overlay like `kubectl kustomize`, for the features that projects use.

Unknown features are refused, so that no overlay is only half checked. Debian has no kustomize, and
the package index does not have it for every Python that the tests run on.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
KNOWN = {
    *("apiVersion", "kind", "configMapGenerator", "images", "labels", "namespace", "patches"),
    *("replacements", "resources"),
}
LOCAL = "config.kubernetes.io/local-config"
"""A manifest with this annotation is used only to compose the others, and is left out."""


def compose(folder: Path) -> list[Manifest]:
    """Returns the manifests of a folder with a kustomization."""
    [path] = [folder / name for name in NAMES if (folder / name).exists()]
    said = yaml.safe_load(path.read_text("utf-8"))
    refuse_others(said, KNOWN, path)
    manifests = [
        manifest for name in said.get("resources", ()) for manifest in resource(folder, name)
    ]
    manifests += [config_map(folder, each) for each in said.get("configMapGenerator", ())]
    for each in said.get("patches", ()):
        for manifest in chosen(manifests, each["target"]):
            patch(manifest, yaml.safe_load(each["patch"]))
    for manifest in manifests:
        if namespace := said.get("namespace"):
            manifest["metadata"]["namespace"] = namespace
        for each in said.get("labels", ()):
            refuse_others(each, {"pairs"}, path)
            manifest["metadata"].setdefault("labels", {}).update(each["pairs"])
        for each in said.get("images", ()):
            name_image(manifest, each)
    for each in said.get("replacements", ()):
        replace(manifests, each)
    return [each for each in manifests if LOCAL not in each["metadata"].get("annotations", {})]


def refuse_others(said: Manifest, known: set[str], path: Path) -> None:
    if others := said.keys() - known:
        raise NotImplementedError(f"{path}: {', '.join(sorted(others))}")


def resource(folder: Path, name: str) -> list[Manifest]:
    path = (folder / name).resolve()
    if path.is_dir():
        return compose(path)
    # kustomize reads no file outside the folder, unless a kustomization there provides it.
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is not below {folder}")
    # A YAML anchor may put one object in two places.
    return [deepcopy(each) for each in yaml.safe_load_all(path.read_text("utf-8"))]


def config_map(folder: Path, said: Manifest) -> Manifest:
    refuse_others(said, {"name", "files", "options"}, folder)
    options = said["options"]
    refuse_others(options, {"disableNameSuffixHash", "labels"}, folder)
    if not options["disableNameSuffixHash"]:
        raise NotImplementedError("a hash in a name")
    files = [folder / name for name in said["files"]]
    metadata: Manifest = {"name": said["name"]}
    if "labels" in options:
        metadata["labels"] = options["labels"]
    data = {path.name: path.read_text("utf-8") for path in files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def chosen(manifests: list[Manifest], target: Manifest) -> list[Manifest]:
    found = [
        each
        for each in manifests
        if each["kind"] == target["kind"]
        and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]
    ]
    if not found:
        raise LookupError(f"nothing is {target}")
    return found


def patch(manifest: Manifest, operations: list[Manifest]) -> None:
    """Applies a JSON patch."""
    for operation in operations:
        *path, last = operation["path"].removeprefix("/").split("/")
        place: Any = manifest
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        key = int(last) if isinstance(place, list) else last
        if operation["op"] == "replace":
            # The field must exist.
            place[key]
        elif operation["op"] != "add" or isinstance(place, list):
            raise NotImplementedError(str(operation))
        place[key] = deepcopy(operation["value"])


def name_image(node: object, said: Manifest) -> None:
    if isinstance(node, dict):
        for container in node.get("containers") or ():
            if container["image"] == said["name"]:
                tag = f"@{said['digest']}" if "digest" in said else f":{said['newTag']}"
                container["image"] = said["newName"] + tag
        for value in node.values():
            name_image(value, said)
    elif isinstance(node, list):
        for value in node:
            name_image(value, said)


def replace(manifests: list[Manifest], said: Manifest) -> None:
    [source] = chosen(manifests, said["source"])
    [(read, _)] = places(source, said["source"]["fieldPath"], create=False)
    for target in said["targets"]:
        for manifest in chosen(manifests, target["select"]):
            for path in target["fieldPaths"]:
                create = target.get("options", {}).get("create", False)
                for _, write in places(manifest, path, create=create):
                    write(read())


def places(
    node: Any, path: str, *, create: bool
) -> Iterator[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """Yields functions that read and write the field at that path."""
    *before, last = parts(path)
    for part in before:
        if isinstance(node, list) and "=" in part:
            key, _, value = part.partition("=")
            [node] = [each for each in node if each.get(key) == value]
        else:
            node = node[int(part) if isinstance(node, list) else part]
    at = int(last) if isinstance(node, list) else last
    if not create:
        # The field must exist.
        node[at]
    yield (lambda: node[at]), (lambda value: node.__setitem__(at, value))


def parts(path: str) -> list[str]:
    """Splits `data.[production.yaml]` at the dots outside brackets."""
    found, inside = [""], False
    for letter in path:
        if letter in "[]":
            inside = letter == "["
        elif letter == "." and not inside:
            found.append("")
        else:
            found[-1] += letter
    return found
