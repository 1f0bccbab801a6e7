# SPDX-License-Identifier: Apache-2.0
"""Webhooks at a receiver on this machine, verified by openai's code and by standardwebhooks' own."""
import socket
import sys
import time
import unittest
from pathlib import Path

import openai
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from harness import KINORA, PATIENCE, SMALL, Receiver, ServerCase, run, wait_for

LONG = {"num_inference_steps": 200, "num_frames": 81}


class WebhookCase(ServerCase):
    @classmethod
    def setUpClass(cls):
        cls.receiver = Receiver()
        cls.addClassCleanup(cls.receiver.close)
        cls.flags = ("--webhook-development", "true", "--webhook-allow", cls.receiver.address)
        super().setUpClass()

    def endpoint(self, path, events=("video.completed", "video.failed"), script=None):
        """A new endpoint at that path of the receiver, forgotten at the end of the test."""
        if script:
            self.receiver.script[path] = list(script)
        made = self.server.client().webhooks.create(url=self.receiver.url(path), name=f"to {path}",
                                                    event_types=list(events))
        self.addCleanup(lambda: self.server.call("DELETE", f"/v1/webhook_endpoints/{made.id}"))
        return made

    def listed(self, endpoint):
        return next((e for e in self.server.client().webhooks.list() if e.id == endpoint.id), None)

    def verified(self, delivery, secret):
        """By both libraries; the event."""
        event = openai.OpenAI(api_key="unused").webhooks.unwrap(delivery.body, delivery.headers, secret=secret)
        self.assertEqual(Webhook(secret).verify(delivery.body.decode(), delivery.headers), delivery.event)
        self.assertEqual(event.id, delivery.headers["webhook-id"])
        return event


