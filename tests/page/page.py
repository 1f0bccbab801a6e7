#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Uses the status page as a person would, in headless Chromium against a real server, and checks what is on it.

    tests/page/page.py                      all tests; the last line is "N passed, N failed"
    tests/page/page.py --pictures FOLDER    and leaves pictures there: light, dark, phone, viewer
    tests/page/page.py NAME ...             only the tests whose name contains one of NAME

Needs Chromium (Debian: chromium) and build/release/kinora, or the one that $KINORA names. Without Chromium everything
is skipped. Standard library only; traffic stays on the loopback.
"""
import argparse
import io
import json
import re
import sys
import time
import unittest
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from browser import CTRL, SHIFT, Browser, BrowserError, Tab, find_chromium  # noqa: E402
from serving import ROOT, Proxy, Server  # noqa: E402

PICTURES = None  # folder
FILES = {"/": "text/html; charset=utf-8", "/page/page.css": "text/css; charset=utf-8",
         "/page/page.js": "text/javascript; charset=utf-8", "/page/wire.js": "text/javascript; charset=utf-8",
         "/page/words.js": "text/javascript; charset=utf-8"}
SLOW = "fake:text_ms=20,step_ms=100,decode_ms=20,poison=dynamite"

# Every text that can be seen against what lies behind it (WCAG 2.2, 1.4.3); pictures and disabled controls left out.
CONTRAST = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.checkVisibility() || e.closest("button:disabled, option, .hidden, .skip")) continue;
    const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${node.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
})()"""

FOCUS = """(() => { const e = document.activeElement, s = getComputedStyle(e);
  return [e.id || e.className || e.tagName, s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2]; })()"""


def row(prompt):
    """JavaScript: the row whose prompt begins so."""
    return "[...document.querySelectorAll('.video')].find((v) => " \
           f"v.querySelector('.prompt').textContent.startsWith({json.dumps(prompt)}))"


class Case(unittest.TestCase):
    settings = ("--device", SLOW, "--job-attempts-max", "1")

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.settings)
        try:
            cls.browser = Browser(find_chromium())
        except Exception:
            cls.server.stop()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.server.stop()

    def setUp(self):
        self.tabs = []
        self.origin = self.server.url
        self.broken = False  # connections, by the test

    def tearDown(self):
        """Whatever a test does: no complaint, and nothing asked of anybody else."""
        self.browser.pump(0.1)
        for tab in reversed(self.tabs):
            foreign = [url for _, url in tab.requests if not url.startswith((self.origin + "/", "data:", "blob:"))]
            complaints = [c for c in tab.complaints if not (self.broken and "net::ERR_" in c)]
            tab.close()
            self.assertEqual(foreign, [])
            self.assertEqual(complaints, [])

    def tab(self, scheme="light", width=1280, height=900, phone=False, url=None):
        tab = Tab(self.browser)
        self.tabs.append(tab)
        tab.look(width, height, scheme, phone)
        tab.open((url or self.server.url) + "/")
        return tab

    def press(self, tab, prompt, button, label):
        """The button of a row, once it says so."""
        tab.wait(f"{row(prompt)}?.querySelector('.{button}').textContent === {json.dumps(label)}")
        tab.run(f"{row(prompt)}.querySelector('.{button}').id = 'pressed'")
        tab.click("#pressed")
        tab.run("document.getElementById('pressed')?.removeAttribute('id')")

    def state(self, tab, prompt, state, seconds=60):
        tab.wait(f"{row(prompt)}?.dataset.state === '{state}'", seconds)

    def cancel(self, video):
        """By somebody else; on a slow machine it may have ended by itself."""
        self.assertIn(self.server.ask("POST", f"/v1/videos/{video}/cancel", {})[0], (200, 409))

    def ended(self, tab, prompt):
        tab.wait(f"['cancelled', 'completed'].includes({row(prompt)}?.dataset.state)")

    def wait_for(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, "not in time")
            self.browser.pump(0.05)

    def streams(self):
        """How many event streams the server has."""
        return int(re.search(r"^kinora_event_streams (\d+)", self.server.ask("GET", "/metrics")[2].decode(), re.M)[1])

    def picture(self, tab, name):
        if PICTURES:
            tab.picture(PICTURES / f"{name}.png")


