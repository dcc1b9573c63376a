"""Finds accessibility violations of a page, once it has settled."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

QUIET = """() => new Promise(resolve => {
    let rest
    const begin = () => { clearTimeout(rest); rest = setTimeout(resolve, 500) }
    new MutationObserver(begin).observe(document, { attributes: true, childList: true, subtree: true })
    begin()
})"""


def wait_for_rest(page: Page) -> None:
    """Waits until the page has not changed for half a second.

    The page itself measures the time, so a starved browser does not end the wait early.
    """
    page.evaluate(QUIET)


def violations(page: Page) -> list[str]:
    """Returns axe's findings against WCAG 2.1, levels A and AA."""
    # Gradio fades in changes, and text has too little contrast meanwhile.
    faded = "document.getAnimations().every(each => !(each instanceof CSSTransition))"
    page.wait_for_function(faded)
    # Gradio fills example buttons a moment after it creates them.
    filled = "[...document.querySelectorAll('.gallery-item')].every(each => each.childElementCount)"
    page.wait_for_function(filled)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = Axe().run(page, options=rules).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]
