"""The page in a real browser, Debian's chromium driven by selenium, before a server of scripted answers."""

import io
import json
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from PIL import Image, ImageDraw, features

pytest.importorskip("fastapi", reason="the server's packages are missing: pip install 'qvl[serve]'")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from qvl.auto import AutoProcessor
from qvl.processing.grounding import find_shapes
from qvl.serve.counted import CountedMedia
from qvl.serve.media.service import MediaService
from support.serving import MODEL, ScriptedEngine, bundled_processor, fake_backend, live_server
from support.video import write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="no browser: apt-get install chromium chromium-driver",
)
WAIT = 60.0  # seconds for what should happen at once, on a machine that does other things too
SIZE = (1100, 900)
PHONE = (390, 780)
MOST_PIXELS = 112 * 84
# In pixels of what the model sees: with MOST_PIXELS 112 x 56 are made of the 400 x 200 of `picture`.
BOXES = '[{"bbox_2d": [28, 14, 70, 42], "label": "four"}, {"point_2d": [98, 14], "label": "dot"}]'
MARKDOWN = """# Title

Some **bold**, *soft* and `code` with [a link](https://example.org/a) and ![a picture](https://example.org/b.png).
<img src=x onerror="window.broken = 1"> [bad](javascript:window.broken=2)

| Item | Price |
|---|---:|
| Bread | 13.50 |

1. one
   - inner
2. two

> said

```python
print("hi")
```
"""
WIDE_BOX = '[{"bbox_2d": [60, 14, 70, 42], "label": "' + "a long name " * 12 + '"}]'
LONG = "W" * 300 + "\n\n|" + " wide |" * 40 + "\n|" + "---|" * 40 + "\n|" + " cell |" * 40
# What the last question has in it -> what is answered.
ANSWERS = {
    "name": WIDE_BOX,
    "boxes": BOXES,
    "markdown": MARKDOWN,
    "long": LONG,
    "loop": "na " * 1000,
    "lines": "\n\n".join(f"line {number}" for number in range(40)),
    "count": "one two three four five six seven eight",
}


def answer(prompt):
    """By the last question: text alone, the picture's placeholders make no difference."""
    text = bundled_processor().tokenizer.decode(list(prompt.token_ids))
    question = text.rsplit("<|im_start|>user", 1)[-1]
    if "fail" in question:
        return [*bundled_processor().tokenizer.encode("half an ans"), RuntimeError("a secret")]
    return next((said for word, said in ANSWERS.items() if word in question), "Hello there")


