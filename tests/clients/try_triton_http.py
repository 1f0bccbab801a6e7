# SPDX-License-Identifier: Apache-2.0
"""Triton's own HTTP client against /v2: probes, descriptions, repository, statistics, inference with binary and JSON
tensors. What it makes is a job of the Videos API."""
import base64
import json

import numpy
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from harness import MODEL, SMALL, ServerCase, wait_for

TYPES = {"BYTES": numpy.object_, "INT32": numpy.int32, "INT64": numpy.int64, "FP32": numpy.float32}


def tensor(name, value, kind, binary=True):
    made = triton.InferInput(name, [1], kind)
    made.set_data_from_numpy(numpy.array([value], dtype=TYPES[kind]), binary_data=binary)
    return made


def small(prompt="a ball", binary=True):
    return [tensor("prompt", prompt, "BYTES", binary), tensor("size", "64x64", "BYTES", binary),
            tensor("num_frames", SMALL["num_frames"], "INT32", binary),
            tensor("num_inference_steps", SMALL["num_inference_steps"], "INT32", binary),
            tensor("seed", SMALL["seed"], "INT64", binary)]


class TritonHttp(ServerCase):
    seconds = 6

    def setUp(self):
        super().setUp()
        self.triton = triton.InferenceServerClient(self.server.url.split("://")[1])
        self.addCleanup(self.triton.close)

    def refusal(self, call, *arguments, **options):
        with self.assertRaises(InferenceServerException) as caught:
            call(*arguments, **options)
        return caught.exception

    def test_probes(self):
        self.assertTrue(self.triton.is_server_live())
        self.assertTrue(self.triton.is_server_ready())
        self.assertTrue(self.triton.is_model_ready(MODEL))
        self.assertTrue(self.triton.is_model_ready(MODEL, "1"))
        self.assertFalse(self.triton.is_model_ready(MODEL, "2"))
        self.assertFalse(self.triton.is_model_ready("no-such-model"))

    def test_descriptions(self):
        server = self.triton.get_server_metadata()
        self.assertEqual(server["name"], "kinora")
        self.assertIn("statistics", server["extensions"])
        self.assertNotIn("sequence", server["extensions"])
        model = self.triton.get_model_metadata(MODEL, "1")
        config = self.triton.get_model_config(MODEL)
        self.assertEqual(model["versions"], ["1"])
        self.assertEqual([i["name"] for i in model["inputs"]], [i["name"] for i in config["input"]])
        self.assertEqual([i["name"] for i in config["input"] if not i["optional"]], ["prompt"])
        self.assertEqual(config["max_batch_size"], 0)
        self.assertEqual(self.refusal(self.triton.get_model_metadata, "no-such-model").status(), "404")
        self.assertEqual(self.refusal(self.triton.get_model_config, MODEL, "2").status(), "404")

    def test_an_inference_is_a_video(self):
        result = self.triton.infer(MODEL, small(), request_id="mine")
        self.assertEqual(result.get_response()["id"], "mine")
        self.assertEqual(result.as_numpy("status")[0], b"completed")
        self.assertEqual(result.as_numpy("progress")[0], 100)
        video = self.server.video(result.as_numpy("video_id")[0].decode())
        self.assertEqual((video["status"], video["prompt"], video["seed"]), ("completed", "a ball", SMALL["seed"]))
        self.assertEqual(result.as_numpy("video")[0], self.server.content(video["id"]))
        # The same request through the Videos API makes the same bytes.
        other = self.server.completed()
        self.assertEqual(self.server.content(other["id"]), self.server.content(video["id"]))

    def test_json_tensors_and_chosen_outputs(self):
        outputs = [triton.InferRequestedOutput("video_id", binary_data=False)]
        result = self.triton.infer(MODEL, small(binary=False), outputs=outputs)
        self.assertEqual([o["name"] for o in result.get_response()["outputs"]], ["video_id"])
        video_id = result.as_numpy("video_id")[0]
        outputs.append(triton.InferRequestedOutput("video", binary_data=True))
        mixed = self.triton.infer(MODEL, small(), outputs=outputs)
        self.assertEqual(mixed.as_numpy("video")[0], self.server.content(video_id))

    def test_without_binary_data_a_video_is_base64(self):
        body = {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a ball"]},
                           {"name": "size", "datatype": "BYTES", "shape": [1], "data": ["64x64"]}],
                "parameters": SMALL}
        reply = self.server.post(f"/v2/models/{MODEL}/infer", body)
        self.assertEqual(reply.status, 200, reply.body)
        outputs = {o["name"]: o["data"][0] for o in reply.json()["outputs"]}
        self.assertEqual(base64.b64decode(outputs["video"]), self.server.content(outputs["video_id"]))

    def test_priority_and_timeout(self):
        result = self.triton.infer(MODEL, small(), priority=1, timeout=120_000_000)
        video = self.server.video(result.as_numpy("video_id")[0].decode())
        self.assertEqual(video["service_tier"], "priority")
        self.assertAlmostEqual(video["deadline_at"] - video["created_at"], 120, delta=2)

    def test_refusals_name_the_field(self):
        infer = self.triton.infer
        before = self.server.get("/v1/videos?limit=1").json()["first_id"]
        for inputs, options, status, word in [
                (small()[1:], {}, "400", "prompt"),
                (small()[:1] + [tensor("num_frames", 0, "INT32")], {}, "400", "num_frames"),
                (small()[:1] + [tensor("fps", "x", "BYTES")], {}, "400", "fps"),
                (small() + [tensor("steps", 1, "INT32")], {}, "400", "steps"),
                (small(), {"parameters": {"bogus": 1}}, "400", "bogus"),
                (small(), {"priority": 9}, "400", "priority"),
                (small(), {"sequence_id": 5}, "400", "sequence"),
                (small(), {"outputs": [triton.InferRequestedOutput("latents")]}, "400", "latents"),
                (small(), {"model_version": "2"}, "404", "version")]:
            error = self.refusal(infer, MODEL, inputs, **options)
            self.assertEqual(error.status(), status, error)
            self.assertIn(word, error.message())
        self.assertEqual(self.refusal(infer, "no-such-model", small()).status(), "404")
        self.assertEqual(self.server.get("/v1/videos?limit=1").json()["first_id"], before)

    def test_a_cut_binary_body_is_refused(self):
        head = json.dumps({"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1],
                                       "parameters": {"binary_data_size": 10}}]}).encode()
        for tail, word in [(b"\x06\0\0\0a bal", "binary_data_size"), (b"\x07\0\0\0a ball", "BYTES"),
                           (b"\x06\0\0\0a ball!", "belong to no input")]:
            reply = self.server.post(f"/v2/models/{MODEL}/infer", head + tail,
                                     headers={"Inference-Header-Content-Length": str(len(head))})
            self.assertEqual(reply.status, 400)
            self.assertIn(word, reply.json()["error"])

    def test_who_goes_away_cancels(self):
        slow = self.another(device="fake:step_ms=300").start()
        client = triton.InferenceServerClient(slow.url.split("://")[1], network_timeout=1.0, connection_timeout=5.0)
        self.addCleanup(client.close)
        with self.assertRaises(Exception):  # gevent's own timeout
            client.infer(MODEL, small()[:2])
        wait_for("a cancelled job", lambda: [v for v in slow.get("/v1/videos").json()["data"]
                                             if (v["error"] or {}).get("code") == "cancelled"])


