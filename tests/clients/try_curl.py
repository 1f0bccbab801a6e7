# SPDX-License-Identifier: Apache-2.0
"""curl, byte for byte."""
import json
import re
from urllib.parse import urlsplit

from harness import MODEL, SMALL, ServerCase, is_jpeg, is_webp, run

MEBIBYTE = 1 << 20


class Curl(ServerCase):
    flags = ("--alias", f"sora-2={MODEL}")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.done = cls.server.completed()["id"]
        cls.bytes = cls.server.content(cls.done)

    def curl(self, *arguments, text=True):
        """curl's output; it must have got an answer."""
        done = run("curl", "--silent", "--show-error", "--max-time", "30", *arguments, text=text)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def headed(self, *arguments):
        """(status, headers, body, what -v says) of one answer."""
        done = run("curl", "--silent", "--show-error", "--verbose", "--max-time", "30", "--include", *arguments,
                   text=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        rest = done.stdout
        while True:  # past 100 Continue
            head, _, rest = rest.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            status = int(lines[0].split()[1])
            if status != 100:
                break
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        return status, headers, rest, done.stderr.decode(errors="replace")

    def submit(self, *arguments):
        video = json.loads(self.curl(*arguments, f"{self.server.api}/videos"))
        self.assertEqual(video.get("object"), "video", video)
        return video

    def content(self, query=""):
        return f"{self.server.api}/videos/{self.done}/content{query}"

    def file(self, name, data):
        path = self.server.home / name
        path.write_bytes(data)
        return path

    # ---- submitting ----

    def check_small(self, video):
        self.assertEqual((video["prompt"], video["size"]), ("a ball & a box", "64x64"))
        self.assertEqual({name: video[name] for name in SMALL}, SMALL)
        self.server.await_status(video["id"], "completed")

    def test_json(self):
        body = {"prompt": "a ball & a box", "size": "64x64", **SMALL}
        self.check_small(self.submit("--json", json.dumps(body)))

    def test_multipart(self):
        fields = {"prompt": "a ball & a box", "size": "64x64", **SMALL}
        self.check_small(self.submit(*(part for name, text in fields.items() for part in ("-F", f"{name}={text}"))))

    def test_urlencoded(self):
        fields = {"prompt": "a ball & a box", "size": "64x64", **SMALL}
        self.check_small(self.submit(*(part for name, text in fields.items()
                                       for part in ("--data-urlencode", f"{name}={text}"))))

    def test_multipart_with_nested_values(self):
        video = self.submit("-F", "prompt=a ball", "-F", "num_frames=9", "-F", "metadata[shot]=12b", "-F",
                            "metadata[take]=3", "-F", 'extra_body={"num_inference_steps": 3, "fps": 8}')
        self.assertEqual(video["metadata"], {"shot": "12b", "take": "3"})
        self.assertEqual((video["num_inference_steps"], video["fps"]), (3, 8))

    def test_chunked(self):
        """A body without a length."""
        body = self.file("chunked.json", json.dumps({"prompt": "a ball & a box", "size": "64x64", **SMALL}).encode())
        self.check_small(self.submit("-H", "Transfer-Encoding: chunked", "-H", "Content-Type: application/json", "-T",
                                     str(body), "-X", "POST"))

    def test_expect_continue(self):
        """curl waits for 100 Continue before a body of more than 1 MiB."""
        clip = self.file("two.png", b"\x89PNG\r\n\x1a\n" + bytes(2 * MEBIBYTE))
        status, _, body, said = self.headed("-F", "prompt=a ball", "-F", f"input_reference=@{clip}",
                                            f"{self.server.api}/videos")
        self.assertIn("< HTTP/1.1 100 Continue", said)
        self.assertEqual((status, json.loads(body)["error"]["param"]), (400, "input_reference"))

    def test_too_large(self):
        """Refused by its length, before it is sent."""
        huge = self.server.home / "huge.png"
        with open(huge, "wb") as file:
            file.truncate(65 * MEBIBYTE)
        for form, url in ((("-F", f"input_reference=@{huge}", "-F", "prompt=a ball"), "/videos"),
                          (("-H", "Content-Type: application/json", "-T", str(huge), "-X", "POST"), "/videos")):
            status, headers, body, said = self.headed(*form, self.server.api + url)
            self.assertEqual((status, json.loads(body)["error"]["code"]), (413, "payload_too_large"))
            self.assertNotIn("100 Continue", said)

    def test_chunked_too_large(self):
        """Nobody knows until it comes."""
        body = self.file("large.json", b'{"prompt": "' + b"x" * (2 * MEBIBYTE) + b'"}')
        status, _, body, _ = self.headed("-H", "Transfer-Encoding: chunked", "-H", "Content-Type: application/json",
                                         "-H", "Expect:", "-T", str(body), "-X", "POST", f"{self.server.api}/videos")
        self.assertEqual(status, 413, body)

    def test_bodies_that_are_none(self):
        for content_type, body, status, code in (
                ("application/json", '{"prompt": "a"', 400, "invalid_body"),
                ("application/json", '{"prompt": "a", "prompt": "b"}', 400, "invalid_body"),
                ("application/json", '["a ball"]', 400, "invalid_body"),
                ("application/json", "", 400, "invalid_body"),
                ("application/json", "[" * 40 + "]" * 40, 400, "invalid_body"),
                ("text/plain", "a ball", 415, "unsupported_media_type"),
                ("application/json; charset=latin-1", "{}", 415, "unsupported_media_type"),
                ("multipart/form-data", "a ball", 400, "invalid_body"),
                ("multipart/form-data; boundary=x", "--y\r\n\r\n", 400, "invalid_body")):
            got, _, text, _ = self.headed("-H", f"Content-Type: {content_type}", "--data-binary", body,
                                          f"{self.server.api}/videos")
            self.assertEqual((got, json.loads(text)["error"]["code"]), (status, code), (content_type, body, text))

    # ---- content ----

    def test_whole(self):
        status, headers, body, _ = self.headed(self.content())
        self.assertEqual((status, body), (200, self.bytes))
        self.assertEqual(headers["content-type"], "video/mp4")
        self.assertEqual(headers["content-disposition"], f'attachment; filename="{self.done}.mp4"')
        self.assertEqual(headers["accept-ranges"], "bytes")
        self.assertEqual(int(headers["content-length"]), len(self.bytes))

    def test_name_of_the_download(self):
        self.curl("--remote-name", "--remote-header-name", "--output-dir", str(self.server.home), self.content())
        self.assertEqual((self.server.home / f"{self.done}.mp4").read_bytes(), self.bytes)

    def test_ranges(self):
        whole = self.bytes
        for wanted, part in (("0-0", slice(0, 1)), ("100-299", slice(100, 300)), ("100-", slice(100, None)),
                             ("-77", slice(-77, None)), (f"10-{2 * len(whole)}", slice(10, None))):
            status, headers, body, _ = self.headed("--range", wanted, self.content())
            self.assertEqual((status, body), (206, whole[part]), wanted)
            first = whole.index(body) if wanted != "0-0" else 0
            if wanted != "0-0":
                self.assertEqual(headers["content-range"], f"bytes {first}-{first + len(body) - 1}/{len(whole)}")
        status, headers, body, _ = self.headed("--range", f"{len(whole)}-", self.content())
        self.assertEqual((status, headers["content-range"]), (416, f"bytes */{len(whole)}"))

    def test_a_download_goes_on(self):
        half = self.file("half.mp4", self.bytes[:1000])
        self.curl("--continue-at", "-", "--output", str(half), self.content())
        self.assertEqual(half.read_bytes(), self.bytes)

    def test_conditions(self):
        _, headers, _, _ = self.headed(self.content())
        tag = headers["etag"]
        self.assertRegex(tag, r'^"[^"]+"$')
        for given in (tag, f'"other", {tag}', "*", f"W/{tag}"):
            status, headers, body, _ = self.headed("-H", f"If-None-Match: {given}", self.content())
            self.assertEqual((status, body, headers["etag"]), (304, b"", tag), given)
        for more, status, body in ((("-H", 'If-None-Match: "other"'), 200, self.bytes),
                                   (("-H", f"If-Range: {tag}", "--range", "0-9"), 206, self.bytes[:10]),
                                   (("-H", 'If-Range: "other"', "--range", "0-9"), 200, self.bytes),
                                   (("-H", f"If-Match: {tag}"), 200, self.bytes)):
            self.assertEqual(self.headed(*more, self.content())[::2], (status, body), more)
        self.assertEqual(self.headed("-H", 'If-Match: "other"', self.content())[0], 412)

    def test_etags_differ(self):
        tags = {self.headed("--head", self.content(f"?variant={v}"))[1]["etag"]
                for v in ("video", "thumbnail", "spritesheet")}
        self.assertEqual(len(tags), 3)

    def test_head(self):
        status, headers, body, _ = self.headed("--head", self.content())
        self.assertEqual((status, body, int(headers["content-length"])), (200, b"", len(self.bytes)))
        status, headers, body, _ = self.headed("--head", f"{self.server.api}/videos/{self.done}")
        self.assertEqual((status, body, headers["content-type"]), (200, b"", "application/json"))

    def test_variants(self):
        for variant, kind, test in (("video", "video/mp4", lambda b: b[4:8] == b"ftyp"),
                                    ("thumbnail", "image/webp", is_webp), ("spritesheet", "image/jpeg", is_jpeg)):
            status, headers, body, _ = self.headed(self.content(f"?variant={variant}"))
            self.assertEqual((status, headers["content-type"], test(body)), (200, kind, True))
        status, _, body, _ = self.headed(self.content("?variant=poster"))
        self.assertEqual((status, json.loads(body)["error"]["param"]), (400, "variant"))

    # ---- HTTP itself ----

    def test_version_1_0(self):
        """No chunks, no keep-alive unless asked for."""
        status, headers, body, said = self.headed("--http1.0", self.content())
        self.assertEqual((status, body), (200, self.bytes))
        self.assertNotIn("transfer-encoding", headers)
        self.assertIn("Closing connection", said)
        events = self.curl("--http1.0", "--no-buffer", f"{self.server.api}/videos/{self.done}/events")
        self.assertTrue(events.endswith("data: [DONE]\n\n"), events)
        video = self.submit("--http1.0", "--json", json.dumps({"prompt": "a ball", **SMALL}))
        self.assertEqual(video["num_frames"], 9)

    def test_one_connection_for_many(self):
        url = f"{self.server.api}/videos/{self.done}"
        said = run("curl", "--silent", "--verbose", "--output", "/dev/null", url, "--next", "--silent", "--verbose",
                   "--output", "/dev/null", url, "--next", "--silent", "--verbose", "--output", "/dev/null",
                   self.content()).stderr
        self.assertEqual(len(re.findall(r"Connected to", said)), 1, said)
        self.assertEqual(len(re.findall(r"< HTTP/1.1 200", said)), 3, said)

    def test_wrong_places_and_methods(self):
        for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/videos/", 404),
                                     ("PUT", "/v1/videos", 405),
                                     ("PATCH", f"/v1/videos/{self.done}", 405), ("DELETE", "/v1/videos", 405),
                                     ("GET", "/v1/videos/sync", 404),
                                     ("GET", "/v1/videos/../../../../etc/passwd", 400),
                                     ("GET", "/v1/videos/..%2f..%2fkinora.db/content", 400),
                                     ("GET", "/v1/videos/%00/content", 400)):
            got, headers, body, _ = self.headed("--path-as-is", "-X", method, self.server.url + path)
            self.assertEqual(got, status, (method, path, body))
            self.assertEqual(headers["content-type"], "application/json")
            self.assertTrue(json.loads(body)["error"]["message"])
            if status == 405:
                self.assertTrue(headers.get("allow"), "405 says which methods there are (RFC 9110, 15.5.6)")

    def test_too_many_headers(self):
        many = [part for i in range(101) for part in ("-H", f"X-{i}: 1")]
        self.assertEqual(self.headed(*many, self.content())[0], 431)
        self.assertEqual(self.headed("-H", "X-Long: " + "x" * (17 << 10), self.content())[0], 431)

    def test_http2_is_declined(self):
        """Prior knowledge of HTTP/2 is answered in a way curl ends with; the server goes on."""
        done = run("curl", "--silent", "--http2-prior-knowledge", "--max-time", "10", self.server.url + "/livez")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(self.server.get("/livez").status, 200)

    def test_host_is_asked_for(self):
        self.assertEqual(self.headed("-H", "Host:", self.content())[0], 400)
        port = urlsplit(self.server.url).port
        self.assertEqual(self.headed("-H", f"Host: localhost:{port}", self.content())[0], 200)
        # Without keys, another name for this machine may be a stranger's (DNS rebinding), and so may another site.
        self.assertEqual(self.headed("-H", f"Host: videos.example:{port}", self.content())[0], 403)
        self.assertEqual(self.headed("-H", "Origin: https://videos.example", self.content())[0], 403)