class EndpointCalls(WebhookCase):
    """openai's client.webhooks, all of it."""

    def setUp(self):
        self.webhooks = self.server.client().webhooks

    def test_retrieve(self):
        made = self.endpoint("/retrieve")
        found = self.webhooks.retrieve(made.id)
        self.assertEqual((found.id, found.url, found.name, found.event_types, found.created_at),
                         (made.id, made.url, made.name, made.event_types, made.created_at))
        self.assertEqual(found.signing_secret_hint, "whsec_..." + made.signing_secret[-4:])
        self.assertNotIn(made.signing_secret, found.to_json())
        for call in (self.webhooks.retrieve, self.webhooks.rotate_secret):
            with self.assertRaises(openai.NotFoundError):
                call("we_" + "0" * 32)
        self.assertEqual(self.webhooks.event_types.list().data, ["video.completed", "video.failed"])

    def test_update(self):
        made = self.endpoint("/before")
        changed = self.webhooks.update(made.id, url=self.receiver.url("/after"), event_types=["video.completed"])
        self.assertEqual((changed.id, changed.name, changed.created_at), (made.id, made.name, made.created_at))
        self.assertEqual((changed.url, changed.event_types), (self.receiver.url("/after"), ["video.completed"]))
        self.assertEqual(self.webhooks.retrieve(made.id).to_dict(), changed.to_dict())
        self.server.completed()
        delivery, = self.receiver.await_count("/after", 1)
        self.verified(delivery, made.signing_secret)  # it stays
        self.assertEqual(self.receiver.at("/before"), [])
        path = f"/v1/webhook_endpoints/{made.id}"
        for body, code, param in (({"url": "https://10.0.0.1/"}, "invalid_value", "url"),
                                  ({"url": 7}, "invalid_type", "url"), ({"x": 1}, "unknown_parameter", "x"),
                                  ({"event_types": []}, "invalid_type", "event_types")):
            self.assertRefused(self.server.post(path, body), 400, code, param)
        self.assertEqual(self.webhooks.retrieve(made.id).to_dict(), changed.to_dict())

    def test_update_switches_on_again(self):
        made = self.endpoint("/gone", script=[410])
        self.server.completed()
        self.receiver.await_count("/gone", 1)
        wait_for("it to be switched off", lambda: not self.listed(made).enabled)
        self.assertTrue(self.webhooks.update(made.id, name="back").enabled)
        self.server.completed()
        self.receiver.await_count("/gone", 2)

    def test_rotate(self):
        made = self.endpoint("/rotate")
        kept = self.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        self.assertNotEqual(kept.signing_secret, made.signing_secret)
        self.server.completed()
        delivery, = self.receiver.await_count("/rotate", 1)
        self.verified(delivery, made.signing_secret)
        self.verified(delivery, kept.signing_secret)
        alone = self.webhooks.rotate_secret(made.id)
        self.server.completed()
        delivery = self.receiver.await_count("/rotate", 2)[1]
        self.verified(delivery, alone.signing_secret)
        for secret in (made.signing_secret, kept.signing_secret):
            with self.assertRaises(WebhookVerificationError):
                Webhook(secret).verify(delivery.body.decode(), delivery.headers)

    def test_a_sample(self):
        made = self.endpoint("/sample", script=[200, 503])
        done = self.webhooks.test(made.id, event_type="video.failed")
        self.assertEqual((done.object, done.webhook_endpoint_id, done.event_type, done.status_code, done.success),
                         ("webhook_endpoint.test", made.id, "video.failed", 200, True))
        delivery, = self.receiver.await_count("/sample", 1)
        self.assertEqual(self.verified(delivery, made.signing_secret).type, "video.failed")
        self.assertEqual(self.webhooks.test(made.id, event_type="video.completed").status_code, 503)
        time.sleep(1.5)
        self.assertEqual(len(self.receiver.at("/sample")), 2, "a sample is sent once")
        path = f"/v1/webhook_endpoints/{made.id}/test"
        self.assertRefused(self.server.post(path, {"event_type": "batch.failed"}), 400, "invalid_value", "event_type")
        self.assertRefused(self.server.post(path, {}), 400, "missing_required_parameter", "event_type")

    def test_a_sample_nobody_takes(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            server = self.another("--webhook-development", "true", "--webhook-allow",
                                  f"127.0.0.1:{unused.getsockname()[1]}").start()
            made = server.post("/v1/webhook_endpoints",
                               {"url": f"http://127.0.0.1:{unused.getsockname()[1]}/hook"}).json()
            reply = server.post(f"/v1/webhook_endpoints/{made['id']}/test", {"event_type": "video.failed"})
            self.assertRefused(reply, 400, "endpoint_unreachable")
            self.assertEqual(server.stop(), 0)


class Deliveries(WebhookCase):
    device = "fake:step_ms=2,poison=kaboom"
    seconds = 30

    def test_completed(self):
        endpoint = self.endpoint("/completed")
        self.assertRegex(endpoint.signing_secret, "^whsec_")
        video = self.server.completed()
        delivery, = self.receiver.await_count("/completed", 1)
        event = self.verified(delivery, endpoint.signing_secret)
        self.assertEqual((event.object, event.type, event.data.id), ("event", "video.completed", video["id"]))
        self.assertLessEqual(abs(event.created_at - video["completed_at"]), 1)
        self.assertEqual(set(delivery.event), {"id", "object", "created_at", "type", "data"})
        self.assertRegex(event.id, "^evt_")
        self.assertEqual(delivery.headers["content-type"], "application/json")
        self.assertLess(len(delivery.body), 20000)

    def test_once_when_it_was_taken(self):
        self.endpoint("/once")
        self.server.completed()
        self.receiver.await_count("/once", 1)
        self.server.completed()  # the first is long settled when the second arrives
        self.receiver.await_count("/once", 2)
        time.sleep(1.5)
        ids = [d.event["data"]["id"] for d in self.receiver.at("/once")]
        self.assertEqual(len(ids), 2, "an answer of 200 ends a delivery")
        self.assertEqual(len(set(ids)), 2)

    def test_failed(self):
        endpoint = self.endpoint("/failed")
        video = self.server.create("kaboom")
        delivery, = self.receiver.await_count("/failed", 1)
        event = self.verified(delivery, endpoint.signing_secret)
        self.assertEqual((event.type, event.data.id), ("video.failed", video["id"]))
        self.assertEqual(self.server.video(video["id"])["error"]["code"], "poison")

    def test_cancelled_is_failed(self):
        endpoint = self.endpoint("/cancelled")
        video = self.server.create(**LONG)
        self.assertEqual(self.server.post(f"/v1/videos/{video['id']}/cancel").status, 200)
        delivery, = self.receiver.await_count("/cancelled", 1)
        event = self.verified(delivery, endpoint.signing_secret)
        self.assertEqual((event.type, event.data.id), ("video.failed", video["id"]))

    def test_only_the_events_asked_for(self):
        self.endpoint("/completed-only", ["video.completed"])
        self.endpoint("/failed-only", ["video.failed"])
        done = self.server.completed()
        lost = self.server.create(**LONG)
        self.server.post(f"/v1/videos/{lost['id']}/cancel")
        completed, = self.receiver.await_count("/completed-only", 1)
        failed, = self.receiver.await_count("/failed-only", 1)
        self.assertEqual((completed.event["data"]["id"], failed.event["data"]["id"]), (done["id"], lost["id"]))

    def test_each_endpoint_has_its_own_secret(self):
        one, two = self.endpoint("/one"), self.endpoint("/two")
        self.assertNotEqual(one.signing_secret, two.signing_secret)
        self.server.completed()
        at_one, = self.receiver.await_count("/one", 1)
        at_two, = self.receiver.await_count("/two", 1)
        self.assertEqual(at_one.headers["webhook-id"], at_two.headers["webhook-id"], "one event")
        self.verified(at_one, one.signing_secret)
        self.verified(at_two, two.signing_secret)

    def test_forged_ones_are_told(self):
        endpoint = self.endpoint("/forged")
        self.server.completed()
        delivery, = self.receiver.await_count("/forged", 1)
        other = self.endpoint("/other").signing_secret
        body = delivery.body.replace(b"completed", b"failed")
        client = openai.OpenAI(api_key="unused")
        for forged, secret in ((body, endpoint.signing_secret), (delivery.body, other)):
            with self.assertRaises(openai.InvalidWebhookSignatureError):
                client.webhooks.unwrap(forged, delivery.headers, secret=secret)
            with self.assertRaises(WebhookVerificationError):
                Webhook(secret).verify(forged.decode(), delivery.headers)

    def test_repeated_under_the_same_id(self):
        """500, then a redirect somewhere that is not followed, then 200: three attempts, the pauses 5 s and more."""
        endpoint = self.endpoint("/repeated", script=[500, 200])
        moved = self.endpoint("/moved", script=[307, 200])
        self.server.completed()
        for path, secret in (("/repeated", endpoint.signing_secret), ("/moved", moved.signing_secret)):
            first, second = self.receiver.await_count(path, 2)[:2]
            self.assertGreater(second.at - first.at, 4.4, "the first pause is 5 s, a tenth less at most")
            self.assertEqual(first.headers["webhook-id"], second.headers["webhook-id"])
            self.assertEqual(first.body, second.body)
            self.assertGreater(int(second.headers["webhook-timestamp"]), int(first.headers["webhook-timestamp"]))
            self.assertNotEqual(first.headers["webhook-signature"], second.headers["webhook-signature"])
            self.verified(first, secret)
            self.verified(second, secret)
        time.sleep(1.5)
        self.assertEqual([len(self.receiver.at(path)) for path in ("/repeated", "/moved", "/landing")], [2, 2, 0])

    def test_gone_switches_the_endpoint_off(self):
        endpoint = self.endpoint("/gone", script=[410])
        self.server.completed()
        self.receiver.await_count("/gone", 1)
        wait_for("the endpoint being off", lambda: not self.listed(endpoint).enabled)
        witness = self.endpoint("/witness")
        self.server.completed()
        self.receiver.await_count("/witness", 1)
        self.assertEqual(len(self.receiver.at("/gone")), 1)
        self.assertTrue(self.listed(witness).enabled)


class Notifier(unittest.TestCase):
    """The process that sends, without a server around it."""
    seconds = 17

    def test_its_deliveries(self):
        done = run(sys.executable, str(Path(__file__).with_name("webhooks.py")), KINORA, timeout=3 * PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class Endpoints(WebhookCase):
    def test_list_and_delete(self):
        endpoint = self.endpoint("/listed", ["video.failed"])
        shown = self.listed(endpoint)
        self.assertEqual((shown.url, shown.name, shown.event_types, shown.enabled),
                         (endpoint.url, "to /listed", ["video.failed"], True))
        self.assertEqual((shown.object, shown.created_at), ("webhook_endpoint", endpoint.created_at))
        self.assertNotIn(endpoint.signing_secret, self.server.get("/v1/webhook_endpoints").body.decode())
        webhooks = self.server.client().webhooks
        gone = webhooks.delete(endpoint.id)
        self.assertEqual((gone.id, gone.deleted, gone.object), (endpoint.id, True, "webhook_endpoint.deleted"))
        self.assertIsNone(self.listed(endpoint))
        for endpoint_id in (endpoint.id, "we_1", "nonsense"):
            with self.assertRaises(openai.NotFoundError):
                webhooks.delete(endpoint_id)

    def test_what_may_be_left_out(self):
        """Both events, and no name."""
        made = self.server.post("/v1/webhook_endpoints", {"url": self.receiver.url("/short")}).json()
        self.assertEqual((made["event_types"], made["name"]), (["video.completed", "video.failed"], ""))
        self.server.client().webhooks.delete(made["id"])

    def test_places_it_may_not_reach(self):
        for url in ("http://127.0.0.1:9/", "https://127.0.0.1/", "https://10.0.0.1/", "https://169.254.169.254/latest",
                    "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://0x7f.1/", "ftp://example.com/",
                    "https://user@example.com/", "example.com", ""):
            reply = self.server.post("/v1/webhook_endpoints", {"url": url})
            self.assertRefused(reply, 400, "invalid_value", "url")

    def test_wrong_bodies(self):
        url = self.receiver.url("/wrong")
        for body, code, param in (({}, "missing_required_parameter", "url"),
                                  ({"url": 7}, "invalid_type", "url"),
                                  ({"url": url, "event_types": ["batch.failed"]}, "invalid_value", "event_types"),
                                  ({"url": url, "event_types": []}, "invalid_type", "event_types"),
                                  ({"url": url, "name": 7}, "invalid_type", "name"),
                                  ({"url": url, "name": "x" * 257}, "invalid_value", "name"),
                                  ({"url": url, "secret": "x"}, "unknown_parameter", "secret")):
            self.assertRefused(self.server.post("/v1/webhook_endpoints", body), 400, code, param)

    def test_https_only_without_development(self):
        server = self.another().start()
        reply = server.post("/v1/webhook_endpoints", {"url": "http://example.com/hook"})
        self.assertRefused(reply, 400, "invalid_value", "url")

    def test_switched_off(self):
        server = self.another("--webhooks", "false").start()
        reply = server.post("/v1/webhook_endpoints", {"url": "https://example.com/hook"})
        self.assertRefused(reply, 400, "webhooks_off")


class Killed(WebhookCase):
    seconds = 15

    def test_delivered_after_a_kill(self):
        """Killed when the job is completed and the receiver has not answered yet; sent again by the next server."""
        endpoint = self.endpoint("/killed", script=[0, 200])
        video = self.server.create()
        first, = self.receiver.await_count("/killed", 1)
        self.server.kill()
        self.server.start()
        self.assertEqual(self.server.video(video["id"])["status"], "completed")
        second = self.receiver.await_count("/killed", 2)[1]
        self.assertEqual(first.headers["webhook-id"], second.headers["webhook-id"])
        event = self.verified(second, endpoint.signing_secret)
        self.assertEqual((event.type, event.data.id), ("video.completed", video["id"]))

    def test_a_receiver_that_was_away(self):
        """Nobody listens while the job completes, the server is killed, then somebody does."""
        away = Receiver()
        url, address = away.url("/away"), away.address
        away.close()
        server = self.another("--webhook-development", "true", "--webhook-allow", address).start()
        made = server.post("/v1/webhook_endpoints", {"url": url}).json()
        video = server.completed(**SMALL)
        server.kill()
        back = Receiver(int(address.rpartition(":")[2]))
        self.addCleanup(back.close)
        server.start()
        delivery = back.await_count("/away", 1)[0]
        self.assertEqual(self.verified(delivery, made["signing_secret"]).data.id, video["id"])
        self.assertEqual(server.stop(), 0)
