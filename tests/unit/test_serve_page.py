"""The page's files: served exactly, with headers that let them load nothing else, and whole in themselves."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import qvl.serve.web as web
from qvl.serve.routes.page import POLICY
from support.serving import client, fake_backend

FOLDER = Path(web.__path__[0])
FILES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
SOURCE = {name: (FOLDER / name).read_text(encoding="utf-8") for name in FILES}
HTML = SOURCE["index.html"]
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Addresses that are names and are never asked for.
NAMES = ("http://www.w3.org/2000/svg",)


class Elements(HTMLParser):
    """Every element of a document as (tag, attributes, text within it)."""

    VOID = ("meta", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.all, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.all.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.all.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for element in self._open:
            element[2] += data


ELEMENTS = Elements(HTML).all
IDS = [attributes["id"] for _, attributes, _ in ELEMENTS if "id" in attributes]


@pytest.fixture(scope="module")
def site():
    with client(fake_backend(media=False)) as testing:
        yield testing


def address(name):
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_it_is(site, name):
    answer = site.get(address(name))
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    head = site.head(address(name))
    assert (head.status_code, head.content) == (200, b"")


def test_a_browser_that_has_a_file_is_told_so(site):
    tags = [site.get(address(name)).headers["etag"] for name in FILES]
    assert len(set(tags)) == len(FILES)
    again = site.get("/page/main.js", headers={"If-None-Match": f'"other", W/{tags[FILES.index("main.js")]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY
    assert site.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/index.html",
        "/page/none.js",
        "/page/__init__.py",
        "/page/..%2Fapp.py",
        "/page/%2e%2e/app.py",
        "/page/..%5Capp.py",
        "/page/main.js%00",
        "/index.html",
    ],
)
def test_nothing_else_is_served(site, path):
    answer = site.get(path)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_the_page_is_no_part_of_the_api(site):
    assert not [path for path in site.get("/openapi.json").json()["paths"] if path == "/" or "page" in path]
    assert site.post("/").status_code == 405


def test_a_key_is_asked_for_as_a_password():
    with client(fake_backend(media=False, api_keys=("a-long-key",))) as testing:
        refused = testing.get("/", headers={"Accept": "text/html"})
        assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
        login = {"Authorization": "Basic " + base64.b64encode(b"me:a-long-key").decode()}
        assert all(testing.get(address(name), headers=login).status_code == 200 for name in FILES)


def test_the_policy_allows_its_own_origin_and_nothing_else():
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    allowed = {word for rule in rules.values() for word in rule.split()}
    assert allowed == {"'none'", "'self'", "'script'", "blob:", "data:"}
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name):
    text = SOURCE[name]
    for known in NAMES:
        text = text.replace(known, "")
    assert not re.findall(r"""(?:https?:|wss?:|["'(=])//[\w.-]+\.\w+""", text)
    assert "@import" not in text
    assert "url(" not in text


def test_nothing_is_inline():
    assert not [tag for tag, attributes, _ in ELEMENTS if tag == "style" or "style" in attributes]
    assert not [
        attributes for _, attributes, _ in ELEMENTS if any(name.startswith("on") for name in attributes)
    ]
    scripts = [(attributes, text) for tag, attributes, text in ELEMENTS if tag == "script"]
    assert scripts
    assert all("src" in attributes and not text.strip() for attributes, text in scripts)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_text_becomes_markup(name):
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc"
    assert not re.search(sinks, SOURCE[name])
    assert not re.search(r"""setAttribute\(["']style""", SOURCE[name])
    assert not re.search(r"""setTimeout\(["'`]""", SOURCE[name])


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_element_that_a_script_names_is_there(name):
    named = re.findall(r"""(?:byId|getElementById)\(["']([\w-]+)["']\)""", SOURCE[name])
    assert set(named) <= set(IDS)


def test_every_id_is_there_once_and_is_what_others_name():
    assert len(IDS) == len(set(IDS))
    for attribute in ("for", "aria-labelledby", "aria-describedby", "data-opens"):
        for _, attributes, _ in ELEMENTS:
            assert set(attributes.get(attribute, "").split()) <= set(IDS)
    jumps = [attributes["href"] for tag, attributes, _ in ELEMENTS if tag == "a"]
    assert {jump.removeprefix("#") for jump in jumps} <= set(IDS)


def test_every_id_is_used():
    used = re.findall(r"""["'#]([\w-]+)["']?""", "\n".join(SOURCE.values()).replace('id="', "id=:"))
    used += [word for name in ("page.css",) for word in re.findall(r"#([\w-]+)", SOURCE[name])]
    for _, attributes, _ in ELEMENTS:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            used += attributes.get(name, "").split()
    unused = set(IDS) - set(used)
    assert not unused, f"ids that nothing names: {unused}"


def test_every_file_that_the_page_names_is_there():
    links = [a.get("href") or a.get("src") for tag, a, _ in ELEMENTS if tag in ("link", "script", "img")]
    assert {link.removeprefix("page/") for link in links} <= set(FILES)
    assert all(link.startswith("page/") for link in links)  # relative: a proxy may add a prefix
    preloaded = [a["href"].removeprefix("page/") for tag, a, _ in ELEMENTS if a.get("rel") == "modulepreload"]
    assert preloaded == [name for name in SCRIPTS if name not in ("main.js", "theme.js")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_import_what_others_export(name):
    for names, other in re.findall(r"import \{([^}]*)\} from \"\./([\w.]+)\"", SOURCE[name]):
        exported = re.findall(r"export (?:async )?(?:function\*?|const|class) (\w+)", SOURCE[other])
        wanted = [word.strip() for word in names.split(",") if word.strip()]
        assert set(wanted) <= set(exported)
        body = re.sub(r"import .*\n", "", SOURCE[name])
        assert all(re.search(rf"\b{word}\b", body) for word in wanted), "an import that nothing uses"


def test_every_export_is_imported_somewhere():
    imported = {
        word.strip()
        for text in SOURCE.values()
        for names in re.findall(r"import \{([^}]*)\}", text)
        for word in names.split(",")
    }
    exported = re.findall(
        r"export (?:async )?(?:function\*?|const|class) (\w+)", "\n".join(SOURCE[n] for n in SCRIPTS)
    )
    assert set(exported) == imported - {""}


def test_every_icon_is_drawn_and_used():
    drawn = set(re.findall(r"^  (\w+): \"M", SOURCE["icons.js"], re.MULTILINE))
    named = {attributes["data-icon"] for _, attributes, _ in ELEMENTS if "data-icon" in attributes}
    named |= set(re.findall(r"\bicon\(\"(\w+)\"\)", "\n".join(SOURCE.values())))
    assert named == drawn


def test_every_control_has_a_name():
    labels = {attributes.get("for") for tag, attributes, _ in ELEMENTS if tag == "label"}
    for tag, attributes, text in ELEMENTS:
        if tag in ("button", "a", "dialog"):
            assert (text.strip() and tag != "dialog") or {"aria-label", "aria-labelledby"} & set(attributes)
        if tag in ("input", "textarea", "select") and attributes.get("type") != "radio":
            assert "aria-label" in attributes or attributes.get("id") in labels
        if tag == "img":
            assert "alt" in attributes
        if tag == "button":
            assert "type" in attributes  # without one it would send the form that it stands in


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_module_says_why_it_is_there(name):
    assert SOURCE[name].startswith("// ")
    lines = [line for line in SOURCE[name].splitlines() if not re.match(r"  \w+: \"M", line)]  # but icons
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", SCRIPTS)
def test_syntax(name, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the syntax is checked by the browser tests only")
    module = tmp_path / name.replace(".js", ".mjs")
    module.write_text(SOURCE[name], encoding="utf-8")
    done = subprocess.run([node, "--check", str(module)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Colours

COLOURS = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}), #\w{6}\)", SOURCE["page.css"]))
DARK = dict(re.findall(r"--([\w-]+): light-dark\(#\w{6}, (#\w{6})\)", SOURCE["page.css"]))
GROUNDS = ("paper", "card", "soft", "tint")
# (what, on what, least contrast): WCAG 2.2 AA, 1.4.3 for text and 1.4.11 for the edges of controls.
PAIRS = [
    *(("ink", ground, 4.5) for ground in GROUNDS),
    *(("muted", ground, 4.5) for ground in GROUNDS[:3]),
    ("accent", "paper", 4.5),
    ("accent", "card", 4.5),
    ("accent", "tint", 3.0),
    ("on-accent", "accent", 4.5),
    ("bad", "bad-soft", 4.5),
    ("bad", "card", 4.5),
    ("edge", "paper", 3.0),
    ("edge", "card", 3.0),
]


def luminance(colour):
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_of_contrast():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("colours", [COLOURS, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("what", "ground", "least"), PAIRS, ids=[f"{a}-on-{b}" for a, b, _ in PAIRS])
def test_colours_can_be_told_apart(colours, what, ground, least):
    assert contrast(colours[what], colours[ground]) >= least


def test_colours_are_named_once():
    """Outside their names only black, white and shades of them: what lies over pictures."""
    css = SOURCE["page.css"]
    rules = css[css.index("}") :]
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rules)) <= {"#ffffff", "#000000"}
    assert not [pair for pair in pairwise(sorted(COLOURS)) if pair[0] == pair[1]]


def test_marks_can_be_told_apart_from_each_other():
    marks = re.findall(r"#[0-9a-f]{6}", re.search(r"const COLOURS = \[(.*?)\]", SOURCE["overlay.js"])[1])
    far = [
        sum(abs(int(a[i : i + 2], 16) - int(b[i : i + 2], 16)) for i in (1, 3, 5))
        for n, a in enumerate(marks)
        for b in marks[n + 1 :]
    ]
    assert len(marks) == 8 and min(far) > 60


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pictures_in_the_documents_are_there_and_small(theme):
    path = Path(__file__).parents[2] / "docs" / "pictures" / f"page-{theme}.png"
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        corner = picture.convert("L").getpixel((0, picture.height - 1))
    assert (corner > 128) == (theme == "light")
