"""Looks for what keeps somebody from using a page, and waits until it is at rest."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

QUIET = """() => new Promise(resolve => {
    let rest
    const begin = () => { clearTimeout(rest); rest = setTimeout(resolve, 500) }
    new MutationObserver(begin).observe(document, { attributes: true, childList: true, subtree: true })
    begin()
})"""


def wait_for_rest(page: Page) -> None:
    """Waits until nothing of the page has changed for half a second.

    The page counts it, so that a browser which gets no time counts none.
    """
    page.evaluate(QUIET)


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2.1, levels A and AA."""
    # Gradio fades what changes, and halfway a text has too little contrast.
    faded = "document.getAnimations().every(each => !(each instanceof CSSTransition))"
    page.wait_for_function(faded)
    # It fills the buttons of examples a moment after they are there.
    filled = "[...document.querySelectorAll('.gallery-item')].every(each => each.childElementCount)"
    page.wait_for_function(filled)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = Axe().run(page, options=rules).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]
