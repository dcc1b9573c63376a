"""Launches apps as in Gradio's docs, in a separate process, when it reads their names.

`python -m tests.apps.plain tests.apps.app:all_apps`
"""

import json
import os
import pkgutil
import sys
import traceback
from socket import create_server

from .app import App


def main() -> None:
    # Keep the output of the apps separate from the answers.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        apps = pkgutil.resolve_name(sys.argv[1])()
        for line in sys.stdin:
            try:
                answer = {"url": launch(apps[line.strip()])}
            except Exception:
                answer = {"error": traceback.format_exc()}
            answers.write(json.dumps(answer) + "\n")


def launch(app: App) -> str:
    with create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    _, url, _ = app.build().launch(
        prevent_thread_lock=True,
        quiet=True,
        server_name="127.0.0.1",
        server_port=port,
        **app.launch or {},
    )
    return str(url)


if __name__ == "__main__":
    main()