class Page:
    """The page as a person has it: what they see and do."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self):
        self.driver.get(self.url)
        self.until(lambda: self.text("#model"))
        self.js("localStorage.clear()")

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def later(self, script, *arguments):
        """The value of a promise."""
        told = "const done = arguments[arguments.length - 1], failed = (error) => done(`${error}`);"
        wrapped = f"{told} (async () => {{ {script} }})().then(done, failed)"
        return self.driver.execute_async_script(wrapped, *arguments)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def until(self, condition):
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError(f"this never came true; the page says:\n{self.text('body')}")

    def focused(self):
        """The id, or else the name, of what has the keyboard."""
        return self.js("""
        const node = document.activeElement;
        return node === document.body ? "BODY" : node.id || node.ariaLabel || node.innerText;
        """)

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, *paths):
        before = len(self.all("#tray li"))
        self.one("#files").send_keys("\n".join(str(path) for path in paths))
        self.until(lambda: len(self.all("#tray li")) == before + len(paths))

    def counted(self):
        self.until(lambda: self.all("#tray li") and "counting" not in self.text("#tray"))

    def ask(self, text):
        self.one("#question").send_keys(text, Keys.ENTER)

    def busy(self):
        return self.js("return document.getElementById('log').getAttribute('aria-busy') === 'true'")

    def answered(self, number=1):
        self.until(lambda: len(self.all(".answer")) == number and self.all(".answer:last-child .bar"))
        return self.text(".answer:last-child .text")

    def screenshot(self):
        return Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")

    def media(self, **features):
        values = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": values})

    @contextmanager
    def sized(self, width, height):
        """As on a screen of so many pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def complaints(self):
        """What the browser's console has to say, since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine(answer)


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    """Whose model sees much less than people do: otherwise places in pictures would need no mapping."""
    folder = str(tmp_path_factory.mktemp("processor"))
    processor = AutoProcessor.from_pretrained(MODEL, max_pixels=MOST_PIXELS)
    processor.save_pretrained(folder)
    backend = fake_backend(engine=engine)
    media = CountedMedia(MediaService(backend.settings, folder), backend.metrics)
    with live_server(replace(backend, processor=processor, media=media)) as live:
        yield live


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    width, height = SIZE
    for argument in (
        "--headless=new",
        "--no-sandbox",  # tests run as root in containers
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(WAIT)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, server, engine):
    """A page just opened, in light colours; afterwards its console must be empty."""
    engine.pause = 0.0
    engine.added.clear()
    page = Page(driver, server.url + "/")
    page.expected = ()  # what the console may complain of
    page.media(prefers_color_scheme="light")
    page.open()
    page.complaints()
    yield page
    engine.pause = 0.0
    rest = [text for text in page.complaints() if not any(known in text for known in page.expected)]
    page.open()  # leaves, and so ends what still streams
    page.until(lambda: not engine.has_work)
    assert rest == []


@pytest.fixture
def picture(tmp_path):
    """400 x 200 pixels, all of one colour."""
    path = tmp_path / "sheet.png"
    Image.new("RGB", (400, 200), (120, 200, 120)).save(path)
    return path


def asked(engine):
    """The last prompt as text, and its parameters."""
    prompt, params, _ = engine.added[-1]
    return bundled_processor().tokenizer.decode(list(prompt.token_ids)), params, prompt


class TestAsking:
    def test_upload_stream_and_figures(self, page, engine, picture):
        engine.pause = 0.02
        page.choose(picture)
        page.counted()
        page.ask("please count")
        partial = page.until(lambda: page.text(".answer .text"))
        assert partial != ANSWERS["count"] and ANSWERS["count"].startswith(partial)
        assert page.busy()
        assert page.answered() == ANSWERS["count"]
        assert not page.busy()
        _, _, prompt = asked(engine)
        assert len(prompt.media) == 1
        facts = page.text(".facts")
        written = len(bundled_processor().tokenizer.encode(ANSWERS["count"])) + 1  # and the end
        assert f"{written} tokens" in facts or f"{written - 1} tokens" in facts
        assert f"{len(prompt.token_ids)} tokens read" in facts
        assert re.search(r"[\d.]+ tokens/s", facts)
        assert re.search(r"first after [\d.]+ s", facts)
        assert page.text("#model") == "qvl/tiny"
        assert page.driver.title.startswith("qvl/tiny")

    def test_the_cost_is_known_before_and_true(self, page, engine, picture):
        page.choose(picture, picture)
        page.one("#question").send_keys("What is this?")
        page.until(lambda: "for pictures" in page.text("#cost"))
        each = re.findall(r"(\d+) tokens", page.text("#tray"))
        said, seen = map(int, re.findall(r"\d+", page.text("#cost")))
        assert seen == sum(map(int, each)) > 0
        page.press(Keys.ENTER)
        page.answered()
        _, _, prompt = asked(engine)
        assert len(prompt.token_ids) == said
        page.one("#question").send_keys("And now?")
        page.until(lambda: "for pictures" in page.text("#cost"))
        said = int(re.search(r"\d+", page.text("#cost"))[0])
        page.press(Keys.ENTER)
        page.answered(2)
        assert len(engine.added[-1][0].token_ids) == said

    def test_the_conversation_goes_along(self, page, engine, picture):
        page.choose(picture)
        page.ask("First question")
        page.answered()
        page.ask("Second question")
        page.answered(2)
        text, _, prompt = asked(engine)
        assert len(prompt.media) == 1
        places = [text.index(said) for said in ("First question", "Hello there", "Second question")]
        assert places == sorted(places)
        page.one("#new-chat").click()
        page.ask("Third question")
        page.answered()
        text, _, prompt = asked(engine)
        assert "First question" not in text and not prompt.media

    def test_settings_are_kept_and_sent(self, page, engine):
        page.one("#open-settings").click()
        page.one("#set-system").send_keys("Be brief")
        page.one("#set-temperature").send_keys("0.5")
        page.one("#set-max").send_keys("3")
        page.press(Keys.ENTER)
        page.until(lambda: not page.all("dialog[open]"))
        page.driver.refresh()
        page.until(lambda: page.text("#model"))
        page.ask("please count")
        page.answered()
        text, params, _ = asked(engine)
        assert "Be brief" in text
        assert (params.temperature, params.max_new_tokens) == (0.5, 3)
        assert "token limit" in page.text(".answer .foot")
        page.one("#open-settings").click()
        page.one("#settings-reset").click()
        page.one("#settings-close").click()
        page.ask("please count")
        assert page.answered(2) == ANSWERS["count"]
        assert "Be brief" not in asked(engine)[0]

    def test_a_picture_not_yet_sent_is_counted_again_in_another_detail(self, page, picture):
        page.js("""
        const real = window.fetch;
        window.sent = [];
        window.fetch = (url, how) => {
          const detail = how?.body?.match(/"detail":"(\\w+)"/)?.[1];
          if (detail) window.sent.push([new URL(url).pathname, detail]);
          return real(url, how);
        };
        """)
        page.choose(picture)
        page.counted()
        page.one("#open-settings").click()
        page.js("document.querySelector('[name=detail][value=low]').click()")
        page.one("#settings-close").click()
        page.ask("What is this?")
        page.answered()
        sent = [["/tokenize", "auto"], ["/tokenize", "low"], ["/v1/chat/completions", "low"]]
        assert page.js("return window.sent") == sent

    @pytest.mark.parametrize("way", ["button", "escape"])
    def test_stop_frees_the_engine_and_asking_again_answers(self, page, engine, way):
        engine.pause = 0.05
        page.ask("please count")
        page.until(lambda: len(page.text(".answer .text")) > 3)
        assert page.one("#stop").is_displayed() and not page.one("#send").is_displayed()
        if way == "button":
            page.one("#stop").click()
        else:
            page.press(Keys.ESCAPE)
        stopped = page.answered()
        assert ANSWERS["count"].startswith(stopped) and stopped != ANSWERS["count"]
        assert "Stopped." in page.text(".answer .foot")
        page.until(lambda: not engine.has_work)
        engine.pause = 0.0
        page.one(".again").click()
        page.until(lambda: page.text(".answer .text") == ANSWERS["count"])
        page.answered()
        assert asked(engine)[0].count("please count") == 1
        assert page.focused() == "question"  # what had the focus is gone

    def test_only_the_last_answer_can_be_had_again(self, page):
        page.ask("one")
        page.answered()
        page.ask("two")
        page.answered(2)
        assert len(page.all(".again")) == 1
        assert page.all(".answer:last-child .again")

    def test_copy(self, page):
        grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.url[:-1]}
        page.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
        page.ask("please markdown")
        page.answered()
        page.one(".actions .quiet").click()
        page.until(lambda: "Copied" in page.text(".actions"))
        assert page.later("return navigator.clipboard.readText()") == MARKDOWN
        assert "Copied" in page.text("#status")

    def test_a_server_that_is_gone_is_said_in_a_sentence(self, page):
        page.expected = ("net::ERR_", "Failed to load resource")
        page.driver.execute_cdp_cmd("Network.enable", {})
        page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/v1/chat/*"]})
        try:
            page.ask("Are you there?")
            page.answered()
        finally:
            page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        assert page.text(".error") == "The server cannot be reached, or the connection broke."
        page.one(".again").click()
        page.until(lambda: page.text(".answer .text") == "Hello there")

    def test_an_answer_that_fails_in_the_middle(self, page):
        page.ask("please fail")
        assert page.answered() == "half an ans"
        assert page.text(".error").startswith("The server failed")  # its own words
        assert "secret" not in page.text("body")
        page.ask("Are you there?")
        assert page.answered(2) == "Hello there"

    def test_an_answer_that_runs_in_circles_says_why_it_ended(self, page):
        page.ask("please loop")
        page.answered()
        assert "begun to repeat itself" in page.text(".answer .foot")

    def test_the_end_stays_in_view_for_who_looks_at_it(self, page, engine):
        distance = """
        const root = document.documentElement;
        return root.scrollHeight - root.scrollTop - root.clientHeight;
        """
        engine.pause = 0.005
        page.ask("please write lines")
        page.until(lambda: "line 25" in page.text(".answer .text"))
        assert page.js(distance) < 30
        page.js("document.documentElement.scrollTop = 0")
        page.answered()
        assert page.js("return document.documentElement.scrollTop") == 0


class TestMedia:
    def test_paste_and_drop(self, page):
        script = """
        const canvas = Object.assign(document.createElement("canvas"), { width: 90, height: 60 });
        canvas.getContext("2d").fillRect(0, 0, 30, 30);
        const blob = await new Promise((done) => canvas.toBlob(done));
        const held = new DataTransfer();
        held.items.add(new File([blob], "held.png", { type: "image/png" }));
        const how = { bubbles: true, cancelable: true };
        if (arguments[0] === "paste") {
          const event = new ClipboardEvent("paste", { ...how, clipboardData: held });
          document.querySelector("#question").dispatchEvent(event);
          return [event.defaultPrevented];
        }
        const over = new DragEvent("dragover", { ...how, dataTransfer: held });
        document.body.dispatchEvent(over);
        const shown = !document.querySelector("#drop-here").hidden;
        const drop = new DragEvent("drop", { ...how, dataTransfer: held });
        document.body.dispatchEvent(drop);
        const gone = document.querySelector("#drop-here").hidden;
        return [over.defaultPrevented, shown, drop.defaultPrevented, gone];
        """
        script = script.replace("arguments[0]", "WAY")
        for number, (way, expected) in enumerate((("paste", [True]), ("drop", [True] * 4)), 1):
            assert page.later(f"const WAY = '{way}';" + script) == expected
            page.until(lambda number=number: len(page.all("#tray img")) == number)
        page.counted()
        assert "held.png" in page.one("#tray li:first-child .remove").get_attribute("aria-label")

    def test_text_can_still_be_pasted(self, page):
        script = """
        const held = new DataTransfer();
        held.setData("text/plain", "words");
        const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: held });
        document.querySelector("#question").dispatchEvent(event);
        return event.defaultPrevented;
        """
        assert page.js(script) is False

    def test_taking_one_away(self, page, picture, tmp_path):
        other = picture.rename(tmp_path / "first.png")
        Image.new("RGB", (56, 56)).save(tmp_path / "second.png")
        page.choose(other, tmp_path / "second.png")
        page.one("#tray li:first-child .remove").click()
        assert page.focused() == "Remove second.png"
        page.press(Keys.ENTER)
        page.until(lambda: not page.all("#tray li"))
        assert not page.one("#tray").is_displayed()
        assert not page.one("#send").is_enabled()

    def test_a_pdf_is_pages(self, page, engine, tmp_path):
        pytest.importorskip("pypdfium2", reason="pages of PDFs need the extra pdf")
        sheets = [Image.new("RGB", (100, 140), "white") for _ in range(2)]
        sheets[0].save(tmp_path / "letter.pdf", save_all=True, append_images=sheets[1:])
        page.choose(tmp_path / "letter.pdf")
        page.until(lambda: "2 pages" in page.text("#tray .cost"))
        page.ask("Draw boxes")
        page.answered()
        assert len(asked(engine)[2].media) == 2
        options = page.text(".chooser select").splitlines()
        assert [option.strip() for option in options] == ["letter.pdf, page 1", "letter.pdf, page 2"]
        assert page.all(".stage .sheet")

    def test_a_video(self, page, engine, tmp_path):
        page.choose(write_video(tmp_path / "film.mp4", frames=8))
        page.until(lambda: "token" in page.text("#tray .cost"))
        page.ask("What happens?")
        page.answered()
        assert [medium.kind for medium in asked(engine)[2].media] == ["video"]

    def test_what_is_no_medium_is_refused_by_name(self, page, tmp_path):
        (tmp_path / "notes.txt").write_text("words", encoding="utf-8")
        page.one("#files").send_keys(str(tmp_path / "notes.txt"))
        page.until(lambda: page.text("#notice") == "notes.txt is not a picture, a video or a PDF.")
        assert not page.all("#tray li")

    def test_a_format_that_only_the_browser_reads_is_handed_over_as_another(self, page, engine, tmp_path):
        if not features.check("avif"):
            pytest.skip("this Pillow writes no AVIF")
        Image.new("RGB", (120, 60), PAPER).save(tmp_path / "photo.avif")
        Image.new("RGB", (120, 60), PAPER).save(tmp_path / "scan.tiff")
        page.choose(tmp_path / "photo.avif")
        page.ask("What is this?")
        page.answered()
        assert len(asked(engine)[2].media) == 1
        page.one("#files").send_keys(str(tmp_path / "scan.tiff"))
        page.until(lambda: page.text("#notice").startswith("scan.tiff is a picture in a format"))

    def test_a_broken_picture_is_said_before_and_after_sending(self, page, picture):
        page.expected = ("400 (Bad Request)",)
        picture.write_bytes(picture.read_bytes()[:30])
        page.choose(picture)
        page.until(lambda: "not accepted" in page.text("#tray"))
        said = page.until(lambda: page.text("#notice"))
        page.ask("What is this?")
        page.answered()
        sentence = "The picture is broken or truncated and cannot be decoded."
        assert said == f"sheet.png: {sentence}"
        assert page.text(".error") == sentence
        page.ask("Are you there?")  # the conversation goes on without it
        assert page.answered(2) == "Hello there"

    def test_what_is_too_large_is_said_as_the_server_says_it(self, driver, picture):
        with live_server(fake_backend(body=20_000)) as live:
            page = Page(driver, live.url + "/")
            page.open()
            picture.write_bytes(picture.read_bytes() + bytes(3_000_000))
            page.choose(picture)
            said = page.until(lambda: page.text("#notice"))
            assert "larger than" in said and "20" in said
            page.ask("What is this?")
            page.answered()
            assert page.text(".error") == said.removeprefix("sheet.png: ")

    def test_a_photograph(self, page):
        page.one("#photo").click()
        page.until(lambda: page.all("#camera[open]"))
        page.until(lambda: page.js("return document.querySelector('#camera-view').videoWidth > 0"))
        page.one("#camera-shoot").click()
        page.until(lambda: page.all("#tray img"))
        page.counted()
        assert page.js("return document.querySelector('#camera-view').srcObject === null")

    def test_a_photograph_on_a_phone_is_taken_by_its_own_camera(self, page):
        assert page.one("#photo-file").get_attribute("capture") == "environment"
        assert page.one("#photo-file").get_attribute("accept") == "image/*"


def lines(page):
    """The picture's place on the screen, and its scale."""
    script = """
    const node = document.querySelector(".stage > img"), at = node.getBoundingClientRect();
    return [at.left, at.top, at.width / node.naturalWidth, at.height / node.naturalHeight];
    """
    return page.js(script)


