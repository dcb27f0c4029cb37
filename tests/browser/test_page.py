"""The page at / in headless Chromium: against the real server with a real student, and a scripted one."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import http, load_student, running_server, wait_until_ready
from selenium.webdriver.common.keys import Keys
from stub_openai import StubServer

from edgekit.errors import ModelFileError
from edgekit.server.access import ApiKeys
from edgekit.server.model import LoadedModel

Browser = Any
"""conftest.Browser"""

QUESTION = "What is the capital of France? Answer in one sentence."
REASONING = """First, how many apples are left? There were 23, then 9 were eaten, so 23 - 9 = 14.

Then 6 were bought: 14 + 6 = **20**. Let me check that: \\( 23 - 9 + 6 = 20 \\). Yes."""
ANSWER = """There are **20 apples** left.

### How it adds up

1. Start with 23 apples.
2. Nine are eaten: \\( 23 - 9 = 14 \\).
3. Six are bought:
   - *one* day, three
   - the next, `three`

| step | apples |
| --- | --- |
| eaten | 14 |
| bought | 20 |

```python
def apples(start: int, eaten: int, bought: int) -> int:
    return start - eaten + bought
```
"""


def pieces(field: str, text: str) -> list[tuple[str, str]]:
    """A text as a model would stream it."""
    return [(field, piece) for piece in re.findall(r"\s*\S+|\s+$", text)]


def set_options(browser: Browser, **values: str) -> None:
    browser.find("#open-settings").click()
    for field, value in values.items():
        element = browser.find(f"#{field.replace('_', '-')}")
        element.clear()
        element.send_keys(value)
    browser.press(Keys.ESCAPE)


# Against the real server.


def test_chat__streams_an_answer_and_tells_what_it_took(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    set_options(browser, temperature="0", max_tokens="24")
    browser.ask(QUESTION)
    assert "Paris" in browser.wait_for_answer()
    assert re.fullmatch(
        r"[\d.,]+ tokens/s · \d+ tokens · first after [\d.]+ m?s · prompt of \d+ tokens(, \d+ cached)?"
        r"( · cut at the limit)?",
        browser.figures(),
    ), browser.figures()
    assert browser.focused() == "message"
    assert browser.text("#announcer") == browser.text(".turn.model .answer")


def test_chat__shows_text_and_tokens_per_second_while_it_streams(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    set_options(browser, temperature="1", max_tokens="400")
    browser.ask("Write a long story about a lighthouse and the sea.")
    seen = browser.wait(
        lambda: browser.run(
            "const turn = document.querySelector('.turn.model[aria-busy=true]');"
            "const figures = turn?.querySelector('.figures').textContent ?? '';"
            "return /^≈ [\\d.,]+ tokens.s · about \\d+ tokens$/.test(figures) &&"
            " turn.querySelector('.answer').textContent.length;"
        ),
        "no figures while it streams",
    )
    assert seen > 0
    browser.press(Keys.ESCAPE)
    browser.wait_for_answer()


def test_chat__a_second_question_goes_on_with_the_first(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    set_options(browser, temperature="0", max_tokens="24")
    browser.ask(QUESTION)
    browser.wait_for_answer()
    browser.ask("And of Italy?")
    assert "Rome" in browser.wait_for_answer()
    assert "cached" in browser.figures()


def test_stop__ends_the_answer_here_and_on_the_server(browser: Browser, live_url: str) -> None:
    def active() -> float:
        page = http.get(f"{live_url}/metrics").text
        return float(re.findall(r"^llamacpp:requests_processing (\S+)", page, re.M)[0])

    browser.open(live_url)
    set_options(browser, temperature="1.2")
    browser.ask("Count from one to one thousand, in words.")
    browser.wait(lambda: browser.text(".turn.model .answer"), "nothing came")
    browser.find("#stop").click()
    answer = browser.wait_for_answer()
    assert answer
    assert browser.figures().endswith("stopped")
    browser.wait(lambda: active() == 0, "the server goes on")
    assert browser.find("#send").is_displayed()
    assert not browser.find("#stop").is_displayed()


def test_page__needs_no_other_host_and_has_no_errors(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    set_options(browser, max_tokens="8")
    browser.ask(QUESTION)
    browser.wait_for_answer()
    browser.find("#state").click()
    asked = browser.requested_urls()
    assert f"{live_url}/" in asked
    assert any(re.search(r"/assets/[0-9a-f]{16}/main\.js$", url) for url in asked)
    assert [url for url in asked if not url.startswith(f"{live_url}/")] == []
    assert browser.complaints() == []


def test_status__shows_the_model_and_what_it_did(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    assert browser.text("#model-name") == "smollm2"
    assert browser.text("#quantization") == "Q4_1"
    assert browser.text("#context") == "512 tokens"
    assert browser.text("#release") == "1"
    assert re.fullmatch(r"\d+ (s|min)", browser.text("#uptime"))
    assert re.fullmatch(r"[\d,]+ of [\d,]+ tokens", browser.text("#kv"))
    assert re.fullmatch(r"[\d.,]+ (M|G)iB", browser.text("#memory"))
    set_options(browser, max_tokens="30")
    before = int(browser.text("#finished"))
    browser.ask("Tell me about the sea.")
    browser.wait_for_answer()
    browser.wait(lambda: int(browser.text("#finished")) > before, "the answer is not counted")
    assert re.fullmatch(r"[\d.]+ m?s, [\d.]+ m?s", browser.text("#ttft"))
    assert re.fullmatch(r"[\d.,]+ tokens/s", browser.text("#speed-mean"))
    assert browser.all("#ttft-chart rect")
    browser.wait(lambda: browser.all("#speed-chart path.line"), "no line of speeds")
    browser.screenshot("live")


def test_keyboard__is_all_it_takes(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    assert browser.focused() == "message"
    browser.press("Hello", Keys.SHIFT + Keys.ENTER + Keys.NULL, "there")
    assert browser.find("#message").get_property("value") == "Hello\nthere"
    browser.press(Keys.ENTER)
    assert browser.text(".turn.user") == "Hello\nthere"
    browser.wait(lambda: browser.text(".turn.model .answer"), "nothing came")
    browser.press(Keys.ESCAPE)
    browser.wait_for_answer()
    # Backwards from the message: the answer's buttons, the conversation, the header.
    reached = []
    for _ in range(8):
        browser.press(Keys.SHIFT + Keys.TAB + Keys.NULL)
        reached.append(browser.focused() or browser.driver.switch_to.active_element.text)
    assert reached[:3] == ["Regenerate", "Copy", "log"]
    assert [name for name in reached if name in ("open-settings", "new-chat", "state")] == [
        "open-settings",
        "new-chat",
        "state",
    ]
    browser.find("#open-settings").send_keys(Keys.ENTER)
    assert browser.focused() == "system"
    browser.press(Keys.ESCAPE)
    assert browser.focused() == "open-settings"
    browser.find("#new-chat").send_keys(Keys.ENTER)
    assert browser.focused() == "message"
    assert browser.all(".turn") == []


def test_context_overflow__is_told_in_the_servers_words(browser: Browser, live_url: str) -> None:
    browser.open(live_url)
    browser.run("document.querySelector('#message').value = 'word '.repeat(800)")
    browser.ask("")
    browser.wait_for_answer()
    assert "512" in browser.text(".turn.model .error")
    # The next question does without the one that was too long.
    set_options(browser, max_tokens="4")
    browser.ask(QUESTION)
    assert browser.wait_for_answer()


def test_api_key__is_asked_for_and_kept_with_the_tab(browser: Browser, student: Path) -> None:
    keys = ApiKeys(frozenset({"sécret"}))
    with running_server(lambda: load_student(student), keys) as url:
        wait_until_ready(url)
        browser.open(url, state="Key needed")
        browser.wait(lambda: browser.focused() == "key", "the key is not asked for")
        browser.screenshot("key")
        browser.press("wrong", Keys.ENTER)
        browser.wait_for_text("key-hint", "does not know this key")
        browser.press("sécret", Keys.ENTER)
        browser.wait_for_text("state-text", "Ready")
        assert not browser.find("#key-form").is_displayed()
        set_options(browser, max_tokens="4")
        browser.ask(QUESTION)
        assert browser.wait_for_answer()
        browser.driver.refresh()
        browser.wait_for_text("state-text", "Ready")
        assert browser.run("return localStorage.length") == 0


def test_loading__is_told_and_what_is_typed_waits(browser: Browser, student: Path) -> None:
    may_load = threading.Event()

    def load() -> LoadedModel:
        assert may_load.wait(60)
        return load_student(student)

    with running_server(load) as url:
        try:
            browser.open(url, state="Loading")
            assert "loading" in browser.text("#notice")
            browser.ask(QUESTION)
            assert browser.all(".turn") == []
            assert not browser.find("#send").is_enabled()
            browser.screenshot("loading")
        finally:
            may_load.set()
        browser.wait_for_text("state-text", "Ready")
        assert not browser.find("#notice").is_displayed()
        set_options(browser, max_tokens="4")
        browser.find("#send").click()
        assert browser.wait_for_answer()


def test_failed_load__says_why(browser: Browser) -> None:
    def load() -> LoadedModel:
        raise ModelFileError("model.gguf: truncated")

    with running_server(load) as url:
        browser.open(url, state="Failed")
        assert "model.gguf: truncated" in browser.text("#notice")
        assert not browser.find("#send").is_enabled()


# Against the scripted server.


def test_reasoning__is_folded_and_says_how_long_and_how_much(browser: Browser, stub: StubServer) -> None:
    reasoning = pieces("reasoning", REASONING)
    stub.script = reasoning + pieces("content", ANSWER)
    stub.pause_s = 0.01
    browser.open(stub.url)
    browser.ask("There were 23 apples. Nine were eaten and six were bought. How many are left?")
    label = ".turn.model .reasoning summary"
    browser.wait(lambda: re.match(r"Thinking… \d s, about \d+ tokens", browser.text(label)), "no thinking")
    browser.wait(lambda: browser.figures().startswith("≈"), "no speed")
    browser.screenshot("thinking")
    browser.wait_for_answer()
    assert re.fullmatch(rf"Thought for \d\.\d s, {len(reasoning)} tokens", browser.text(label))
    thought = browser.find(".turn.model .reasoning .md")
    assert not thought.is_displayed()
    browser.screenshot("reasoning-folded")
    browser.find(label).click()
    assert thought.is_displayed()
    assert "Let me check that" in thought.text
    browser.screenshot("reasoning-open")
    browser.emulate(width=1280, height=800, dark=True)
    browser.screenshot("dark")
    assert browser.complaints() == []


def test_reasoning__is_not_sent_back(browser: Browser, stub: StubServer) -> None:
    stub.script = [("reasoning", "Hm."), ("content", "One.")]
    browser.open(stub.url)
    set_options(browser, system="Be brief.")
    for question in ("First?", "Second?"):
        browser.ask(question)
        browser.wait_for_answer()
    assert stub.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Second?"},
    ]


def test_settings__are_sent_and_what_is_not_set_is_not(browser: Browser, stub: StubServer) -> None:
    stub.script = [("content", "Yes.")]
    browser.open(stub.url)
    browser.ask("First?")
    browser.wait_for_answer()
    set_options(browser, temperature="0.25", max_tokens="77", seed="42")
    browser.screenshot("settings-closed")
    browser.ask("Second?")
    browser.wait_for_answer()
    sent = [{name: value for name, value in body.items() if name != "messages"} for body in stub.bodies]
    always = {"stream": True, "stream_options": {"include_usage": True}}
    # The server's guard against other sites' pages goes by this header.
    assert stub.origins == [stub.url, stub.url]
    assert sent == [always, {**always, "temperature": 0.25, "max_tokens": 77, "seed": 42}]


def test_settings__that_are_not_valid_are_shown_and_not_sent(browser: Browser, stub: StubServer) -> None:
    browser.open(stub.url)
    set_options(browser, temperature="9")
    browser.ask("Well?")
    assert browser.find("#settings").is_displayed()
    browser.screenshot("settings")
    assert stub.bodies == []


def test_markdown__becomes_elements(browser: Browser, stub: StubServer) -> None:
    stub.script = pieces("content", ANSWER)
    browser.open(stub.url)
    browser.ask("Well?")
    browser.wait_for_answer()
    shown = {
        selector: [element.get_property("textContent") for element in browser.all(f".answer {selector}")]
        for selector in ("strong", "h5", "ol > li", "ul > li", "em", "th", "td", "pre code", ".tex")
    }
    assert shown == {
        "strong": ["20 apples"],
        "h5": ["How it adds up"],
        "ol > li": [
            "Start with 23 apples.",
            "Nine are eaten: 23 - 9 = 14.",
            "Six are bought:one day, threethe next, three",
        ],
        "ul > li": ["one day, three", "the next, three"],
        "em": ["one"],
        "th": ["step", "apples"],
        "td": ["eaten", "14", "bought", "20"],
        "pre code": [ANSWER.split("```")[1].removeprefix("python\n").rstrip("\n")],
        ".tex": ["23 - 9 = 14"],
    }


CORNERS: list[tuple[str, str, list[str]]] = [
    ("2*3*4 and snake_case_name and a * b * c", "em", []),
    ("***both***", "strong em", ["both"]),
    ("**open", "strong", []),
    ("`a **b**`", "code", ["a **b**"]),
    ("```\nnever closed\n", "pre code", ["never closed\n"]),
    ("[x](https://example.org/a_b_c)", "a[href='https://example.org/a_b_c'][rel~=noopener]", ["x"]),
    ("[x](javascript:alert(1))", "a", []),
    ("[x](data:text/html,y)", "a", []),
    ("[x](/v1/models)", "a", []),
    ("![x](https://example.org/x.png)", "img", []),
    ("3. three\n4. four", "ol[start='3'] > li", ["three", "four"]),
    ("> quoted\n> on", "blockquote p", ["quoted\non"]),
    ("> " * 500 + "deep", "blockquote " * 6 + "p", ["> " * 494 + "deep"]),
    ("**a " * 20_000 + "b", "p", ["**a " * 20_000 + "b"]),
    ("[" * 20_000, "p", ["[" * 20_000]),
    ("\\[ x_1 * y_2 \\]", ".tex", ["x_1 * y_2"]),
    ("- a\n\n  b\n- c", "li p", ["b"]),
]
"""A text, a selector, and the texts of the elements that it finds."""


def test_markdown__corners(browser: Browser, stub: StubServer) -> None:
    """The renderer alone, as the page has it."""
    browser.open(stub.url)
    began = time.monotonic()
    found = browser.driver.execute_async_script(
        "const [cases, done] = arguments;"
        "const source = new URL('markdown.js', document.querySelector('script').src).href;"
        "import(source).then(({ showMarkdown }) => done(cases.map(([text, selector]) => {"
        "  const target = document.createElement('div');"
        "  showMarkdown(target, text);"
        "  return [...target.querySelectorAll(selector)].map((node) => node.textContent);"
        "})));",
        [corner[:2] for corner in CORNERS],
    )
    took_s = time.monotonic() - began
    assert found == [shown for _, _, shown in CORNERS]
    # No text, however odd, holds the page up.
    assert took_s < 5


def test_markdown__in_pieces_is_as_at_once(browser: Browser, stub: StubServer) -> None:
    browser.open(stub.url)
    differing = browser.driver.execute_async_script(
        "const [text, done] = arguments;"
        "const source = new URL('markdown.js', document.querySelector('script').src).href;"
        "import(source).then(({ showMarkdown }) => {"
        "  const [grown, whole] = [document.createElement('div'), document.createElement('div')];"
        "  for (let end = 1; end <= text.length; end += 1) showMarkdown(grown, text.slice(0, end));"
        "  showMarkdown(whole, text);"
        "  done(grown.isEqualNode(whole) ? null : grown.outerHTML);"
        "});",
        ANSWER,
    )
    assert differing is None


def test_html_of_the_model__stays_text(browser: Browser, stub: StubServer) -> None:
    attack = (
        "<img src=x onerror=\"window.broken='img'\"> <script>window.broken='script'</script>\n\n"
        "<iframe srcdoc='<script>parent.broken=1</script>'></iframe>\n\n"
        "[click](javascript:window.broken='link') ![](https://example.org/leak.png?q=1)\n\n"
        "```html\n</code></pre><svg onload=window.broken='svg'>\n```\n\n"
        "`<b onmouseover=window.broken=1>`\n\n| <i>a</i> | b |\n|---|---|\n| <s>1</s> | 2 |\n"
    )
    stub.script = [("reasoning", attack), ("content", attack)]
    browser.open(stub.url)
    browser.ask("<u>me</u> <img src=x onerror=window.broken=1>")
    browser.wait_for_answer()
    browser.find(".reasoning summary").click()
    assert browser.run("return window.broken ?? null") is None
    for tag in ("img", "script", "iframe", "b", "i", "s", "u", "svg", "a[href^=javascript]"):
        assert browser.all(f"#turns {tag}") == [], tag
    assert "<script>window.broken='script'</script>" in browser.text(".turn.model .answer")
    assert browser.text(".turn.user") == "<u>me</u> <img src=x onerror=window.broken=1>"
    assert browser.other_hosts(stub.url) == []
    assert browser.complaints() == []


def test_policy__scripts_and_html_from_strings_are_refused(browser: Browser, stub: StubServer) -> None:
    """The second wall: were the page to have a hole, the browser would not let it be used."""
    browser.open(stub.url)
    refused = browser.run(
        "const failed = [];"
        "try { document.body.innerHTML = '<img src=x>'; } catch (error) { failed.push(error.name); }"
        "const script = document.createElement('script');"
        "try { script.textContent = 'window.broken = 1'; } catch (error) { failed.push(error.name); }"
        "document.body.append(script);"
        "const image = new Image();"
        "image.src = 'https://example.org/leak.png';"
        "return failed;"
    )
    assert refused == ["TypeError", "TypeError"]
    assert browser.run("return window.broken ?? null") is None
    complaints = browser.wait(browser.complaints, "the policy is not there")
    assert any("Content Security Policy" in complaint for complaint in complaints)


def test_regenerate__asks_again_without_the_answer(browser: Browser, stub: StubServer) -> None:
    stub.script = [("content", "One.")]
    browser.open(stub.url)
    browser.ask("Well?")
    browser.wait_for_answer()
    stub.script = [("content", "Two.")]
    browser.find("[data-action=regenerate]").click()
    browser.wait(lambda: len(stub.bodies) == 2, "not asked")
    assert browser.wait_for_answer() == "Two."
    assert stub.bodies[0] == stub.bodies[1]
    assert len(browser.all(".turn.model")) == 1
    assert browser.focused() == "message"


def test_new_chat__forgets(browser: Browser, stub: StubServer) -> None:
    stub.script = pieces("content", "One two three four five.")
    stub.pause_s = 0.2
    browser.open(stub.url)
    browser.ask("Well?")
    browser.wait(lambda: browser.all(".turn.model"), "no answer begins")
    browser.find("#new-chat").click()
    assert browser.all(".turn") == []
    assert stub.ended_early.wait(10)
    stub.pause_s = 0
    browser.wait(lambda: browser.find("#send").is_displayed(), "still busy")
    browser.ask("Anew?")
    browser.wait_for_answer()
    assert stub.bodies[1]["messages"] == [{"role": "user", "content": "Anew?"}]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((429, {"error": {"message": "8 wait already"}}, {"Retry-After": "7"}), "try again in 7 s"),
        ((500, {"error": {"message": "out of luck"}}, {}), "out of luck"),
        ((502, {}, {}), "Bad Gateway"),
    ],
)
def test_refused__is_told_and_can_be_tried_again(
    browser: Browser, stub: StubServer, refusal: tuple[int, dict[str, Any], dict[str, str]], said: str
) -> None:
    stub.refusal = refusal
    stub.script = [("content", "Now.")]
    browser.open(stub.url)
    browser.ask("Well?")
    browser.wait_for_answer()
    assert said in browser.text(".turn.model .error")
    assert said in browser.text("#announcer")
    stub.refusal = None
    browser.find("[data-action=regenerate]").click()
    browser.wait(lambda: browser.wait_for_answer() == "Now.", "not answered")


def test_error_in_the_middle__keeps_what_came(browser: Browser, stub: StubServer) -> None:
    stub.script = [("content", "Half an")]
    stub.breaks_with = "the engine stopped"
    browser.open(stub.url)
    browser.ask("Well?")
    assert browser.wait_for_answer() == "Half an"
    assert browser.text(".turn.model .error") == "the engine stopped"


def test_unreachable_and_back__is_told(browser: Browser, stub: StubServer) -> None:
    browser.open(stub.url)
    browser.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.wait_for_text("state-text", "Unreachable")
    assert browser.find("#notice").is_displayed()
    browser.screenshot("unreachable")
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    browser.wait_for_text("state-text", "Ready")
    assert not browser.find("#notice").is_displayed()


@pytest.mark.parametrize("code", ["shutting_down", "draining"])
def test_draining__is_told(browser: Browser, stub: StubServer, code: str) -> None:
    stub.health = (503, {"error": {"message": "stopping", "type": "unavailable_error", "code": code}})
    browser.open(stub.url, state="Stopping")
    assert "takes no new questions" in browser.text("#notice")
    assert not browser.find("#send").is_enabled()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_screen__nothing_sticks_out(browser: Browser, stub: StubServer, width: int) -> None:
    long_word = "Donaudampfschifffahrtsgesellschaft" * 4
    table = "| " + " | ".join("column" for _ in range(12)) + " |\n" + "|---" * 12 + "|\n"
    stub.script = pieces("reasoning", REASONING) + pieces("content", f"{ANSWER}\n{long_word}\n\n{table}")
    browser.emulate(width=width, height=844, phone=True)
    browser.open(stub.url)
    browser.ask(f"Well? {long_word}")
    browser.wait_for_answer()
    browser.run("document.querySelector('#log').scrollTop = 0")
    if width == 390:
        browser.screenshot("phone")

    def sticking_out() -> list[str]:
        return list(
            browser.run(
                "return [document.documentElement, document.querySelector('#log'),"
                " document.querySelector('#status')]"
                ".filter((node) => node.scrollWidth > node.clientWidth)"
                ".map((node) => `${node.tagName}#${node.id} ${node.scrollWidth} > ${node.clientWidth}`)"
            )
        )

    assert sticking_out() == []
    browser.find("#state").click()
    assert browser.find("#status").is_displayed()
    assert sticking_out() == []
    if width == 390:
        browser.screenshot("phone-status")
    browser.press(Keys.ESCAPE)
    assert not browser.find("#status").is_displayed()
    assert browser.focused() == "state"


def test_poll__rests_while_nobody_looks(browser: Browser, stub: StubServer) -> None:
    browser.open(stub.url)
    browser.run(
        "Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true });"
        "window.away = true; document.dispatchEvent(new Event('visibilitychange'));"
    )
    time.sleep(0.5)
    browser.requested_urls()
    time.sleep(2.2)
    assert browser.requested_urls() == []
    browser.run("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait(lambda: f"{stub.url}/metrics" in browser.requested_urls(), "does not go on")


def test_scrolling_up__is_left_in_peace(browser: Browser, stub: StubServer) -> None:
    stub.script = pieces("content", "Word.\n\n" * 70)
    stub.pause_s = 0.02
    browser.open(stub.url)
    browser.ask("Well?")
    browser.wait(
        lambda: browser.run("const l = document.querySelector('#log'); return l.scrollTop > 200"), "follows"
    )
    browser.run("document.querySelector('#log').scrollTop = 0")
    browser.wait(lambda: browser.find("#to-end").is_displayed(), "no way back")
    browser.wait_for_answer()
    assert browser.run("return document.querySelector('#log').scrollTop") == 0
    browser.find("#to-end").click()
    assert (
        browser.run(
            "const l = document.querySelector('#log'); return l.scrollHeight - l.scrollTop - l.clientHeight"
        )
        < 2
    )


def test_figures_of_metrics__are_read_as_prometheus_means_them(browser: Browser, stub: StubServer) -> None:
    digest = "0123456789abcdef" * 4
    stub.metrics = (
        f'edgekit_bundle_info{{digest="{digest}",name="a \\"b\\" \\\\ c",release="7"}} 1.0\n'
        "llamacpp:predicted_tokens_seconds 41.25\nllamacpp:requests_processing 3.0\n"
        "llamacpp:requests_deferred 2.0\nedgekit_kv_cells_used 2048.0\nedgekit_kv_cells 8192.0\n"
        "edgekit_prefix_hits_total 12.0\nedgekit_prefix_misses_total 3.0\n"
        'edgekit_requests_total{outcome="finished"} 1234.0\nedgekit_requests_total{outcome="refused"} 5.0\n'
        'edgekit_ttft_seconds_bucket{le="0.1"} 0.0\nedgekit_ttft_seconds_bucket{le="0.5"} 10.0\n'
        'edgekit_ttft_seconds_bucket{le="1.0"} 20.0\nedgekit_ttft_seconds_bucket{le="+Inf"} 20.0\n'
    )
    browser.open(stub.url)
    shown = {
        name: browser.text(f"#{name}")
        for name in (
            "active",
            "queued",
            "kv",
            "prefix",
            "finished",
            "unfinished",
            "ttft",
            "digest",
            "release",
        )
    }
    assert shown == {
        "active": "3",
        "queued": "2",
        "kv": "2,048 of 8,192 tokens",
        "prefix": "12 of 15",
        "finished": "1,234",
        "unfinished": "–, –, 5",
        "ttft": "0.50 s, 0.95 s",
        "digest": digest[:12],
        "release": "7",
    }
    assert browser.find("#kv-meter").get_attribute("aria-valuenow") == "25"
    full, empty = browser.find("#kv-meter span").rect["width"], browser.find("#kv-meter").rect["width"]
    assert full / empty == pytest.approx(0.25, abs=0.02)
    assert browser.text("#speed-mean") == "41.3 tokens/s"
    assert browser.find("#digest").get_attribute("title") == digest
