"""The page in a real browser: what a visitor does, step by step."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from sana_service import metadata
from tests.page.browser import chromium, serious_faults, visit
from tests.services import Server

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def choose(page: Page, name: str, value: str) -> None:
    page.locator(f"input[name={name}][value='{value}']").check(force=True)


def draw(page: Page, prompt: str = PROMPT, size: str = "square") -> None:
    page.fill("#prompt", prompt)
    choose(page, "size", size)
    page.click("#generate")


def drawn(page: Page, count: int = 1) -> bytes:
    """Wait for pictures; the first one's file."""
    expect(page.locator(".card img")).to_have_count(count)
    with page.expect_download() as download:
        page.locator(".card >> text=Download").first.click()
    return Path(download.value.path()).read_bytes()


def test_the_first_visit_asks_no_other_host_and_has_no_serious_fault(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        expect(seen.page.locator("#empty")).to_be_visible()
        expect(seen.page.locator("#prompt")).to_be_focused()
        expect(seen.page.locator("#ideas button")).to_have_count(3)
        seen.shoot("1-first-visit")
        assert serious_faults(seen.page) == []
        assert seen.hosts == {quick_server.url.removeprefix("http://")}
        assert seen.complaints == []


def test_the_policy_lets_the_page_speak_to_this_host_alone(quick_server):
    with quick_server.client() as http:
        for path in ("/", "/docs", "/assets/main.js"):
            answer = http.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; ")
            assert "unsafe" not in policy
            again = http.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert http.get("/assets/index.html").status_code == 404
        assert re.findall(r"(?:src|href)=\"(?:/|[a-z]+:)", http.get("/").text + http.get("/docs").text) == []


def test_drawing_shows_each_step_and_keeps_the_picture(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.evaluate(
            """() => {
                const detail = document.querySelector("#stage-detail");
                const tell = () => (window.told ??= []).push(detail.textContent);
                new MutationObserver(tell).observe(detail, {childList: true});
            }"""
        )
        page.click("#more summary")
        page.locator("#steps").fill("30")
        draw(page)
        page.wait_for_function(
            "() => /^step (1[0-9]|2[0-9]) of 30$/.test(document.querySelector('#stage-detail').textContent)"
        )
        assert 0 < float(page.get_attribute("#progress", "value") or 0) < 100
        seen.shoot("2-progress")
        told = metadata.read(drawn(page))
        assert told is not None
        assert (told.prompt, told.num_inference_steps, told.width, told.model) == (PROMPT, 30, 512, "base")
        assert len({text for text in page.evaluate("window.told") if text.startswith("step")}) >= 2
        seen.shoot("3-picture")
        assert serious_faults(page) == []
        page.reload()
        page.locator("#pictures button").click()
        assert metadata.read(drawn(page)) == told
        page.click("text=Details")
        expect(page.locator("#details")).to_contain_text(str(told.seed))
        page.keyboard.press("Escape")
        page.click("text=Delete")
        expect(page.locator("#empty")).to_be_visible()
        assert seen.complaints == []


def test_everything_in_the_form_reaches_the_picture(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.fill("#prompt", "a “quoted” prompt, ünïcode")
        choose(page, "size", "own")
        page.fill("#width", "320")
        page.fill("#height", "640")
        page.click("#swap")
        choose(page, "count", "2")
        choose(page, "format", "png")
        page.fill("#seed", "18446744073709551615")
        page.click("#more summary")
        page.select_option("#style", "Pixel art")
        page.locator("#steps").fill("3")
        page.locator("#guidance").fill("2.5")
        page.fill("#negative", "blue")
        page.keyboard.press("Control+Enter")
        content = drawn(page, 2)
        told = metadata.read(content)
        assert told is not None
        assert Image.open(io.BytesIO(content)).format == "PNG"
        assert (told.width, told.height, told.seed, told.style_name) == (640, 320, 2**64 - 1, "Pixel art")
        assert (told.num_inference_steps, told.guidance_scale, told.negative_prompt) == (3, 2.5, "blue")
        page.locator(".card").nth(1).locator("text=Details").click()
        expect(page.locator("#details")).to_contain_text("Seed0")


def test_sprint_has_its_own_steps(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        choose(seen.page, "model", "sprint")
        assert seen.page.input_value("#steps") == "2"
        expect(seen.page.locator("#negative")).to_be_disabled()
        draw(seen.page)
        told = metadata.read(drawn(seen.page))
        assert told is not None
        assert (told.model, told.num_inference_steps) == ("sprint", 2)


def test_cancelling_frees_the_device(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.click("#more summary")
        page.locator("#steps").fill("50")
        choose(page, "count", "4")
        draw(page)
        expect(page.locator("#stage-detail")).to_contain_text("step")
        page.keyboard.press("Escape")
        expect(page.locator("#toast")).to_have_text("Cancelled.")
        expect(page.locator("#empty")).to_be_visible()
        expect(page.locator("#generate")).to_be_enabled()
        choose(page, "count", "1")
        choose(page, "model", "sprint")
        draw(page)
        drawn(page)


def test_a_reload_goes_on_with_what_was_begun(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.click("#more summary")
        page.locator("#steps").fill("50")
        draw(page)
        expect(page.locator("#stage-detail")).to_contain_text("step")
        page.reload()
        told = metadata.read(drawn(page))
        assert told is not None
        assert told.num_inference_steps == 50


def test_faults_are_told_where_they_are(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.click("#generate")
        expect(page.locator("#prompt-fault")).to_be_visible()
        page.fill("#prompt", "a")
        choose(page, "size", "own")
        page.fill("#width", "9000")
        page.fill("#height", "9000")
        page.fill("#seed", "99999999999999999999")
        page.click("#generate")
        expect(page.locator("#image_size-fault")).to_contain_text("16.8 megapixels")
        expect(page.locator("#seed-fault")).to_be_visible()
        expect(page.locator("#width")).to_be_focused()
        assert serious_faults(page) == []


def test_errors_of_the_service_are_explained(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        refusal = '{"detail": "1000 requests are in the queue already, retry later."}'
        page.route("**/queue/**", lambda route: route.fulfill(status=429, body=refusal, headers={"retry-after": "5"}))
        draw(page)
        expect(page.locator("#error-title")).to_have_text("The queue is full")
        expect(page.locator("#error-text")).to_contain_text("Room is expected in 5 s.")
        seen.shoot("4-error")
        assert serious_faults(page) == []
        page.unroute("**/queue/**")
        page.route("**/queue/**", lambda route: route.abort())
        page.click("#retry")
        expect(page.locator("#error-title")).to_have_text("No answer")
        page.unroute("**/queue/**")
        page.click("#retry")
        drawn(page)


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_a_dropped_picture_gives_its_settings_back(browser, quick_server, output_format):
    request = {
        "prompt": "ünïcode and\nlines", "image_size": {"width": 333, "height": 222}, "seed": 2**63 + 1,
        "num_inference_steps": 4, "output_format": output_format, "style_name": "Manga",
    }  # fmt: skip
    with quick_server.client() as http:
        answer = http.post("/sprint", json=request).json()
        content = http.get(answer["images"][0]["url"]).content
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.evaluate(
            """(encoded) => {
                const transfer = new DataTransfer();
                const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], "picture"));
                for (const type of ["dragenter", "dragover", "drop"]) {
                    document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true}));
                }
            }""",
            base64.b64encode(content).decode(),
        )
        expect(page.locator("#toast")).to_contain_text("in the form")
        assert page.input_value("#prompt") == request["prompt"]
        assert page.input_value("#seed") == str(2**63 + 1)
        assert (page.input_value("#width"), page.input_value("#height")) == ("333", "222")
        assert (page.input_value("#steps"), page.input_value("#style")) == ("4", "Manga")
        assert page.locator("input[name=model]:checked").get_attribute("value") == "sprint"
        expect(page.locator("#lock")).to_have_attribute("aria-pressed", "true")


def test_a_foreign_file_is_no_settings(browser, quick_server, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    with visit(browser, quick_server.url) as seen:
        seen.page.set_input_files("#file", tmp_path / "foreign.png")
        expect(seen.page.locator("#toast")).to_contain_text("no settings")


def test_a_proxy_may_put_a_path_before_everything(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        strip = re.compile("/behind/")
        page.route(
            re.compile("/behind/"), lambda route: route.continue_(url=strip.sub("/", route.request.url, count=1))
        )
        page.goto(f"{quick_server.url}/behind/")
        draw(page)
        drawn(page)
        page.click("#code-open")
        assert f"{quick_server.url}/behind/generate" in snippet(page, "curl")
        page.goto(f"{quick_server.url}/behind/docs")
        expect(page.locator("#fal-queue")).to_have_text(
            f"FAL_QUEUE_RUN_HOST={quick_server.url.removeprefix('http://')}/behind/queue"
        )
        page.click("#livez > summary")
        page.click("#livez >> text=Send")
        expect(page.locator("#livez pre")).to_contain_text("200")
        assert seen.complaints == []


def snippet(page: Page, language: str) -> str:
    page.click(f"#tabs >> text='{language}'")
    return page.locator("#code").inner_text()


def test_the_code_draws_the_same_picture(browser, quick_server, tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(*command: str) -> str:
        finished = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.click("#more summary")
        page.locator("#steps").fill("2")
        page.uncheck("#safety")
        page.fill("#prompt", 'it\'s a "test" with $HOME and: true,\nlines')
        page.fill("#seed", "7")
        choose(page, "size", "square")
        page.click("#code-open")
        by_curl = run("bash", "-c", snippet(page, "curl"))
        assert '"seed":7' in by_curl.replace(" ", "")
        (tmp_path / "draw.py").write_text(snippet(page, "Python"))
        name = run(sys.executable, "draw.py").strip()
        told = metadata.read(tmp_path / name)
        assert told is not None
        assert (told.prompt, told.seed) == ('it\'s a "test" with $HOME and: true,\nlines', 7)
        (tmp_path / "locustfile.py").write_text(snippet(page, "Locust"))
        run(
            "locust", "-f", "locustfile.py", "--host", quick_server.url, "--headless", "--users", "1",
            "--run-time", "2s", "--exit-code-on-error", "1", "--only-summary",
        )  # fmt: skip
        assert "fal_client.subscribe(" in snippet(page, "fal")
        assert serious_faults(page) == []


def test_a_key_is_asked_for_and_kept(browser, fal_server):
    url = f"https://{fal_server.host}"
    with visit(browser, url, ignore_https_errors=True) as seen:
        page = seen.page
        draw(page)
        expect(page.locator("#key-dialog")).to_be_visible()
        assert serious_faults(page) == []
        page.fill("#key", "test-key")
        page.keyboard.press("Enter")
        page.click("#retry")
        drawn(page)
        page.reload()
        draw(page)
        drawn(page)
        page.click("#code-open")
        assert "$SANA_KEY" in snippet(page, "curl")
        assert "test-key" not in page.locator("#code").inner_text()
        program = snippet(page, "fal")
    environment = fal_server.environment | {"SANA_KEY": "test-key"}
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert f"{url}/files/" in finished.stdout, finished.stderr


def test_a_phone_and_the_dark(browser, quick_server):
    with visit(
        browser, quick_server.url, viewport={"width": 375, "height": 740}, color_scheme="dark", has_touch=True
    ) as seen:
        page = seen.page
        seen.shoot("5-phone-dark")
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        assert serious_faults(page) == []
        draw(page)
        drawn(page)
        seen.shoot("6-phone-dark-picture")
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        assert serious_faults(page) == []
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_the_keyboard_reaches_everything(browser, quick_server):
    with visit(browser, quick_server.url) as seen:
        page = seen.page
        page.locator("#code-open").focus()
        page.keyboard.press("r")
        assert re.fullmatch("[0-9]+", page.input_value("#seed"))
        page.keyboard.press("/")
        expect(page.locator("#prompt")).to_be_focused()
        page.keyboard.type("a/r")
        assert page.input_value("#prompt") == "a/r"
        focused = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            focused.add(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.name || document.activeElement.tagName"
                )
            )
        assert {
            "model",
            "size",
            "count",
            "format",
            "seed",
            "dice",
            "lock",
            "generate",
            "code-open",
            "SUMMARY",
        } <= focused


def test_the_documentation_shows_and_tries_each_operation(browser, quick_server: Server):
    with visit(browser, f"{quick_server.url}/docs") as seen:
        page = seen.page
        paths = httpx.get(f"{quick_server.url}/openapi.json").json()["paths"]
        expect(page.locator(".operation")).to_have_count(sum(len(methods) for methods in paths.values()))
        page.click("#sprint > summary")
        expect(page.locator("#sprint")).to_contain_text("1 to 20, default 2")
        page.fill("#try-sprint", '{"prompt": "a", "image_size": "square", "seed": 18446744073709551615}')
        page.click("#sprint >> text=Send")
        expect(page.locator("#sprint pre")).to_contain_text("18446744073709551615")
        seen.shoot("7-documentation")
        assert serious_faults(page) == []
        assert seen.complaints == []
        assert seen.hosts == {quick_server.url.removeprefix("http://")}