def pixel(page, shot, x, y):
    """The colour on the screenshot where the picture has its pixel (x, y)."""
    left, top, across, down = lines(page)
    return shot.getpixel((round(left + x * across), round(top + y * down)))


RED, BLUE = (229, 72, 77), (0, 144, 255)  # the first two colours of marks
PAPER = (120, 200, 120)


class TestBoxes:
    def ask(self, page, path):
        page.choose(path)
        page.counted()
        page.ask("Draw boxes")
        page.answered()
        page.until(lambda: page.js("return document.querySelector('.stage > img')?.complete"))

    def sizes(self, page, engine):
        """Original pixels for each pixel that the model speaks of."""
        grid = asked(engine)[2].media[0].grid
        return 400 / (grid.w * 14), 200 / (grid.h * 14)

    @pytest.mark.parametrize("size", [SIZE, PHONE], ids=["desk", "phone"])
    def test_a_box_is_where_it_should_be(self, page, engine, picture, size):
        with page.sized(*size):
            self.ask(page, picture)
            across, down = self.sizes(page, engine)
            assert (across, down) != (1, 1)  # or nothing would be mapped
            x1, y1, x2, y2 = 28 * across, 14 * down, 70 * across, 42 * down
            shot = page.screenshot()
            middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
            for x, y in ((x1, middle_y), (x2, middle_y), (middle_x, y1), (middle_x, y2)):
                assert pixel(page, shot, x, y) == RED, (x, y)
            for x, y in ((middle_x, middle_y), (x1 - 8, middle_y), (x2 + 8, middle_y), (middle_x, y2 + 8)):
                assert pixel(page, shot, x, y) == PAPER, (x, y)
            assert pixel(page, shot, 98 * across, 14 * down) == BLUE
            assert page.text(".name") == "four"
            listed = page.text(".legend-row")
            assert all(str(round(value)) in listed for value in (x1, y1, x2, y2))

    def test_boxes_come_while_the_answer_streams(self, page, engine, picture):
        engine.pause = 0.02
        page.choose(picture)
        page.counted()
        page.ask("Draw boxes")
        page.until(lambda: len(page.all(".legend-row")) == 1)
        assert page.busy()
        page.answered()
        assert len(page.all(".legend-row")) == 2

    def test_a_turned_photograph_is_marked_as_it_is_seen(self, page, engine, tmp_path):
        """EXIF orientation 6: stored lying, shown standing."""
        stored = Image.new("RGB", (200, 400), PAPER)
        ImageDraw.Draw(stored).rectangle((0, 0, 199, 99), fill=(10, 20, 30))  # its top becomes the right side
        exif = Image.Exif()
        exif[0x0112] = 6
        stored.save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
        self.ask(page, tmp_path / "turned.jpg")
        assert page.js(
            "const i = document.querySelector('.stage > img'); return [i.naturalWidth, i.naturalHeight]"
        ) == [400, 200]
        across, down = self.sizes(page, engine)
        shot = page.screenshot()
        assert pixel(page, shot, 28 * across, 28 * down) == RED
        assert sum(pixel(page, shot, 380, 100)) < 150  # the dark part is on the right

    def test_the_list_says_it_in_words_and_points(self, page, engine, picture):
        self.ask(page, picture)
        assert [row.text.split()[0] for row in page.all(".legend-row")] == ["four", "dot"]
        page.js("document.querySelectorAll('.legend-row')[1].focus()")
        assert page.all(".dot.chosen") and not page.all(".mark.chosen")
        grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.url[:-1]}
        page.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
        page.one(".figure-bar .quiet").click()
        page.until(lambda: "Copied" in page.text(".figure-bar"))
        across, down = self.sizes(page, engine)
        box, dot = json.loads(page.later("return navigator.clipboard.readText()"))
        assert box["label"] == "four"
        assert box["box"] == pytest.approx([28 * across, 14 * down, 70 * across, 42 * down], abs=0.06)
        assert dot["point"] == pytest.approx([98 * across, 14 * down], abs=0.06)

    def test_of_several_pictures_one_can_be_chosen(self, page, engine, picture, tmp_path):
        Image.new("RGB", (56, 56), (200, 120, 120)).save(tmp_path / "small.png")
        page.choose(tmp_path / "small.png", picture)
        page.counted()
        page.ask("Draw boxes")
        page.answered()
        page.until(lambda: page.all(".stage"))
        chosen = "return document.querySelector('.chooser select').value"
        assert page.js(chosen) == "sheet.png"  # the first in which they have room
        page.js("""
        const select = document.querySelector(".chooser select");
        select.selectedIndex = 0;
        select.dispatchEvent(new Event("change", { bubbles: true }));
        """)
        assert page.js("return document.querySelector('.stage > img').alt") == "Picture: small.png"

    def test_without_a_picture_boxes_are_text(self, page):
        page.ask("Draw boxes")
        assert "bbox_2d" in page.answered()
        assert not page.all(".stage")


