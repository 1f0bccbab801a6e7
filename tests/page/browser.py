# SPDX-License-Identifier: Apache-2.0
"""Drives headless Chromium through the DevTools protocol.

The protocol runs over a pair of pipes (--remote-debugging-pipe: descriptors 3 and 4, JSON ended by NUL), so Chromium
itself is all it takes: no driver, no WebSocket, no port. Everything a page asks the network for, writes to its console
or breaks of its security policy is collected. Names other than 127.0.0.1 do not resolve in this browser.
"""
import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ANSWER_SECONDS = 60  # against hanging only
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "ArrowDown": 40, "ArrowUp": 38}
SHIFT, CTRL = 8, 2


def find_chromium():
    return next((path for path in map(shutil.which, NAMES) if path), None)


class BrowserError(Exception):
    """The browser ended, did not answer, or refused."""


class Browser:
    def __init__(self, program):
        self.folder = tempfile.TemporaryDirectory(prefix="kinora-page-")
        self.number = 0
        self.rest = b""
        self.tabs = {}
        command = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}",
                   "--no-first-run", "--no-default-browser-check", "--disable-background-networking",
                   "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-sync",
                   "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio", "--force-color-profile=srgb",
                   "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank"]
        if os.getuid() == 0:
            command.insert(1, "--no-sandbox")  # Chromium's own sandbox does not work for root
        self.start(command)

    def start(self, command):
        low = os.pipe() + os.pipe()  # what we hold may not be 3 and 4, which become the child's
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in low]
        command_read, self.write_fd, self.read_fd, answer_write = high

        def place():
            os.dup2(command_read, 3)
            os.dup2(answer_write, 4)

        self.log = open(os.path.join(self.folder.name, "log"), "wb")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        pass_fds=(3, 4), preexec_fn=place, start_new_session=True)
        for fd in (*low, command_read, answer_write):
            os.close(fd)

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: the zygote and renderers too
        except ProcessLookupError:
            pass
        self.process.wait()
        os.close(self.write_fd)
        os.close(self.read_fd)
        self.log.close()
        shutil.rmtree(self.folder.name, ignore_errors=True)  # renderers may still be leaving files behind
        self.folder._finalizer.detach()

    # ---- the protocol ----

    def send(self, method, params, session):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write_fd, data):]
        return self.number

    def receive(self, seconds):
        """The next message, or None when none comes in time."""
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.read_fd], [], [], left)[0]:
                return None
            data = os.read(self.read_fd, 1 << 20)
            if not data:
                raise BrowserError("Chromium ended by itself")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def take(self, message):
        tab = self.tabs.get(message.get("sessionId"))
        if tab and "method" in message:
            tab.on_event(message["method"], message["params"])

    def call(self, method, params=None, session=None):
        number = self.send(method, params or {}, session)
        end = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < end:
            message = self.receive(end - time.monotonic())
            if message is None:
                break
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.take(message)
        raise BrowserError(f"{method}: no answer in {ANSWER_SECONDS} s")

    def pump(self, seconds):
        """Takes what comes for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self.receive(end - time.monotonic())
            if message:
                self.take(message)


class Tab:
    """One page, in a browser profile of its own unless it is told to share another tab's `context`."""

    def __init__(self, browser, context=None):
        self.browser = browser
        self.requests = []  # (method, URL)
        self.complaints = []  # of the console, of scripts and of the security policy
        self.owner = context is None
        self.context = context or browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", {"url": "about:blank", "browserContextId": self.context})
        self.target = target["targetId"]
        self.session = browser.call("Target.attachToTarget", {"targetId": self.target, "flatten": True})["sessionId"]
        browser.tabs[self.session] = self
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        del self.browser.tabs[self.session]
        self.browser.call("Target.closeTarget", {"targetId": self.target})
        if self.owner:
            self.browser.call("Target.disposeBrowserContext", {"browserContextId": self.context})

    def call(self, method, **params):
        return self.browser.call(method, params, self.session)

    def on_event(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append((params["request"]["method"], params["request"]["url"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            # A status that the API answered with is the page's business; that there was one is noted by the browser.
            if entry["level"] in ("error", "warning") and not (
                    entry["source"] == "network" and "responded with a status of" in entry["text"]):
                self.complaints.append(f"{entry['source']}: {entry['text']}")

    # ---- what a person does ----

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def look(self, width, height, scheme="light", phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=phone,
                  deviceScaleFactor=2 if phone else 1)
        features = [{"name": "prefers-color-scheme", "value": scheme},
                    {"name": "prefers-reduced-motion", "value": "reduce"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key, modifiers=0):
        code = KEYS[key]
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        common = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code,
                  "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """In the middle of the element, scrolled into view, wherever it lies by then."""
        box = self.run("""(() => { const e = document.querySelector(%s); e.scrollIntoView({block: "center"});
            const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2, b.width]; })()"""
                       % json.dumps(selector))
        if not box[2]:
            raise BrowserError(f"{selector} cannot be seen")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def fill(self, selector, text):
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        if text:
            self.type(text)
        else:
            self.run("document.execCommand('delete')")

    # ---- what a person sees ----

    def run(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True,
                           userGesture=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def wait(self, expression, seconds=60):
        """Until the expression is true; its value. The time is against hanging only."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(expression)
            if value:
                return value
            self.browser.pump(0.05)
        shown = self.run("document.body.innerText")
        raise BrowserError(f"not within {seconds} s: {expression}\nThe page shows:\n{shown[:1500]}")

    def picture(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as out:
            out.write(base64.b64decode(data))
