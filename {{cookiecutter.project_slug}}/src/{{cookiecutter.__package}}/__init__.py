import os

from .serving.base import refuse_launch_on_import, skip_stubs_of_gradio

# Otherwise Ray, when started with `uv run`, makes uv create an environment for its processes.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

skip_stubs_of_gradio()
refuse_launch_on_import(__name__)