# Forms of answers: what Python reads is what the page reads.
FORMS = [
    BOXES,
    'Here:\n```json\n[\n\t{"bbox_2d": [10, 20, 110, 220], "label": "cat"},\n\t{"point_2d": [5.5, 6]}\n]\n```',
    '{"objects": [{"bbox_2d": [3, 4, 1, 2], "label": " a "}], "x": {"point_2d": [1, 2], "name": "n"}}',
    '{"label": "", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "la',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a \\"b\\"",}]',
    '{"bbox_2d": [1, 2, 3], "point_2d": ["1", 2]} {"bbox_2d": [1, 2, 3, NaN]}',
    '{"bbox_2d": [true, 2, 3, 4]} {"bbox_2d": []} {"bbox_2d": [-1.5, 2e1, 3, 4], "text_content": "t{}"}',
    "no boxes { at all } [1, 2, 3, 4]",
    "",
    '{"a": "}{", "point_2d": [1, 2]} then } { {"point_2d": [3, 4], "label": 5, "text": "five"}',
    '{"bbox_2d": [1, 2, 3, 4], "label": "two\nlines"}',
    "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    "<|box_start|>(5,6)<|box_end|>",
    '<|box_start|>(1, 2), (3, 4)<|box_end|> then {"point_2d": [7, 8]}',
    "<|box_start|>(1,2),(3,",
]


