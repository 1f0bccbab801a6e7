# SPDX-License-Identifier: Apache-2.0
"""Keys, tenants, scopes and TLS; and what is refused without them."""
import json
import shutil
import signal
import ssl

import openai

from harness import KINORA, MODEL, SMALL, Server, ServerCase, make_certificate, run, trust, wait_for

LONG = {"num_inference_steps": 200, "num_frames": 81}


class Binding(ServerCase):
    """Where a server may listen."""

    def refusal(self, *flags, listen="0.0.0.0:0", keys=False):
        server = self.another(*flags, listen=listen)
        if keys:
            server.key("--tenant", "studio")
        done = run(*server.command)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout.strip() and json.loads(done.stdout)["event"], done.stdout.strip() and "error")
        return done.stderr + done.stdout

    def test_open_to_others_without_anything(self):
        for listen in ("0.0.0.0:0", "[::]:0"):
            said = self.refusal(listen=listen)
            for word in (f"--listen {listen}", "kinora key create", "--tls-cert FILE", "--tls-key FILE", "127.0.0.1"):
                self.assertIn(word, said)

    def test_open_to_others_without_tls(self):
        said = self.refusal(keys=True)
        self.assertIn("--tls-cert FILE --tls-key FILE", said)
        self.assertNotIn("kinora key create", said)

    def test_open_to_others_without_keys(self):
        certificate, key = make_certificate(self.server.home, "keyless")
        said = self.refusal("--tls-cert", certificate, "--tls-key", key)
        self.assertIn("kinora key create", said)
        self.assertNotIn("--tls-cert FILE", said)

    def test_half_a_certificate(self):
        certificate, _ = make_certificate(self.server.home, "half")
        self.assertIn("tls-key", self.refusal("--tls-cert", certificate, listen="127.0.0.1:0"))

    def test_a_wrong_key_for_the_certificate(self):
        certificate, _ = make_certificate(self.server.home, "mine")
        _, key = make_certificate(self.server.home, "other")
        self.assertIn("other.key", self.refusal("--tls-cert", certificate, "--tls-key", key, listen="127.0.0.1:0"))

    def test_a_data_directory_in_use(self):
        done = run(KINORA, "serve", *(a for pair in (("--models", self.server.home / "models"),
                                                     ("--data", self.server.data), ("--listen", "127.0.0.1:0"),
                                                     ("--device", self.server.device)) for a in map(str, pair)))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(str(self.server.data), done.stderr)
        self.assertEqual(self.server.get("/readyz").status, 200, "the first one goes on")


