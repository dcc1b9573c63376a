import os

# Else Ray, when it is started below `uv run`, has uv make an environment for its processes.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