class Files(Case):
    def test_headers(self):
        for path, content_type in FILES.items():
            status, headers, body = self.server.ask("GET", path)
            self.assertEqual((status, headers["content-type"]), (200, content_type))
            self.assertRegex(headers["etag"], r'^"[0-9a-f]{32}"$')
            self.assertEqual(headers["cache-control"], "no-cache")
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertEqual(headers["referrer-policy"], "no-referrer")
            self.assertEqual(headers["x-frame-options"], "DENY")
            policy = headers["content-security-policy"]
            self.assertIn("default-src 'self'; img-src 'self' data:; media-src 'self' blob:;", policy)
            self.assertNotRegex(policy, "unsafe|https?:|\\*")
            name = "index.html" if path == "/" else path.rsplit("/", 1)[1]
            self.assertEqual(body, (ROOT / "server/page" / name).read_bytes())
            for known in (headers["etag"], "W/" + headers["etag"], '"x", ' + headers["etag"], "*"):
                status, again, body = self.server.ask("GET", path, headers={"If-None-Match": known})
                self.assertEqual((status, body, again["etag"]), (304, b"", headers["etag"]))
            self.assertEqual(self.server.ask("GET", path, headers={"If-None-Match": '"x"'})[0], 200)
            self.assertEqual(self.server.ask("HEAD", path)[2], b"")

    def test_other_names(self):
        for path in ("/page/index.html", "/page/page.c", "/page/", "/page/..%2fpage.js", "/page/page.js/x"):
            self.assertIn(self.server.ask("GET", path)[0], (400, 404), path)
        self.assertEqual(self.server.ask("POST", "/", {})[0], 405)

    def test_sources(self):
        """Nothing from elsewhere, nothing inline, no text made into markup."""
        html = (ROOT / "server/page/index.html").read_text()
        self.assertNotRegex(html, r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=")
        for name in ("index.html", "page.css", "page.js", "wire.js", "words.js"):
            text = (ROOT / "server/page" / name).read_text()
            self.assertNotRegex(text.replace("http://www.w3.org/2000/svg", ""), r"(https?:)?//[a-z]+\.[a-z]")
            self.assertNotRegex(text, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage")
        for name in set(re.findall(r'byId\("([\w-]+)"\)', (ROOT / "server/page/page.js").read_text())):
            self.assertIn(f'id="{name}"', html)
        for target in re.findall(r'(?:for|aria-labelledby)="([\w-]+)"', html):
            self.assertIn(f'id="{target}"', html)


class Using(Case):
    def test_make_watch_play(self):
        """A seed beyond what a JavaScript number holds, and a prompt that would be markup."""
        prompt, seed = "<img src=x onerror=alert(1)> a red ball & a \"backboard\"", "9007199254740993"
        tab = self.tab()
        tab.wait("document.getElementById('ready').textContent === 'Ready'")
        tab.wait("document.getElementById('figure-devices').textContent === '1 of 1'")
        tab.wait("document.querySelector('#model option:nth-child(2)')?.value === 'small'")
        tab.wait("document.querySelector('#device-list li')?.textContent.includes('fake')")
        tab.fill("#prompt", prompt)
        tab.fill("#length", "9")
        tab.run("document.getElementById('length-unit').value = 'num_frames'")
        tab.fill("#steps", "60")
        tab.fill("#guidance", "4.5")
        tab.fill("#seed", seed)
        tab.click("#submit")
        tab.wait("document.getElementById('form-note').textContent.startsWith('Queued: <img')")
        self.state(tab, prompt, "running")
        tab.wait(f"{row(prompt)}.querySelector('progress').value > 10")
        tab.wait(f"/denoising · \\d+\\sof\\s60 /.test({row(prompt)}.querySelector('.progress-text').textContent)")
        tab.wait(f"{row(prompt)}.querySelector('img').src.startsWith('data:image/')")
        self.state(tab, prompt, "completed")
        tab.wait("document.getElementById('announce').textContent.endsWith(': Completed')")
        tab.wait(f"{row(prompt)}.querySelector('img').naturalWidth > 0")
        tab.run(f"{row(prompt)}.querySelector('.open').focus()")
        tab.click(".video .open")
        tab.wait("document.getElementById('player').duration > 0")
        tab.wait("document.getElementById('player').currentTime > 0")
        tab.wait("document.getElementById('player').poster.startsWith('data:image/')")
        facts = tab.run("document.getElementById('viewer-facts').innerText")
        for text in (seed, "9 frames", "60", "4.5", "small"):
            self.assertIn(text, facts)
        self.assertEqual(tab.run("document.getElementById('viewer-prompt').textContent"), prompt)
        link = tab.run("(() => { const a = document.getElementById('download'); return [a.href, a.download]; })()")
        self.assertRegex(" ".join(link), r"^blob:\S+ video_[0-9a-f]+\.mp4$")
        self.assertEqual(tab.run("document.getElementById('player').videoWidth"), 64)
        tab.press("Escape")
        tab.wait("!document.getElementById('viewer').open && !document.getElementById('player').src")
        self.assertEqual(tab.run("document.activeElement.className"), "open")
        tab.click(".video .open")
        tab.click("#reuse")
        self.assertEqual(tab.run("['prompt', 'seed', 'steps'].map((id) => document.getElementById(id).value)"),
                         [prompt, seed, "60"])

    def test_errors_beside_fields(self):
        tab = self.tab()
        tab.wait("!document.getElementById('desk').hidden")
        before = len(json.loads(self.server.ask("GET", "/v1/videos?limit=100")[2])["data"])
        tab.click("#submit")
        self.check_error(tab, "prompt", "prompt")
        tab.fill("#prompt", "a ball")
        self.assertTrue(tab.run("document.getElementById('prompt-error').hidden"))
        for field, bad in (("steps", "many"), ("steps", "201"), ("guidance", "-1"), ("seed", "1.5"), ("size", "big"),
                           ("length", "0"), ("length", "100000")):
            tab.fill(f"#{field}", bad)
            tab.click("#submit")
            self.check_error(tab, field, "'")
            tab.fill(f"#{field}", "")
        self.assertEqual(len(json.loads(self.server.ask("GET", "/v1/videos?limit=100")[2])["data"]), before)

    def check_error(self, tab, field, word):
        tab.wait(f"!document.getElementById('{field}-error').hidden && document.activeElement.id === '{field}'")
        error = tab.run(f"document.getElementById('{field}-error').textContent")
        self.assertIn(word, error)
        self.assertEqual(tab.run("[...document.querySelectorAll('[aria-invalid]')].map((e) => e.id)"), [field])
        self.assertIn(f"{field}-error", tab.run("document.activeElement.getAttribute('aria-describedby')"))

    def test_cancel_and_delete(self):
        tab = self.tab()
        tab.wait("!document.getElementById('desk').hidden")
        video = self.server.submit("to be cancelled", num_inference_steps=200)
        self.state(tab, "to be cancelled", "running")
        self.press(tab, "to be cancelled", "cancel", "Cancel")
        tab.click("#videos-title")
        self.press(tab, "to be cancelled", "cancel", "Cancel")  # leaving the button took the first one back
        self.assertEqual(self.server.video(video)["status"], "in_progress")
        self.press(tab, "to be cancelled", "cancel", "Really cancel?")
        self.state(tab, "to be cancelled", "cancelled")
        self.assertEqual(self.server.video(video)["error"]["code"], "cancelled")
        self.press(tab, "to be cancelled", "delete", "Delete")
        self.press(tab, "to be cancelled", "delete", "Really delete?")
        tab.wait(f"!{row('to be cancelled')}")
        self.assertEqual(self.server.ask("GET", f"/v1/videos/{video}")[0], 404)

    def test_keyboard_alone(self):
        tab = self.tab()
        tab.wait("!document.getElementById('desk').hidden")
        tab.press("Tab")
        self.assertEqual(tab.run(FOCUS), ["skip", True])
        tab.press("Enter")
        self.assertEqual(tab.run("document.activeElement.id"), "videos")
        tab.open(self.server.url + "/?again")
        tab.wait("!document.getElementById('desk').hidden")
        self.assertEqual(self.travel(tab, "prompt")[:3], ["skip", "SUMMARY", "prompt"])
        tab.type("by keyboard")
        order = self.travel(tab, "submit")
        self.assertEqual(order, ["negative", "model", "size", "steps", "length", "length-unit", "guidance", "seed",
                                 "tier", "submit"])
        self.travel(tab, "prompt", SHIFT)
        tab.press("Enter", CTRL)
        self.state(tab, "by keyboard", "completed")
        tab.run(f"{row('by keyboard')}.querySelector('.open').id = 'mine'")
        self.travel(tab, "mine")
        tab.press("Enter")
        tab.wait("document.getElementById('player').duration > 0")
        self.assertTrue(tab.run("document.getElementById('viewer').contains(document.activeElement)"))
        tab.press("Escape")
        tab.wait("document.activeElement.id === 'mine'")
        tab.press("Tab")
        for label in ("Delete", "Really delete?"):
            self.assertEqual(tab.run("document.activeElement.textContent"), label)
            tab.press("Space")
        tab.wait(f"!{row('by keyboard')}")
        tab.wait("document.activeElement.matches('.open, #videos')")

    def travel(self, tab, target, modifiers=0):
        """Tab until the target has the focus; each stop must show that it has it."""
        stops = []
        for _ in range(40):
            tab.press("Tab", modifiers)
            name, shown = tab.run(FOCUS)
            stops.append(name)
            self.assertTrue(shown, f"the focus on {name} cannot be seen")
            if name == target:
                return stops
        self.fail(f"{target} cannot be reached: {stops}")

    def test_failure_is_told(self):
        tab = self.tab()
        self.server.submit("dynamite")
        self.state(tab, "dynamite", "failed")
        video = json.loads(self.server.ask("GET", "/v1/videos?limit=1")[2])["data"][0]
        self.assertEqual(tab.run(f"{row('dynamite')}.querySelector('.trouble').innerText.replace(/\\s+/g, ' ')"),
                         f"{video['error']['code']} {video['error']['message']}")
        tab.wait("document.getElementById('ready').textContent === 'Ready'")  # the worker is back

    def test_hidden(self):
        """Nobody looks: no streams, no previews; and all at once again when somebody does."""
        tab = self.tab()
        video = self.server.submit("unseen", num_inference_steps=200)
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});" \
               "document.dispatchEvent(new Event('visibilitychange'))"
        self.wait_for(lambda: self.streams() == 1)
        tab.run(hide % "true")
        self.wait_for(lambda: self.streams() == 0)
        tab.run(hide % "false")
        self.wait_for(lambda: self.streams() == 1)
        self.cancel(video)
        self.ended(tab, "unseen")

    def test_connection(self):
        """A stream that breaks goes on behind the last event; a server that is away is said to be."""
        proxy = Proxy(self.server.port)
        try:
            self.origin, self.broken = proxy.url, True
            tab = self.tab(url=proxy.url)
            tab.wait("document.getElementById('ready').textContent === 'Ready'")
            video = self.server.submit("followed", num_inference_steps=200)
            tab.wait(f"{row('followed')}?.querySelector('progress').value > 0")
            tab.wait(f"{row('followed')}.querySelector('img').src")
            proxy.cut()
            self.wait_for(lambda: any(b"/events" in head and b"last-event-id: " in head.lower()
                                      for head in proxy.heads))
            proxy.refusing = True
            proxy.cut()
            tab.wait("document.getElementById('ready').textContent === 'Unreachable'")
            tab.fill("#prompt", "sent when it was back")
            tab.click("#submit")
            tab.wait("/cannot be reached/.test(document.getElementById('form-error').textContent)")
            proxy.refusing = False
            tab.click("#submit")
            tab.wait("document.getElementById('form-note').textContent === 'Queued: sent when it was back'")
            tab.wait("document.getElementById('ready').textContent === 'Ready'")
            self.cancel(video)
            self.ended(tab, "followed")
        finally:
            proxy.close()