class Tls(ServerCase):
    """Reached from elsewhere: TLS and keys."""
    seconds = 15

    @classmethod
    def setUpClass(cls):
        cls.server = Server(listen="0.0.0.0:0")
        cls.addClassCleanup(cls.server.close)
        home = cls.server.home
        cls.certificate, cls.private = make_certificate(home, "server")
        cls.server.command += ["--tls-cert", cls.certificate, "--tls-key", cls.private]
        cls.server.tls = trust(cls.certificate)
        cls.key = cls.server.key("--tenant", "studio")["key"]
        cls.server.start()

    def curl(self, *arguments):
        return run("curl", "--silent", "--show-error", "--max-time", "30", *arguments)

    def test_openai(self):
        self.assertTrue(self.server.url.startswith("https://"))
        client = self.server.client(self.key)
        video = client.videos.create_and_poll(prompt="a ball", extra_body=SMALL, poll_interval_ms=20)
        self.assertEqual(video.status, "completed")
        self.assertEqual(client.videos.download_content(video.id).content[4:8], b"ftyp")

    def test_who_does_not_trust_it(self):
        client = openai.OpenAI(base_url=self.server.api, api_key=self.key, max_retries=0)
        with self.assertRaises(openai.APIConnectionError):
            client.videos.list()

    def test_versions(self):
        url = self.server.url + "/livez"
        for version, good in (("1.1", False), ("1.2", True), ("1.3", True)):
            done = self.curl("--cacert", self.certificate, f"--tlsv{version}", "--tls-max", version, "--ciphers",
                             "DEFAULT@SECLEVEL=0", url)
            self.assertEqual(done.returncode == 0, good, f"TLS {version}: {done.stderr}")

    def test_plain_text_is_not_answered(self):
        done = self.curl(self.server.url.replace("https:", "http:") + "/livez")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(self.server.get("/livez").status, 200)

    def test_probes_need_no_key(self):
        for path in ("/livez", "/readyz", "/health", "/v2/health/ready"):
            self.assertEqual(self.server.get(path).status, 200)
        for path in ("/v1/videos", "/v1/models", "/metrics", "/v1/queue/stats"):
            self.assertRefused(self.server.get(path), 401, "invalid_api_key")

    def test_a_new_certificate(self):
        """SIGHUP reads the files again; new connections see it, no request fails."""
        fresh, private = make_certificate(self.server.home, "fresh")
        before = ssl.get_server_certificate(self.address())
        shutil.copy(private, self.private)
        shutil.copy(fresh, self.certificate)
        self.server.process.send_signal(signal.SIGHUP)
        wait_for("the new certificate", lambda: ssl.get_server_certificate(self.address()) != before)
        self.server.tls = trust(fresh)
        self.assertEqual(self.server.get("/v1/videos", key=self.key).status, 200)
        type(self).server.tls = self.server.tls

    def address(self):
        host, _, port = self.server.url.removeprefix("https://").partition(":")
        return host, int(port)

    def test_client_certificates(self):
        mine, private = make_certificate(self.server.home, "client")
        server = self.another("--tls-cert", self.certificate, "--tls-key", self.private, "--tls-client-ca", mine)
        server.ready = False
        server.start()
        url = server.url + "/livez"
        self.assertNotEqual(self.curl("--cacert", self.certificate, url).returncode, 0)
        done = self.curl("--cacert", self.certificate, "--cert", mine, "--key", private, url)
        self.assertEqual((done.returncode, json.loads(done.stdout or "{}").get("status")), (0, "ok"), done.stderr)
        self.assertEqual(server.stop(), 0)


