"""The page without Ray, whatever it shows. Change it with `page.py`."""

from pathlib import Path

import httpx
from gradio_client import Client, handle_file


def test_the_page_is_served(page: str) -> None:
    answer = httpx.get(page, timeout=60)
    assert answer.status_code == 200
    assert "text/html" in answer.headers["content-type"]


def test_the_theme_of_the_page_is_served(page: str) -> None:
    assert httpx.get(f"{page}theme.css", timeout=60).status_code == 200


def test_the_api_of_the_page_is_described(page: str) -> None:
    described = httpx.get(f"{page}gradio_api/info", timeout=60).json()["named_endpoints"]
    for function in httpx.get(f"{page}config", timeout=60).json()["dependencies"]:
        if function["backend_fn"] and function["api_visibility"] == "public":
            parameters = described[f"/{function['api_name']}"]["parameters"]
            assert all(parameter["parameter_name"] for parameter in parameters)


# Tests the example: remove it together with the example.
def test_the_example_numbers_lines_and_counts_texts_per_session(page: str, tmp_path: Path) -> None:
    text = tmp_path / "whales.txt"
    text.write_text("Sing,\nwhales.\n", "utf-8")
    client = Client(page, verbose=False)
    results = [client.predict(handle_file(text), api_name="/number_lines") for _ in range(2)]
    assert [said for _, said in results] == ["1 in this session", "2 in this session"]
    assert Path(results[0][0]).read_text("utf-8") == "1 Sing,\n2 whales.\n"
