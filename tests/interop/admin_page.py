"""The page of the admin port in a real browser: the arguments are its address and a directory for pictures of it.

Every section is opened by keyboard alone; text of strangers stays text; changes need the page itself. Each section is
photographed, light and dark. Says "ok" at the end.
"""

import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ADMIN = f"http://{sys.argv[1]}/"
LIMIT = 60_000  # milliseconds that anything may take: far beyond what it takes, so that only what hangs reaches it
PICTURES = Path(sys.argv[2])
EVIL = "<img src=x onerror=alert(1)>"
SECTIONS = ["Overview", "Clusters", "Routes", "Failures", "Live requests", "Configuration", "Explain", "Overrides", "Log levels"]


def main():
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser_path, "this test needs `chromium`"
    with sync_playwright() as playwright:
        # Inside of containers there is no user namespace for the sandbox.
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            look(browser, scheme)
        stranger(browser)
        browser.close()
    print("ok")


def open_page(browser, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(LIMIT)
    expect.set_options(timeout=LIMIT)
    problems = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    foreign = []
    page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(ADMIN) else None)
    page.goto(ADMIN)
    return page, problems, foreign


def section(page, number):
    page.locator("body").press(str(number))
    expect(page.locator("nav a[aria-current=page]")).to_contain_text(SECTIONS[number - 1])


def look(browser, scheme):
    page, problems, foreign = open_page(browser, scheme)

    def picture():
        name = page.locator("nav a[aria-current=page]").inner_text().split("\n")[0]
        page.screenshot(path=PICTURES / f"{scheme}-{re.sub('[^a-z]+', '-', name.lower()).strip('-')}.png", full_page=True)

    expect(page.locator("#state")).to_have_text("LIVE")
    expect(page.locator("canvas")).to_have_count(4)
    # Some points of the charts, for the picture.
    for _ in range(3):
        expect(page.locator("#who")).not_to_have_text(page.locator("#who").inner_text())
    picture()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == (scheme == "dark"), background

    section(page, 2)
    expect(page.locator("h3", has_text="alpha")).to_be_visible()
    picture()
    page.locator("body").press("/")
    page.keyboard.type("beta")
    expect(page.locator("h3", has_text="alpha")).to_have_count(0)
    expect(page.locator("h3", has_text="beta")).to_be_visible()
    # In a field the keys are letters.
    page.keyboard.type("1")
    expect(page.locator("nav a[aria-current=page]")).to_contain_text("Clusters")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")

    section(page, 3)
    expect(page.locator("#body")).to_contain_text(EVIL)
    expect(page.locator("#body table a").first).to_have_attribute("href", re.compile("#clusters/"))
    assert page.locator("#body img, #body script").count() == 0
    picture()

    section(page, 4)
    expect(page.locator("#body")).to_contain_text("/x?<script>alert(2)</script>")
    expect(page.locator("#body")).to_contain_text("could not be reached")
    picture()

    section(page, 5)
    expect(page.locator("#body")).to_contain_text("waiting for response")
    expect(page.locator("#body")).to_contain_text("GET /slow")
    picture()

    section(page, 6)
    expect(page.locator("#body")).to_contain_text("bootstrap")
    expect(page.locator("#body")).to_contain_text("set_local_interface_name_on_upstream_connections")
    page.locator("input[name=from]").fill("1")
    page.locator("input[name=to]").fill("1")
    page.keyboard.press("Enter")
    expect(page.locator("#diff")).to_contain_text("resources: -")
    picture()
    page.evaluate("document.activeElement.blur()")

    section(page, 7)
    page.locator("#listeners").select_option("web")
    page.locator("input[name=path]").fill("/a?b=+1")
    page.locator("textarea").fill("x-user: alice\nx-other: <b>")
    page.locator("input[name=path]").press("Enter")
    expect(page.locator("#account")).to_contain_text("path: /a?b=+1")
    expect(page.locator("#account")).to_contain_text('goes to cluster "beta"')
    expect(page.locator("#account")).to_contain_text("x-other: <b>")
    picture()
    page.locator("input[name=path]").fill("nonsense")
    page.locator("input[name=path]").press("Enter")
    expect(page.locator("#said")).to_contain_text("does not begin with a slash")
    page.evaluate("document.activeElement.blur()")

    # From an endpoint to its override and back, with tab and enter.
    section(page, 2)
    button = page.get_by_role("button", name=re.compile("Override endpoint")).first
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("nav a[aria-current=page]")).to_contain_text("Overrides")
    expect(page.locator("input[name=cluster]")).to_have_value("alpha")
    page.locator("input[name=for]").press("Enter")
    expect(page.locator("#body")).to_contain_text("of cluster \"alpha\" drains")
    picture()
    page.get_by_role("button", name=re.compile("Remove override")).first.press("Enter")
    expect(page.locator("#body")).to_contain_text("No overrides")
    page.evaluate("document.activeElement.blur()")

    section(page, 9)
    page.get_by_label("level of upstream").select_option("debug")
    expect(page.locator("#said")).to_contain_text("upstream: debug")
    picture()
    page.evaluate("document.activeElement.blur()")

    page.locator("body").press("p")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    page.locator("body").press("t")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert after != background, after
    # The answer to nonsense is an error on purpose, which the browser may tell of later than the page does.
    others = [problem for problem in problems if "400" not in problem]
    assert not others and len(problems) <= 1, problems
    assert not foreign, foreign
    page.close()


def stranger(browser):
    """A page of another site cannot change anything, nor can the page be framed."""
    page = browser.new_page()
    page.route("http://elsewhere.example/**", lambda route: route.fulfill(body="<p>elsewhere</p>", content_type="text/html"))
    page.goto("http://elsewhere.example/")
    page.evaluate(f"fetch('{ADMIN}healthcheck/fail', {{ method: 'POST', mode: 'no-cors' }}).catch(() => 0)")
    answer = page.request.get(ADMIN + "ready")
    assert answer.text().strip() == "LIVE", answer.text()
    page.close()


main()
