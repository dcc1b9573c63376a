"""Makes all replicas of a deployment run the same commit of a model, whenever they start."""

from typing import TypeVar

import ray

from .settings import ModelSettings

M = TypeVar("M", bound=ModelSettings)


class DeployedRevision(str):
    """A revision that becomes a commit when its deployment is built.

    Serve pickles the deployment's arguments and passes them to each replica: the first one, a
    replacement, or one that is added under load. The hub is not asked when the graph is only
    inspected, or imported by a replica.
    """

    model: ModelSettings
    commit: str | None = None

    def __reduce__(self) -> tuple[object, tuple[str | None]]:
        # Imported here so that the settings alone do not load the hub's client.
        from ..engine.weights import commit_of

        if self.commit is None and is_deploying():
            self.commit = commit_of(self.model)
        return _identity, (self.commit or self.model.revision,)


def is_deploying() -> bool:
    """Whether this process builds a graph for Ray. False in a replica, and without Ray."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is None


def pinned(model: M) -> M:
    """Returns the model with a revision that becomes a commit when it is deployed."""
    if model.base_url is not None:
        return model
    revision = DeployedRevision(model.revision or "")
    revision.model = model
    return model.model_copy(update={"revision": revision})


def _identity(revision: str | None) -> str | None:
    return revision