class Many(Case):
    settings = ("--device", "fake:step_ms=300") * 7

    def test_streams_are_bounded(self):
        """Two tabs of one browser, more running videos in sight than streams there may be."""
        tab = self.tab(height=2000)
        other = Tab(self.browser, tab.context)
        self.tabs.append(other)
        other.look(1280, 2000)
        other.open(self.server.url + "/")
        videos = [self.server.submit(f"one of many {i}", num_inference_steps=200) for i in range(7)]
        for one in (tab, other):
            one.wait("document.querySelectorAll('.video[data-state=running]').length === 7")
        self.wait_for(lambda: self.streams() == 4)
        for _ in range(20):
            self.browser.pump(0.05)
            self.assertLessEqual(self.streams(), 4)
        for video in videos:
            self.cancel(video)
        for one in (tab, other):
            one.wait("document.querySelectorAll('.video[data-state=cancelled]').length === 7")
        self.wait_for(lambda: self.streams() == 0)

    def test_pages(self):
        for i in range(45):
            self.server.submit(f"page {i:02}", num_inference_steps=1)
        tab = self.tab()
        prompts = "[...document.querySelectorAll('.prompt')].map((p) => p.textContent)"
        tab.wait(f"{prompts}[0] === 'page 44' && {prompts}.length === 20")
        self.assertTrue(tab.run("document.getElementById('newer').disabled"))
        tab.click("#older")
        tab.wait(f"{prompts}[0] === 'page 24'")
        self.assertEqual(tab.run("document.getElementById('list-note').textContent"), "page 2, newest first")
        tab.click("#older")
        tab.wait(f"{prompts}[0] === 'page 04'")
        self.assertTrue(tab.run("document.getElementById('older').disabled"))
        tab.click("#newer")
        tab.wait(f"{prompts}[0] === 'page 24'")
        tab.click("#newer")
        tab.wait(f"{prompts}[0] === 'page 44'")


