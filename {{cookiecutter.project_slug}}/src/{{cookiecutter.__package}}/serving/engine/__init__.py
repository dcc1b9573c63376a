import sys

# With this package beside it, `import openvino` writes to the user's home and reports itself to its
# makers' analytics. The project leaves it out; whoever installs it another way is not reported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