class TestReading:
    def test_shapes_are_those_that_python_reads(self, page):
        script = """
        const { findShapes } = await import("/page/grounding.js");
        return FORMS.map((text) => findShapes(text));
        """.replace("FORMS", json.dumps(FORMS))
        read = page.later(script)
        for text, shapes in zip(FORMS, read, strict=True):
            assert shapes == [vars(shape) for shape in find_shapes(text)], text
        assert sum(map(len, read)) > 15

    def test_shapes_of_any_answer_are_read_in_time(self, page):
        script = """
        const { findShapes } = await import("/page/grounding.js");
        const texts = ['{"bbox_2d": [1, 2, 3, 4]},'.repeat(5000), '{"a":'.repeat(3000), '{"'.repeat(3000),
                       "<|box_start|>(1,2)".repeat(5000)];
        const start = performance.now();
        return [...texts.map((text) => findShapes(text).length), performance.now() - start];
        """
        *counts, took = page.later(script)
        assert counts == [5000, 0, 0, 0]
        assert took < 5000  # milliseconds

    def test_markdown_is_elements_and_nothing_of_it_runs(self, page):
        page.ask("please markdown")
        page.answered()
        inside = "return [...document.querySelectorAll('.text *')].map((node) => node.tagName.toLowerCase())"
        tags = page.js(inside)
        assert {
            "h3",
            "strong",
            "em",
            "code",
            "a",
            "table",
            "th",
            "td",
            "ol",
            "ul",
            "li",
            "blockquote",
            "pre",
        } <= {*tags}
        assert not {"img", "script", "iframe"} & set(tags)
        links = page.js(
            "return [...document.querySelectorAll('.text a')].map((a) => [a.href, a.rel, a.target])"
        )
        assert [link[0] for link in links] == ["https://example.org/a", "https://example.org/b.png"]
        assert all(
            "noopener" in rel and "noreferrer" in rel and target == "_blank" for _, rel, target in links
        )
        assert page.js("return window.broken") is None
        assert '<img src=x onerror="window.broken = 1">' in page.text(".answer .text")
        assert page.text(".text pre") == 'print("hi")'
        assert page.js("return document.querySelector('.text td.right').innerText") == "13.50"
        assert page.text(".text li li") == "inner"

    def test_markdown_grows_without_losing_what_stands(self, page):
        script = """
        const { MarkdownView } = await import("/page/markdown.js");
        const node = document.createElement("div"), whole = document.createElement("div");
        const view = new MarkdownView(node), text = TEXT;
        view.show(text.slice(0, 40));
        const first = node.firstChild;
        for (let end = 40; end <= text.length; end += 3) view.show(text.slice(0, end));
        view.show(text);
        new MarkdownView(whole).show(text);
        return [node.isEqualNode(whole), node.firstChild === first, node.childNodes.length];
        """.replace("TEXT", json.dumps(MARKDOWN))
        assert page.later(script)[:2] == [True, True]

    def test_text_that_runs_wild_is_shown_in_time(self, page):
        script = """
        const { MarkdownView } = await import("/page/markdown.js");
        const start = performance.now();
        const parts = ["*", "**a ", "_",
                       "`", "[", "[a](", "~~", "|-", "> ", "- ", "  - ", "1. ", '{"', "\\\\"];
        for (const part of parts) {
          new MarkdownView(document.createElement("div")).show(part.repeat(4000));
        }
        return performance.now() - start;
        """
        assert page.later(script) < 8000  # milliseconds