class Looks(Case):
    settings = ("--device", SLOW, "--job-attempts-max", "1")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.submit("A paper boat full of dynamite", size="64x64")  # once: the device is out for a while

    def crowd(self, tab):
        """Every state that can be had, with prompts that are hard to set."""
        submit = self.server.submit
        submit("W" * 300, size="64x64", num_inference_steps=4)
        submit("A red ball rebounds off the backboard and drops through the net, seen from the free-throw line, "
               "evening light, handheld camera, shallow depth of field, dust in the air. " * 3, size="96x64",
               num_inference_steps=4)
        cancelled = submit("Two dancers on a roof in the rain", num_inference_steps=200, size="64x64")
        self.cancel(cancelled)
        self.state(tab, "A red ball", "completed")
        self.state(tab, "WWW", "completed")
        tab.wait(f"{row('WWW')}.querySelector('img').naturalWidth > 0")
        running = [submit("A lighthouse in fog, time lapse", num_inference_steps=150, size="64x64"),
                   submit("Steam over a cup of tea", num_inference_steps=200, service_tier="flex", size="64x64")]
        for prompt in ("A lighthouse", "Steam"):
            tab.wait(f"{row(prompt)}?.querySelector('progress').value > 5")
            tab.wait(f"{row(prompt)}.querySelector('img').naturalWidth > 0")
        return running

    def check(self, tab, width):
        self.assertLessEqual(tab.run("document.documentElement.scrollWidth"), width)
        self.assertEqual(tab.run(CONTRAST), [])

    def look(self, name, **how):
        tab = self.tab(**how)
        width = how.get("width", 1280)
        running = self.crowd(tab)
        self.check(tab, width)
        self.picture(tab, name)
        self.assertEqual(tab.run("document.getElementById('maker').open"), width > 1000)
        if width < 1000:
            tab.click("summary")
        tab.fill("#steps", "many")
        tab.fill("#prompt", "a ball")
        tab.click("#submit")
        tab.wait("!document.getElementById('steps-error').hidden")
        self.check(tab, width)
        self.picture(tab, f"{name}-form")
        tab.run(f"{row('WWW')}.querySelector('.open').click()")
        tab.wait("document.getElementById('player').duration > 0")
        self.check(tab, width)
        self.assertLessEqual(tab.run("document.getElementById('viewer').scrollWidth"), width)
        self.picture(tab, f"{name}-viewer")
        for video in running:
            self.cancel(video)
        return tab.run("getComputedStyle(document.body).backgroundColor")

    def test_both_schemes(self):
        self.assertNotEqual(self.look("light"), self.look("dark", scheme="dark"))

    def test_phone(self):
        self.look("phone", width=360, height=780, phone=True)
        self.look("phone-dark", width=360, height=780, phone=True, scheme="dark")

    def test_tablet(self):
        self.look("tablet", width=768, height=1024)


