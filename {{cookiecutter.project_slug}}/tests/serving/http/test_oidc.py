"""A login at an OpenID Connect provider, for a small page."""

import base64
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import pytest
from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import ValidationError
from starlette.testclient import TestClient

from {{ cookiecutter.__package }}.serving.base import (
    LoginError,
    StartError,
)
from {{ cookiecutter.__package }}.serving.http import oidc as oidc_module
from {{ cookiecutter.__package }}.serving.http.guard import guard
from {{ cookiecutter.__package }}.serving.http.login import logged_in
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings

from ...support.oidc_provider import (
    CLIENT,
    SECRET,
    Provider,
    an_app,
    provider_of,
)
from ...support.servers import free_port

HERE = "http://localhost"
PROXIED = {"x-forwarded-proto": "https", "x-forwarded-host": "page.example.org"}
BROWSER = {"accept": "text/html", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
PAGE_SECRET = "a secret of thirty-two characters"  # noqa: S105


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_SECRET", PAGE_SECRET)
    monkeypatch.setenv("OIDC_CLIENT_SECRET", SECRET)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with provider_of(an_app()) as provider:
        provider.know("1", preferred_username="ada", groups=["staff"], email="ada@example.org")
        yield provider


def settings_for(provider: Provider, **options: object) -> HttpSettings:
    oidc = {"issuer": provider.url, "client_id": CLIENT, **options}
    return HttpSettings.model_validate({"oidc": oidc, "hosts": ["page.example.org"]})


def page_behind(settings: HttpSettings, root_path: str = "") -> TestClient:
    """Returns a browser at a new, independent replica of the page."""
    web = FastAPI()

    @web.api_route("/{path:path}", methods=["GET", "POST"])
    async def who(request: Request) -> str | None:
        return logged_in(request)

    guard(web, settings)
    return TestClient(
        web, base_url=HERE, root_path=root_path, headers=BROWSER, follow_redirects=False
    )


def sent_to(browser: TestClient, path: str = "/") -> str:
    """Returns the URL to which the page redirects for the login."""
    answer = browser.get(path)
    assert answer.status_code == 303
    address: str = answer.headers["location"]
    return address


def log_in(browser: TestClient, provider: Provider, path: str = "/", user: str = "1") -> str:
    """Logs in, and returns the URL to which the page redirects afterwards."""
    answer = browser.get(provider.log_in(sent_to(browser, path), user))
    assert answer.status_code == 303, answer.text
    address: str = answer.headers["location"]
    return address


def test_a_login_returns_to_the_original_page_with_the_user_name(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))

    assert log_in(browser, provider, "/a%20b?c=d&e=%2F") == f"{HERE}/a%20b?c=d&e=%2F"
    assert browser.get("/").json() == "ada"
    assert browser.post("/gradio_api/queue/join").json() == "ada"


def test_a_login_at_one_replica_is_valid_at_all(provider: Provider) -> None:
    begins, finishes, goes_on = (page_behind(settings_for(provider)) for _ in range(3))
    back = provider.log_in(sent_to(begins), "1")
    finishes.cookies = begins.cookies

    assert finishes.get(back).status_code == 303
    goes_on.cookies = finishes.cookies
    assert goes_on.get("/").json() == "ada"