class TestLooks:
    def background(self, page):
        return page.js("return getComputedStyle(document.documentElement).backgroundColor")

    def test_light_and_dark_as_the_system_has_it(self, page):
        light = self.background(page)
        page.media(prefers_color_scheme="dark")
        assert self.background(page) != light
        assert page.one("#theme").get_attribute("aria-pressed") == "true"

    def test_the_switch_is_kept(self, page):
        light = self.background(page)
        page.one("#theme").click()
        dark = self.background(page)
        assert dark != light
        page.driver.refresh()
        assert self.background(page) == dark
        assert max(page.screenshot().getpixel((SIZE[0] // 2, 80))) < 80
        page.one("#theme").click()
        assert self.background(page) == light

    def test_what_is_transparent_lies_on_white_as_the_model_sees_it(self, page, tmp_path):
        Image.new("RGBA", (120, 60), (0, 0, 0, 0)).save(tmp_path / "clear.png")
        page.media(prefers_color_scheme="dark")
        page.choose(tmp_path / "clear.png")
        page.ask("What is this?")
        page.answered()
        at = page.one(".shown img").rect
        middle = (round(at["x"] + at["width"] / 2), round(at["y"] + at["height"] / 2))
        assert page.screenshot().getpixel(middle) == (255, 255, 255)

    @pytest.mark.parametrize("width", [320, 390, 768])
    def test_nothing_makes_a_narrow_screen_scroll_sideways(self, page, picture, width):
        with page.sized(width, 700):
            assert page.js("return document.documentElement.scrollWidth") <= width
            page.choose(*[picture] * 5)
            page.counted()
            page.ask("Draw one with a name, " + "W" * 120)
            page.answered()
            page.until(lambda: page.all(".name"))
            page.ask("please long")
            page.answered(2)
            assert page.js("return document.documentElement.scrollWidth") <= width
            page.one("#open-settings").click()
            assert page.js("return document.querySelector('#settings').scrollWidth") <= width

    def test_controls_on_a_phone_are_large_enough_to_touch(self, page):
        with page.sized(*PHONE):
            script = """
            return [...document.querySelectorAll("button")].filter((b) => b.offsetParent)
              .filter((b) => b.offsetWidth < 40 || b.offsetHeight < 40).map((b) => b.id || b.innerText);
            """
            assert page.js(script) == []

    def test_who_asked_for_less_motion_gets_none(self, page, engine):
        engine.pause = 0.1
        running = "return document.getAnimations().filter((a) => a.animationName).length"
        page.media(prefers_reduced_motion="reduce")
        page.ask("please count")
        page.until(lambda: page.all(".answer"))
        assert page.js(running) == 0
        page.press(Keys.ESCAPE)
        page.media(prefers_reduced_motion="no-preference")


# What has the keyboard has a line around it; of the question it is that of its card.
FOCUS_SHOWS = """
const node = document.activeElement, look = getComputedStyle(node);
if (node.id !== "question") return look.outlineStyle === "solid";
return getComputedStyle(node.closest(".card")).boxShadow.includes("0px 0px 0px 1px");
"""
NAMED = {
    "button",
    "link",
    "textbox",
    "combobox",
    "spinbutton",
    "radio",
    "image",
    "dialog",
    "form",
    "log",
    "region",
}


class TestEverybody:
    def names(self, page):
        """(role, name) of everything that a screen reader is told of."""
        page.driver.execute_cdp_cmd("Accessibility.enable", {})
        nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def test_everything_has_a_name(self, page, picture):
        page.choose(picture)
        page.counted()
        page.ask("Draw boxes")
        page.answered()
        page.ask("please markdown")
        page.answered(2)
        page.choose(picture)
        found = self.names(page)
        page.one("#open-settings").click()
        found += self.names(page)
        assert {"button", "textbox", "image", "log", "form", "main", "banner", "dialog", "radio"} <= {
            role for role, _ in found
        }
        assert [(role, name) for role, name in found if role in NAMED and not name.strip()] == []

    def test_the_log_is_read_when_an_answer_is_whole(self, page, engine):
        log = page.one("#log")
        assert (log.get_attribute("role"), log.get_attribute("aria-live")) == ("log", "polite")
        engine.pause = 0.03
        page.ask("please count")
        page.until(lambda: page.text(".answer .text"))
        assert log.get_attribute("aria-busy") == "true"
        page.answered()
        assert log.get_attribute("aria-busy") == "false"
        page.until(lambda: page.text("#status") == "The answer is complete.")

    def test_with_the_keyboard_alone(self, page, engine):
        assert page.focused() == "question"
        chain = webdriver.ActionChains(page.driver).send_keys("please count")
        chain.key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).send_keys("again").perform()
        assert page.js("return document.activeElement.value") == "please count\nagain"
        page.press(Keys.ENTER)
        assert page.answered() == ANSWERS["count"]
        assert page.text(".question .words") == "please count\nagain"
        page.driver.refresh()
        page.until(lambda: page.text("#model"))
        page.js("document.querySelector('a, button, input, textarea, select').focus()")
        assert page.focused() == "Skip to the question"
        seen = []
        for _ in range(20):
            page.press(Keys.TAB)
            if page.focused() == "BODY":  # once around
                break
            seen.append(page.focused())
            assert page.js(FOCUS_SHOWS), seen
        order = ["new-chat", "theme", "open-settings", "Choose pictures", "question", "photo"]
        places = [next((i for i, name in enumerate(seen) if name.startswith(word)), -1) for word in order]
        assert -1 not in places and places == sorted(places), seen

    def test_the_settings_can_be_opened_and_left_with_the_keyboard(self, page):
        page.js("document.querySelector('#open-settings').focus()")
        page.press(Keys.ENTER)
        page.until(lambda: page.all("#settings[open]"))
        assert page.js("return document.querySelector('#settings').contains(document.activeElement)")
        page.press(Keys.ESCAPE)
        page.until(lambda: not page.all("#settings[open]"))
        assert page.focused() == "open-settings"

    def test_an_input_method_may_use_enter(self, page, engine):
        script = """
        const field = document.querySelector("#question");
        field.value = "nihao";
        field.dispatchEvent(new Event("input", { bubbles: true }));
        const how = { key: "Enter", isComposing: true, bubbles: true, cancelable: true };
        const event = new KeyboardEvent("keydown", how);
        field.dispatchEvent(event);
        return event.defaultPrevented;
        """
        assert page.js(script) is False
        assert not page.all(".question")


def test_a_server_with_a_key_asks_the_browser_for_it(driver):
    with live_server(fake_backend("Hello there", api_keys=("a-long-key",))) as live:
        page = Page(driver, live.url.replace("http://", "http://me:a-long-key@") + "/")
        page.open()
        page.ask("Hello?")
        assert page.answered() == "Hello there"


def test_the_policy_holds(page):
    """The console would be empty without a policy too: this one says what it stops."""
    page.expected = ("Content Security Policy", "violates", "Refused", "This document requires")
    script = """
    const said = [];
    document.addEventListener("securitypolicyviolation", (event) => said.push(event.effectiveDirective));
    const script = document.createElement("script");
    try { script.textContent = "window.broken = 1"; } catch { said.push("script"); }
    document.body.append(script);
    try { document.body.insertAdjacentHTML("beforeend", "<p></p>"); } catch { said.push("markup"); }
    document.body.setAttribute("style", "color: red");
    await fetch("http://127.0.0.1:9/").catch(() => {});
    await new Promise((done) => setTimeout(done, 200));
    return said;
    """
    said = page.later(script)
    assert {"script", "markup", "style-src-attr", "connect-src"} <= set(said)
    assert page.js("return window.broken") is None
