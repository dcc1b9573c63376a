"""A page that is open in a browser while the only HTTP proxy dies."""

import re

from playwright.sync_api import Browser, expect

from .cluster import MODEL, PIECES, WORDS, Cluster, applications

PROMPT = "The whale"


def test_an_open_page_recovers_by_itself_with_its_prompt(
    cluster: Cluster, browser: Browser
) -> None:
    cluster.deploy(applications(cluster, pages=2, models=2))
    with browser.new_page() as page:
        page.goto(f"{cluster.url}/{WORDS}")
        page.get_by_label("Prompt").fill(PROMPT)
        button = page.get_by_role("button", name="Generate", exact=True)
        pane = page.locator(f"#pane-{MODEL} textarea")
        button.click()
        expect(pane).to_have_value(re.compile(r"^\d+ "))
        with page.expect_event("load", timeout=30_000):
            for proxy in cluster.processes("ray::ProxyActor"):
                proxy.kill()
        expect(page.get_by_label("Prompt")).to_have_value(PROMPT)
        expect(pane).to_have_value(re.compile(r"^\d+ "))
        button.click()
        expect(pane).to_have_value(re.compile(rf"^(\d+ ){{{PIECES}}}$"))
