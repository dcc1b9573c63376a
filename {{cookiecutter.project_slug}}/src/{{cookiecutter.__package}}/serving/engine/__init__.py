import sys

# If this package is installed, `import openvino` writes to the user's home directory and sends data
# to its maker's analytics. The project does not install it. This line also blocks other installs.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