class Keys(Case):
    settings = ("--device", "cpu", "--threads", "1", "--keys", "true")

    def enter(self, tab, key):
        tab.wait("!document.getElementById('gate').hidden && document.activeElement.id === 'key'")
        self.assertTrue(tab.run("document.getElementById('desk').hidden"))
        tab.type(key)
        tab.press("Enter")

    def test_tenants_apart(self):
        scopes = "submit,read,cancel,metrics"
        mine, theirs = self.server.make_key("alpha", scopes), self.server.make_key("beta", scopes)
        tab = self.tab()
        self.enter(tab, "not a key")
        tab.wait("document.getElementById('key-error').textContent.startsWith('A key is one word')")
        tab.fill("#key", mine[:-3] + "abc")
        tab.press("Enter")
        tab.wait("/API key/.test(document.getElementById('key-error').textContent)")
        self.assertEqual(tab.run("sessionStorage.length"), 0)
        self.enter(tab, mine)
        tab.wait("!document.getElementById('empty').hidden")
        for field, value in (("prompt", "the secret of alpha"), ("size", "64x64"), ("length", "1"), ("steps", "4")):
            tab.fill(f"#{field}", value)
        tab.click("#submit")
        self.state(tab, "the secret of alpha", "completed")
        tab.click(".video .open")
        tab.wait("document.getElementById('player').duration > 0")
        tab.press("Escape")
        tab.open(self.server.url + "/?again")
        self.state(tab, "the secret of alpha", "completed")  # the key stays in the tab
        self.picture(tab, "keys")
        tab.fill("#prompt", "another secret of alpha")
        tab.click("#forget")
        self.enter(tab, theirs)
        tab.wait("!document.getElementById('empty').hidden")
        everything = tab.run("document.documentElement.outerHTML + [...document.querySelectorAll('input, textarea')]"
                             ".map((e) => e.value).join()")
        self.assertNotIn("secret", everything)
        self.assertEqual(tab.run("[localStorage.length, document.cookie, Object.values(sessionStorage)]"),
                         [0, "", [theirs]])
        for _, url in tab.requests:
            self.assertNotIn("kinora_", url)
        fresh = self.tab()
        fresh.wait("!document.getElementById('gate').hidden")
        self.picture(fresh, "gate")

    def test_key_that_may_only_read(self):
        key = self.server.make_key("gamma", "read")
        tab = self.tab()
        self.enter(tab, key)
        tab.wait("!document.getElementById('empty').hidden")
        self.assertEqual(tab.run("document.getElementById('figure-queued').textContent"), "–")
        tab.fill("#prompt", "not allowed")
        tab.click("#submit")
        tab.wait("!document.getElementById('form-error').hidden")
        self.assertFalse(tab.run("document.getElementById('desk').hidden"))