class TritonRepository(ServerCase):
    seconds = 4

    def setUp(self):
        super().setUp()
        self.triton = triton.InferenceServerClient(self.server.url.split("://")[1])
        self.addCleanup(self.triton.close)

    def test_unload_and_load(self):
        self.triton.infer(MODEL, small())
        index = self.triton.get_model_repository_index()
        self.assertEqual(index, [{"name": MODEL, "version": "1", "state": "READY", "reason": ""}])
        running = self.server.create(num_inference_steps=100)
        self.triton.unload_model(MODEL)
        self.assertFalse(self.triton.is_model_ready(MODEL))
        self.assertEqual(self.triton.get_model_repository_index()[0]["reason"], "unloaded")
        with self.assertRaises(InferenceServerException) as caught:
            self.triton.infer(MODEL, small())
        self.assertEqual(caught.exception.status(), "503")
        self.assertEqual(self.server.post("/v1/videos", {"prompt": "x"}).status, 503)
        self.server.await_status(running["id"], "completed")  # what was accepted is made
        self.triton.load_model(MODEL)
        self.assertTrue(self.triton.is_model_ready(MODEL))
        self.triton.infer(MODEL, small())
        for call in (self.triton.load_model, self.triton.unload_model):
            with self.assertRaises(InferenceServerException) as caught:
                call("no-such-model")
            self.assertEqual(caught.exception.status(), "404")
        with self.assertRaises(InferenceServerException) as caught:
            self.triton.load_model(MODEL, config="{}")
        self.assertIn("config", caught.exception.message())

    def test_statistics(self):
        def stats():
            return self.triton.get_inference_statistics(MODEL, "1")["model_stats"][0]
        before = stats()
        self.triton.infer(MODEL, small())
        self.server.post(f"/v1/videos/{self.server.create(num_inference_steps=200)['id']}/cancel")
        after = wait_for("the cancelled one counted",
                         lambda: (s := stats())["inference_stats"]["fail"]["count"] >
                         before["inference_stats"]["fail"]["count"] and s)
        self.assertEqual(after["inference_count"], before["inference_count"] + 1)
        for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            self.assertEqual(after["inference_stats"][part]["count"], after["inference_count"])
            self.assertGreater(after["inference_stats"][part]["ns"], before["inference_stats"][part]["ns"])
        self.assertEqual(len(self.triton.get_inference_statistics()["model_stats"]), 1)


class TritonKeys(ServerCase):
    seconds = 4

    @classmethod
    def prepare(cls):
        cls.reader = cls.server.key("--tenant", "a", "--scopes", "read")["key"]
        cls.admin = cls.server.key("--tenant", "b", "--scopes", "submit,read,admin,metrics")["key"]

    def test_scopes(self):
        server, reader, admin = self.server, self.reader, self.admin
        client = triton.InferenceServerClient(server.url.split("://")[1])
        self.addCleanup(client.close)
        self.assertTrue(client.is_model_ready(MODEL))  # probes need no key
        for call, arguments in [(client.get_model_metadata, [MODEL]), (client.infer, [MODEL, small()]),
                                (client.unload_model, [MODEL]), (client.get_inference_statistics, [])]:
            with self.assertRaises(InferenceServerException) as caught:
                call(*arguments)
            self.assertEqual(caught.exception.status(), "401")
        as_reader, as_admin = ({"Authorization": f"Bearer {key}"} for key in (reader, admin))
        client.get_model_metadata(MODEL, headers=as_reader)
        for call, arguments in [(client.infer, [MODEL, small()]), (client.unload_model, [MODEL])]:
            with self.assertRaises(InferenceServerException) as caught:
                call(*arguments, headers=as_reader)
            self.assertEqual(caught.exception.status(), "403")
        result = client.infer(MODEL, small(), headers=as_admin)
        self.assertEqual(server.get("/v1/videos", key=reader).json()["data"], [])
        self.assertEqual(len(server.get("/v1/videos", key=admin).json()["data"]), 1)
        self.assertEqual(result.as_numpy("status")[0], b"completed")
        client.unload_model(MODEL, headers=as_admin)
