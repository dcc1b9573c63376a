"""The page behind Debian's nginx, which removes the path prefix or keeps it."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection
from string import Template

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from ..generated.project import free_port
from .cluster import COUNTING, MODEL, PIECES, WORDS, Cluster, applications

# Debian's nginx.conf, except for its folders.
CONFIG = Template("""
worker_processes 1;
pid $directory/pid;
events { worker_connections 768; }
http {
    sendfile on;
    gzip on;
    access_log off;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    client_body_temp_path $directory/body;
    proxy_temp_path $directory/proxy;
    server {
        listen 127.0.0.1:$port;
        location /chat/ { proxy_pass http://127.0.0.1:$page/$counting/; }
        location /$words/ {
            proxy_pass http://127.0.0.1:$page;
            proxy_set_header X-Forwarded-Host $$http_host;
            proxy_set_header X-Forwarded-Proto $$scheme;
        }
    }
}
""")


@contextmanager
def nginx(directory: Path, port: int, page: int) -> Iterator[None]:
    config = directory / "nginx.conf"
    places = {"directory": directory, "words": WORDS, "counting": COUNTING}
    config.write_text(CONFIG.substitute(places, port=port, page=page))
    command = ["nginx", "-p", str(directory), "-c", str(config), "-e", "stderr"]
    process = subprocess.Popen([*command, "-g", "daemon off; user root;"])
    try:
        wait_for(port)
        yield
    finally:
        process.terminate()
        process.wait(30)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(port)


# Debian's nginx is only on root's PATH.
@pytest.mark.makes_networks
def test_a_page_works_behind_nginx(cluster: Cluster, browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    taken, kept = (f"http://127.0.0.1:{port}/{path}" for path in ("chat", WORDS))
    config = applications(cluster, pages=2, models=1)
    [counting] = [each for each in config["applications"] if each["name"] == COUNTING]
    counting["args"]["public_url"] = taken
    cluster.deploy(config)
    with nginx(tmp_path, port, cluster.port), browser.new_page() as page:
        assert httpx2.get(f"{taken}/config").json()["root"] == taken
        page.goto(f"{taken}/")
        for number in ("1", "2", "3"):
            page.get_by_role("button", name="Count", exact=True).click()
            expect(page.get_by_label("Calls")).to_have_value(number)
        assert {cookie.get("path") for cookie in page.context.cookies()} == {"/chat"}
        assert httpx2.get(f"{kept}/config").json()["root"] == kept
        page.goto(f"{kept}/")
        page.get_by_label("Prompt").fill("The whale")
        page.get_by_role("button", name="Generate", exact=True).click()
        pane = page.locator(f"#pane-{MODEL} textarea")
        # The answer arrives piece by piece.
        expect(pane).to_have_value(re.compile(r"^\d+ "))
        assert len(pane.input_value().split()) < PIECES
        expect(pane).to_have_value(re.compile(rf"^(\d+ ){{{PIECES}}}$"))