# Each has a server and a browser of its own. Several at a time, as they wait more than they compute; the longest first.
CLASSES = (Using, Looks, Many, Keys, Files)
AT_A_TIME = 3


def run_class(pictures, names, case):
    """One class by its name, in a process of its own: what its tests said, how many passed and how many failed."""
    global PICTURES
    PICTURES = pictures
    suite = chosen(names)[case]
    text = io.StringIO()
    result = unittest.TextTestRunner(stream=text, verbosity=2).run(suite)
    failed = len({getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors})
    return text.getvalue(), max(result.testsRun - failed, 0), failed


def chosen(names):
    """{class: its tests} whose names contain one of these."""
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    suites = {case.__name__: loader.loadTestsFromTestCase(case) for case in CLASSES}
    return {case: suite for case, suite in suites.items() if suite.countTestCases()}


def main():
    parser = argparse.ArgumentParser(description="Tests the status page in headless Chromium.")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="leave pictures of the page there")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only tests whose name contains one of these")
    arguments = parser.parse_args()
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    cases = chosen(arguments.names)
    if not find_chromium():
        print(f"skipped {sum(suite.countTestCases() for suite in cases.values())} tests: Chromium is not installed "
              "(Debian: apt-get install chromium)")
        print("0 passed, 0 failed")
        return 0
    began, passed, failed = time.monotonic(), 0, 0
    with ProcessPoolExecutor(AT_A_TIME, get_context("spawn")) as pool:
        for text, good, bad in pool.map(partial(run_class, arguments.pictures, arguments.names), cases):
            print(text, flush=True)
            passed, failed = passed + good, failed + bad
    print(f"{time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