class Tenants(ServerCase):
    device = "fake:step_ms=40"

    @classmethod
    def prepare(cls):
        make = cls.server.key
        cls.studio = make("--tenant", "studio")
        cls.second = make("--tenant", "studio")
        cls.rival = make("--tenant", "rival")

    def test_what_a_key_looks_like(self):
        self.assertRegex(self.studio["key"], r"^kinora_[0-9a-z]{12}_[0-9A-Za-z]{49}$")
        self.assertEqual((self.studio["tenant"], self.studio["scopes"]), ("studio", "submit,read,cancel"))

    def test_another_tenants_job_is_not_there(self):
        key, rival = self.studio["key"], self.rival["key"]
        done = self.server.completed(key=key)["id"]
        video = self.server.create(key=key, **LONG)["id"]
        for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
            for video_id in (video, done):
                reply = self.server.call(method, f"/v1/videos/{video_id}{path}", key=rival)
                self.assertRefused(reply, 404, "not_found")
                missing = self.server.call(method, f"/v1/videos/video_{'0' * 32}{path}", key=rival)
                self.assertEqual(reply.json()["error"]["message"].replace(video_id, "X"),
                                 missing.json()["error"]["message"].replace(f"video_{'0' * 32}", "X"))
        self.assertEqual(self.server.get("/v1/videos", key=rival).json()["data"], [])
        self.assertRefused(self.server.get(f"/v1/videos?after={done}", key=rival), 400, "invalid_value", "after")
        self.assertIn(self.server.video(video, key)["status"], ("queued", "in_progress"))
        self.server.call("DELETE", f"/v1/videos/{video}", key=key)

    def test_another_key_of_the_same_tenant(self):
        video = self.server.create(key=self.studio["key"])["id"]
        self.assertEqual(self.server.video(video, key=self.second["key"])["id"], video)

    def test_idempotency_keys_are_a_tenants_own(self):
        ids = [self.server.post("/v1/videos", {"prompt": "a ball", **SMALL}, headers={"Idempotency-Key": "one"},
                                key=key["key"]).json()["id"] for key in (self.studio, self.rival, self.studio)]
        self.assertNotEqual(ids[0], ids[1])
        self.assertEqual(ids[0], ids[2])

    def test_webhooks_are_a_tenants_own(self):
        made = self.server.post("/v1/webhook_endpoints", {"url": "https://example.com/hook"},
                                key=self.studio["key"]).json()
        self.assertEqual(self.server.get("/v1/webhook_endpoints", key=self.rival["key"]).json()["data"], [])
        path = f"/v1/webhook_endpoints/{made['id']}"
        self.assertEqual(self.server.call("DELETE", path, key=self.rival["key"]).status, 404)
        self.assertEqual(self.server.call("DELETE", path, key=self.studio["key"]).status, 200)

    def test_revoked_at_once(self):
        made = self.server.key("--tenant", "studio")
        client = self.server.client(made["key"])
        client.videos.list()
        self.server.kinora("key", "revoke", made["id"])
        with self.assertRaises(openai.AuthenticationError) as caught:
            client.videos.list()  # on the same connection
        self.assertIn("revoked", caught.exception.message)
        self.assertEqual(self.server.get("/v1/videos", key=self.second["key"]).status, 200)

    def test_scopes(self):
        video = self.server.completed(key=self.studio["key"])["id"]
        asks = {"submit": ("POST", "/v1/videos", {"prompt": "a ball", **SMALL}),
                "read": ("GET", f"/v1/videos/{video}", None),
                "cancel": ("DELETE", f"/v1/videos/{video}", None),
                "metrics": ("GET", "/metrics", None)}
        for scope in asks:
            key = self.server.key("--tenant", "studio", "--scopes", scope)["key"]
            for other, (method, path, body) in asks.items():
                if other == scope == "cancel":
                    continue  # comes last
                reply = self.server.call(method, path, body, key=key)
                if other == scope:
                    self.assertEqual(reply.status, 200, (scope, other, reply.body))
                else:
                    self.assertRefused(reply, 403, "forbidden")
                    self.assertIn(other, reply.error["message"])
        key = self.server.key("--tenant", "studio", "--scopes", "cancel")["key"]
        self.assertEqual(self.server.call("DELETE", f"/v1/videos/{video}", key=key).status, 200)

    def test_models_of_a_key(self):
        body = {"prompt": "a ball", **SMALL}
        for models, status in ((MODEL, 200), (f"other,{MODEL}", 200), ("other", 403)):
            key = self.server.key("--tenant", "studio", "--only-models", models)["key"]
            self.assertEqual(self.server.post("/v1/videos", body, key=key).status, status, models)

    def test_tiers_of_a_key(self):
        key = self.server.key("--tenant", "studio", "--priorities", "flex")["key"]
        self.assertEqual(self.server.create(key=key)["service_tier"], "flex", "the one it has")
        reply = self.server.post("/v1/videos", {"prompt": "a ball", "service_tier": "priority"}, key=key)
        self.assertRefused(reply, 403, "forbidden")

    def test_regions(self):
        key = self.server.key("--tenant", "studio", "--region", "eu")["key"]
        self.assertRefused(self.server.post("/v1/videos", {"prompt": "a ball"}, key=key), 403, "forbidden")
        server = self.another("--region", "eu")
        key = server.key("--tenant", "studio", "--region", "eu")["key"]
        server.start().create(key=key)

    def test_how_a_key_is_sent(self):
        key = self.studio["key"]
        for value, status in ((f"Bearer {key}", 200), (f"bearer   {key}", 200), (key, 401), (f"Basic {key}", 401),
                              ("Bearer ", 401), (f"Bearer {key}x", 401)):
            self.assertEqual(self.server.get("/v1/videos", headers={"Authorization": value}).status, status, value)
        reply = self.server.get("/v1/videos")
        self.assertRefused(reply, 401, "invalid_api_key")
        self.assertEqual(reply.headers["www-authenticate"], "Bearer")

    def test_no_key_is_ever_logged(self):
        log = self.server.log()
        for made in (self.studio, self.second, self.rival):
            self.assertNotIn(made["key"].rpartition("_")[2], log)


class FirstKey(ServerCase):
    """The first key switches asking on, in the server that runs."""

    def test_it(self):
        video = self.server.create()
        made = self.server.key("--tenant", "default")
        self.assertRefused(self.server.get("/v1/videos"), 401, "invalid_api_key")
        self.assertEqual(self.server.video(video["id"], key=made["key"])["id"], video["id"])
