"""`python installed.py SIDECAR`: the admin page of an installed sidecar has its templates and its static files.

Runs `SIDECAR demo` outside of the checkout, signs in and fetches the pages. Only the standard library is used.
"""

import re
import subprocess
import sys
from http.client import HTTPConnection
from urllib.parse import urlencode

STATIC = ("page.css", "page.js", "icon.svg", "chevron.svg")
PAGES = {"/": "Overview", "/keys": "reader", "/keys/new": "Scopes", "/audit": "Audit", "/explain": "Explain"}
"""Address to a word that the page shows."""


def main() -> None:
    with subprocess.Popen([sys.argv[1], "demo"], stdout=subprocess.PIPE, text=True) as demo:
        try:
            check(*address_and_token(demo))
        finally:
            demo.terminate()


def address_and_token(demo: "subprocess.Popen[str]") -> tuple[str, str]:
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if line.startswith("Metrics: "):
            break
    page = re.search(r"http://([0-9.]+:[0-9]+)/  ", said)
    token = re.search(r"admin token: (\S+)", said)
    assert page and token, said
    return page[1], token[1]


def check(address: str, token: str) -> None:
    for name in STATIC:
        assert fetch(address, "GET", f"/static/{name}")[0] == 200, name
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{address}"}
    status, cookie, _ = fetch(address, "POST", "/sign-in", urlencode({"token": token, "next": "/"}), form)
    assert (status, bool(cookie)) == (303, True), status
    for page, word in PAGES.items():
        status, _, text = fetch(address, "GET", page, headers={"Cookie": cookie.partition(";")[0]})
        assert status == 200 and word in text, f"{page}: {status}, {word!r} is not shown"
    print(f"the admin page has its {len(PAGES)} pages and {len(STATIC)} files")


def fetch(
    address: str, method: str, path: str, body: str = "", headers: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Status, Set-Cookie and text."""
    connection = HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, response.headers.get("Set-Cookie", ""), response.read().decode()
    finally:
        connection.close()


if __name__ == "__main__":
    main()
