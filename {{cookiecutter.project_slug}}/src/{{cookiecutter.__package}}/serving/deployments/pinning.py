"""All replicas of a deployment run one commit of a model, also those that come later."""

from typing import TypeVar

import ray

from .settings import ModelSettings

M = TypeVar("M", bound=ModelSettings)


class DeployedRevision(str):
    """A revision that becomes a commit when its deployment is built.

    Serve pickles what the deployment is called with, and calls each replica with that: the
    first, one that replaces another, one more under load. Where the graph is only looked at, or
    imported by a replica, no hub is asked.
    """

    model: ModelSettings
    commit: str | None = None

    def __reduce__(self) -> tuple[object, tuple[str | None]]:
        # Here, so that the settings alone load no client of the hub.
        from ..engine.weights import commit_of

        if self.commit is None and is_deploying():
            self.commit = commit_of(self.model)
        return _itself, (self.commit or self.model.revision,)


def is_deploying() -> bool:
    """Whether this process builds a graph for Ray: no replica does, and nobody without Ray."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is None


def pinned(model: M) -> M:
    """Returns the model with a revision that becomes a commit in its deployment."""
    if model.base_url is not None:
        return model
    revision = DeployedRevision(model.revision or "")
    revision.model = model
    return model.model_copy(update={"revision": revision})


def _itself(revision: str | None) -> str | None:
    return revision
