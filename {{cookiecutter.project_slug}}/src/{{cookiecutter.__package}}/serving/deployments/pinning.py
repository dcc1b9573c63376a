"""All replicas of a deployment run one commit of a model, also those that come later."""

from typing import TypeVar

import ray

from .settings import ModelSettings

M = TypeVar("M", bound=ModelSettings)


class DeployedRevision(str):
    """A revision that becomes a commit when its deployment is built.

    Serve then pickles what the deployment is called with, and calls each replica with that: the
    first, one that replaces another, one more under load. Without Ray the graph is only looked
    at, which asks no hub.
    """

    model: ModelSettings

    def __reduce__(self) -> tuple[object, tuple[str | None]]:
        # Here, so that the settings alone load no client of the hub.
        from ..engine.weights import commit_of

        commit = commit_of(self.model) if ray.is_initialized() else None
        return _itself, (commit or self.model.revision,)


def pinned(model: M) -> M:
    """Returns the model with a revision that becomes a commit in its deployment."""
    if model.base_url is not None:
        return model
    revision = DeployedRevision(model.revision or "")
    revision.model = model
    return model.model_copy(update={"revision": revision})


def _itself(revision: str | None) -> str | None:
    return revision