def test_the_requests_to_the_provider_follow_the_protocol(provider: Provider) -> None:
    browser = page_behind(settings_for(provider, scope="openid profile email"))
    address = sent_to(browser)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}

    assert address.startswith(f"{provider.url}/oauth2/authorize?")
    assert asked["response_type"] == "code"
    assert asked["scope"] == "openid profile email"
    assert asked["redirect_uri"] == f"{HERE}/oidc/callback"
    assert asked["code_challenge_method"] == "S256"
    browser.get(provider.log_in(address, "1"))
    [sent] = provider.asked
    digest = hashlib.sha256(sent["code_verifier"].encode()).digest()
    assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == asked["code_challenge"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {"accept": "*/*", "sec-fetch-mode": "", "sec-fetch-dest": ""}),
        ("GET", "/", {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}),
        ("GET", "/", {"sec-fetch-dest": "iframe"}),
        ("POST", "/gradio_api/queue/join", {}),
        ("POST", "/login", {}),
    ],
)
def test_requests_that_are_no_navigation_get_401(
    provider: Provider, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = page_behind(settings_for(provider)).request(method, path, headers=headers)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_a_browser_without_fetch_metadata_is_redirected_to_the_provider(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    del browser.headers["sec-fetch-mode"]
    assert sent_to(browser).startswith(provider.url)


def test_cookies_are_hidden_from_scripts_and_other_sites(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    begun = browser.get("/", headers=PROXIED)
    done = browser.get(
        provider.log_in(begun.headers["location"], "1"),
        headers={**PROXIED, "cookie": begun.headers["set-cookie"].partition(";")[0]},
    )
    assert done.headers["location"] == "https://page.example.org/"
    for answer, seconds in ((begun, 600), (done, 12 * 3600)):
        cookie = answer.headers.get_list("set-cookie")[0]
        assert "ada" not in cookie
        for attribute in ("HttpOnly", "SameSite=lax", "Secure", "Path=/", f"Max-Age={seconds}"):
            assert attribute in cookie
        assert answer.headers["cache-control"] == "no-store"


def test_behind_a_prefix_the_login_uses_that_prefix(provider: Provider) -> None:
    browser = page_behind(settings_for(provider), "/chat")
    address = sent_to(browser, "/chat/a")
    [redirect_uri] = parse_qs(urlsplit(address).query)["redirect_uri"]

    assert redirect_uri == f"{HERE}/chat/oidc/callback"
    assert browser.get(provider.log_in(address, "1")).headers["location"] == f"{HERE}/chat/a"
    assert browser.get("/chat/").json() == "ada"
    assert {cookie.path for cookie in browser.cookies.jar} == {"/chat"}


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/a?next=//evil.example"])
def test_a_login_never_redirects_to_another_site(provider: Provider, path: str) -> None:
    browser = page_behind(settings_for(provider))
    address = log_in(browser, provider, f"{HERE}{path}")
    assert urlsplit(address).netloc == "localhost"


def test_two_tabs_log_in_at_the_same_time(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    first, second = sent_to(browser, "/first"), sent_to(browser, "/second")

    for address, path in ((second, "/second"), (first, "/first")):
        answer = browser.get(provider.log_in(address, "1"))
        assert answer.headers["location"] == f"{HERE}{path}"


def test_unfinished_logins_do_not_pile_up(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    for _ in range(20):
        sent_to(browser)
    assert len(browser.cookies) == 5


def test_a_forged_state_is_refused(provider: Provider) -> None:
    browser, other = (page_behind(settings_for(provider)) for _ in range(2))
    # An attacker sends a victim the callback URL of their own login.
    back = provider.log_in(sent_to(other), "1")
    sent_to(browser)

    for address in (back, "/oidc/callback?code=a&state=b", "/oidc/callback", f"{back}x"):
        answer = browser.get(address)
        assert answer.status_code == 400
        assert "another browser" in answer.text
    assert provider.asked == []
    assert browser.get("/").status_code == 303


def crafted(header: object, *others: str) -> str:
    """Returns a forged login cookie."""
    first = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    return ".".join([first, *(others or ("", "AAAAAAAAAAAAAAAA", "AAAA", "A" * 22))])


@pytest.mark.parametrize(
    "cookie",
    [
        *("", ".", "....", "a.b.c.d.e", "é" * 5, "A" * 100_000),
        crafted({"alg": "none"}, "e30", ""),
        crafted({"alg": "dir", "enc": "A256GCM"}),
        crafted({"alg": "dir", "enc": "A256GCM", "zip": "DEF"}),
        crafted({"alg": {}, "enc": []}),
        crafted({"alg": "PBES2-HS256+A128KW", "enc": "A256GCM", "p2c": 10**9, "p2s": "AAAA"}),
        crafted(["alg", "enc"]),
        crafted("alg and enc"),
    ],
    ids=range(13),
)
def test_a_forged_cookie_is_ignored(provider: Provider, cookie: str) -> None:
    browser = page_behind(settings_for(provider))
    first = browser.get("/")
    begun = first.headers["set-cookie"].partition("=")[0]
    session = begun.rpartition("-")[0]
    [state] = parse_qs(urlsplit(first.headers["location"]).query)["state"]
    browser.cookies.clear()
    headers = [(b"cookie", f"{session}={cookie}; {begun}={cookie}".encode("latin-1"))]
    assert browser.get("/", headers=headers).status_code == 303
    assert browser.get(f"/oidc/callback?code=a&state={state}", headers=headers).status_code == 400


def test_many_forged_login_cookies_do_not_break_a_login(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    begun = browser.get("/").headers["set-cookie"].partition("=")[0]
    names = [f"{begun[:-16]}{number:016x}" for number in range(10_000)]
    made_up = [f"{begun[:-16]}({number}" for number in range(10)]
    headers = {"cookie": "; ".join(f"{name}=a" for name in [*made_up, *names])}
    answer = browser.get("/", headers=headers)
    assert answer.status_code == 303
    # Its own new cookie, and some of the cookies that it deletes.
    assert len(answer.headers.get_list("set-cookie")) == 1 + oidc_module.MAX_DELETED_COOKIES


def test_an_unknown_code_is_refused_without_an_error_in_the_log(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    browser = page_behind(settings_for(provider))
    [state] = parse_qs(urlsplit(sent_to(browser)).query)["state"]
    answer = browser.get(f"/oidc/callback?state={state}&code=whale")
    assert answer.status_code == 403
    assert "does not recognize this login" in answer.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(provider.asked) == 1


@pytest.mark.parametrize("code", ["", "a" * 60_000])
def test_an_invalid_code_is_not_sent_to_the_provider(provider: Provider, code: str) -> None:
    browser = page_behind(settings_for(provider))
    [state] = parse_qs(urlsplit(sent_to(browser)).query)["state"]
    assert browser.get(f"/oidc/callback?state={state}&code={code}").status_code == 403
    assert provider.asked == []


def test_a_login_can_be_completed_only_once(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    back = provider.log_in(sent_to(browser), "1")
    assert browser.get(back).status_code == 303
    assert browser.get(back).status_code == 400


def test_a_login_that_took_too_long_starts_again(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc_module, "FLOW_SECONDS", -1)
    browser = page_behind(settings_for(provider))
    answer = browser.get("/")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    back = provider.log_in(answer.headers["location"], "1")
    assert browser.get(back, headers={"cookie": cookie}).status_code == 400


def test_a_session_expires(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc_module, "SESSION_SECONDS", -1)
    browser = page_behind(settings_for(provider))
    done = browser.get(provider.log_in(sent_to(browser), "1"))
    cookie = done.headers["set-cookie"].partition(";")[0]
    assert browser.get("/", headers={"cookie": cookie}).status_code == 303


def refusals(browser: TestClient, provider: Provider, caplog: pytest.LogCaptureFixture) -> str:
    """Returns the log lines of a login that is refused because of its token."""
    caplog.clear()
    answer = browser.get(provider.log_in(sent_to(browser), "1"))

    assert answer.status_code == 502
    assert browser.get("/").status_code == 303
    [line] = {record.getMessage() for record in caplog.records if record.name == "ray.serve"}
    return line


def test_a_token_for_another_audience_is_refused(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    browser = page_behind(settings_for(provider))
    address = sent_to(browser)
    token = provider.token_for("another client", address, "1")
    provider.change = lambda answer: {**answer, "id_token": token, "access_token": None}

    assert browser.get(provider.log_in(address, "1")).status_code == 502
    assert browser.get("/").status_code == 303
    assert "InvalidClaimError aud" in caplog.text
    assert token not in caplog.text


def test_an_expired_token_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with provider_of(an_app(lasts=timedelta(minutes=-2))) as provider:
        provider.know("1", preferred_username="ada")
        browser = page_behind(settings_for(provider))
        assert "ExpiredTokenError" in refusals(browser, provider, caplog)


def test_a_token_with_a_foreign_signature_or_changed_content_is_refused(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    browser = page_behind(settings_for(provider))
    foreign = RSAKey.generate_key(2048)

    def signed_again(header: dict[str, str], key: RSAKey) -> None:
        def change(answer: dict[str, str]) -> dict[str, str]:
            payload = answer["id_token"].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
            return {**answer, "id_token": jwt.encode(header, claims, key)}

        provider.change = change

    signed_again({"alg": "RS256"}, foreign)
    assert "BadSignatureError" in refusals(browser, provider, caplog)
    signed_again({"alg": "RS256", "kid": "unheard of"}, foreign)
    assert "InvalidKeyIdError" in refusals(browser, provider, caplog)
    provider.change = lambda answer: {**answer, "id_token": "no token"}
    assert "DecodeError" in refusals(browser, provider, caplog)
    provider.change = lambda answer: {**answer, "access_token": "another"}
    assert "InvalidClaimError at_hash" in refusals(browser, provider, caplog)
    provider.change = lambda _: {"error": "invalid_client"}
    assert "invalid_client" in refusals(browser, provider, caplog)


def test_a_token_of_another_login_is_refused(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    browser = page_behind(settings_for(provider))
    token = provider.token_for(CLIENT, sent_to(browser), "1")
    provider.change = lambda answer: {**answer, "id_token": token, "access_token": None}
    assert "InvalidClaimError nonce" in refusals(browser, provider, caplog)


def test_new_keys_of_the_provider_are_fetched(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc_module, "KEYS_SECONDS", 0.0)
    settings = settings_for(provider)
    browser = page_behind(settings)
    log_in(browser, provider)
    provider.app = an_app()
    provider.know("1", preferred_username="bob")

    browser.cookies.clear()
    log_in(browser, provider)
    assert browser.get("/").json() == "bob"


def test_a_user_who_denies_consent_sees_a_message(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    answer = browser.get(provider.deny(sent_to(browser)))
    assert answer.status_code in (400, 403)
    assert browser.get("/").status_code == 303


def test_only_users_with_the_required_claims_are_let_in(
    provider: Provider,
) -> None:
    provider.know("2", preferred_username="bob", groups=["guests"])
    provider.know("3", preferred_username="eve")
    browser = page_behind(settings_for(provider, required_claims={"groups": "staff"}))

    for user in ("2", "3"):
        answer = browser.get(provider.log_in(sent_to(browser), user))
        assert answer.status_code == 403
        assert "you may not use this page" in answer.text
    log_in(browser, provider)
    assert browser.get("/").json() == "ada"


def test_a_session_is_not_valid_under_other_settings(provider: Provider) -> None:
    open_to_all = page_behind(settings_for(provider))
    log_in(open_to_all, provider)
    staff = page_behind(settings_for(provider, required_claims={"groups": "staff"}))
    [cookie] = open_to_all.cookies.jar
    # An attacker sends it under the cookie name of the other page.
    log_in(staff, provider)
    [own] = staff.cookies.jar
    sent = {"cookie": f"{own.name}={cookie.value}"}
    staff.cookies.clear()
    assert staff.get("/", headers=sent).status_code == 303
    assert staff.get("/", headers={"cookie": f"{own.name}={own.value}"}).json() == "ada"


def test_a_user_without_the_username_claim_is_refused(provider: Provider) -> None:
    browser = page_behind(settings_for(provider, username_claim="employee_number"))
    answer = browser.get(provider.log_in(sent_to(browser), "1"))
    assert answer.status_code == 403
    assert "sent no user name" in answer.text


def test_a_logout_ends_the_session_here_and_at_the_provider(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    log_in(browser, provider)
    answer = browser.get("/logout")
    url = urlsplit(answer.headers["location"])

    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{provider.url}/oauth2/end_session"
    back = f"{HERE}/oidc/logged-out"
    assert parse_qs(url.query) == {"client_id": [CLIENT], "post_logout_redirect_uri": [back]}
    assert browser.get("/").status_code == 303
    assert "You are logged out" in browser.get("/oidc/logged-out").text


def test_without_logout_at_the_provider_the_page_confirms_its_own(provider: Provider) -> None:
    provider.hide = ("end_session_endpoint",)
    browser = page_behind(settings_for(provider))
    log_in(browser, provider)
    assert browser.get("/logout").headers["location"] == f"{HERE}/oidc/logged-out"
    assert browser.get("/").status_code == 303


def test_another_site_cannot_log_a_user_out(provider: Provider) -> None:
    browser = page_behind(settings_for(provider))
    log_in(browser, provider)
    assert browser.get("/logout", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert browser.get("/").json() == "ada"


def test_a_function_of_the_page_gets_the_user_name(provider: Provider) -> None:
    def who(request: gr.Request) -> str:
        return request.username or "nobody"

    page = gr.Interface(who, None, "text", api_name="who")
    web = mount(page, settings_for(provider))
    with TestClient(web, base_url=HERE, headers=BROWSER, follow_redirects=False) as browser:
        refused = browser.post("/gradio_api/run/who", json={"data": []})
        log_in(browser, provider)
        answer = browser.post("/gradio_api/run/who", json={"data": []})
    assert refused.status_code == 401
    assert answer.json()["data"] == ["ada"]


def test_the_start_names_what_is_missing_for_the_login(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(settings: HttpSettings) -> str:
        [check] = settings.start_checks()
        with pytest.raises(LoginError) as error:
            check()
        return str(error.value)

    settings = settings_for(provider)
    [check] = settings.start_checks()
    check()
    nowhere = Provider(None, f"http://localhost:{free_port()}")
    assert "does not answer: ConnectError" in said(settings_for(nowhere))
    assert "has the issuer" in said(settings_for(Provider(None, f"{provider.url}/")))
    provider.hide = ("jwks_uri",)
    assert "has no jwks_uri" in said(settings)
    monkeypatch.delenv("OIDC_CLIENT_SECRET")
    assert "OIDC_CLIENT_SECRET is not set" in said(settings)
    monkeypatch.delenv("PAGE_SECRET")
    assert "needs PAGE_SECRET" in said(settings)


def test_the_page_reports_that_the_provider_is_unreachable() -> None:
    nowhere = Provider(None, f"http://localhost:{free_port()}")
    answer = page_behind(settings_for(nowhere)).get("/")
    assert answer.status_code == 502
    assert "Try again" in answer.text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"oidc": {"issuer": "http://login.example.org", "client_id": "a"}}, "issuer"),
        ({"oidc": {"issuer": "https://a.example.org"}}, "client_id"),
        ({"oidc": {"issuer": "https://a.org", "client_id": "a", "scope": "email"}}, "scope"),
        ({"oidc": {"issuer": "https://a.org", "client_id": "a"}, "login_user": "ada"}, "Keep one"),
        ({"login_header": "X-User"}, "needs proxies"),
        ({"login_header": "X User", "proxies": ["10.0.0.1"]}, "login_header"),
        ({"login_header": "X-User", "proxies": ["nginx"]}, "proxies"),
    ],
)
def test_invalid_settings_are_refused(args: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HttpSettings.model_validate(args)


def test_without_its_libraries_the_login_is_refused_with_install_instructions(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, oidc_module.__name__)
    monkeypatch.setitem(sys.modules, "authlib.integrations.base_client", None)
    with pytest.raises(StartError, match="uv sync --extra oidc"):
        guard(FastAPI(), settings_for(provider))


def test_the_log_names_the_claim_for_which_a_user_is_refused(
    provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.know("2", preferred_username="bob", groups=["guests"])
    browser = page_behind(settings_for(provider, required_claims={"groups": "staff"}))

    browser.get(provider.log_in(sent_to(browser), "2"))

    [line] = [each.getMessage() for each in caplog.records if "required_claims" in each.msg]
    assert "the claim groups" in line
    assert "bob" not in line
    assert "guests" not in line
