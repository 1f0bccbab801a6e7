# SPDX-License-Identifier: Apache-2.0
"""Triton's own gRPC client, gRPC's health checking and reflection clients. What an inference makes is a job of the
Videos API."""
import queue
import signal

import grpc
import numpy
import tritonclient.grpc as triton
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from harness import MODEL, PATIENCE, SMALL, ServerCase, wait_for

TYPES = {"BYTES": numpy.object_, "INT32": numpy.int32, "INT64": numpy.int64, "FP32": numpy.float32}
INFERENCE = "inference.GRPCInferenceService"
GRPC = ("--grpc", "127.0.0.1:0")


def tensor(name, value, kind):
    made = triton.InferInput(name, [1], kind)
    made.set_data_from_numpy(numpy.array([value], dtype=TYPES[kind]))
    return made


def small(prompt="a ball", steps=SMALL["num_inference_steps"]):
    return [tensor("prompt", prompt, "BYTES"), tensor("size", "64x64", "BYTES"),
            tensor("num_frames", SMALL["num_frames"], "INT32"), tensor("num_inference_steps", steps, "INT32"),
            tensor("seed", SMALL["seed"], "INT64")]


class GrpcCase(ServerCase):
    flags = GRPC

    @property
    def target(self):
        return self.server.said["grpc"][0]

    def setUp(self):
        super().setUp()
        self.channel = grpc.insecure_channel(self.target)
        self.addCleanup(self.channel.close)
        self.triton = triton.InferenceServerClient(self.target)
        self.addCleanup(self.triton.close)

    def refusal(self, call, *arguments, **options):
        with self.assertRaises(InferenceServerException) as caught:
            call(*arguments, **options)
        return caught.exception


class Probes(GrpcCase):
    seconds = 4

    def check(self, service=""):
        stub = health_pb2_grpc.HealthStub(self.channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE).status

    def test_check(self):
        for service in ("", "grpc.health.v1.Health", INFERENCE):
            self.assertEqual(self.check(service), health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            self.check("no.such.Service")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_watch_hears_of_a_drain(self):
        server = self.another(*GRPC).start()
        with grpc.insecure_channel(server.said["grpc"][0]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            unknown = stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
            self.assertEqual(next(unknown).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
            with self.assertRaises(grpc.RpcError) as caught:
                next(watch)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(server.wait(), 0)

    def test_a_broken_message(self):
        call = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        for body in (b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\xff" * 100):
            with self.assertRaises(grpc.RpcError) as caught:
                call(body, timeout=PATIENCE)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)


class Reflection(GrpcCase):
    def test_services_and_definitions(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = database.get_services()
        for name in ("grpc.health.v1.Health", INFERENCE, "grpc.reflection.v1.ServerReflection",
                     "grpc.reflection.v1alpha.ServerReflection"):
            self.assertIn(name, services)
        pool = DescriptorPool(database)
        for name in services:
            if name.startswith("kinora."):
                with self.assertRaises(KeyError):  # FlatBuffers have no protobuf definition
                    pool.FindServiceByName(name)
            else:
                self.assertTrue(pool.FindServiceByName(name).methods)
        # A client that knows nothing but the names can call.
        method = pool.FindServiceByName(INFERENCE).FindMethodByName("ModelReady")
        ask, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = self.channel.unary_unary(f"/{INFERENCE}/ModelReady", ask.SerializeToString, answer.FromString)
        self.assertTrue(call(ask(name=MODEL), timeout=PATIENCE).ready)

    def test_version_one(self):
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        name = "grpc.reflection.v1.ServerReflection"
        method = pool.FindServiceByName(name).FindMethodByName("ServerReflectionInfo")
        ask, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = self.channel.stream_stream(f"/{name}/ServerReflectionInfo", ask.SerializeToString, answer.FromString)
        asked = [ask(host="here", list_services=""), ask(file_by_filename="health.proto"),
                 ask(file_containing_symbol="inference.ModelInferRequest.InferInputTensor"),
                 ask(file_containing_symbol="inference.NoSuch"), ask(all_extension_numbers_of_type="x"), ask()]
        answers = list(call(iter(asked), timeout=PATIENCE))
        self.assertEqual([a.WhichOneof("message_response") for a in answers],
                         ["list_services_response", "file_descriptor_response", "file_descriptor_response",
                          "error_response", "error_response", "error_response"])
        self.assertEqual(answers[0].valid_host, "here")
        self.assertEqual([a.error_response.error_code for a in answers[3:]], [5, 5, 3])

    def test_the_wire_format_is_tritons(self):
        """Field by field against the definitions that Triton's client was generated from."""
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        ours = pool.FindFileContainingSymbol(INFERENCE)
        compared = 0

        def compare(mine, theirs):
            nonlocal compared
            for field in mine.fields:
                other = theirs.fields_by_name[field.name]
                self.assertEqual((field.number, field.type, field.is_repeated), (other.number, other.type,
                                                                                  other.is_repeated), field.full_name)
                compared += 1
            for nested in mine.nested_types:
                compare(nested, theirs.nested_types_by_name[nested.name])

        for name, message in ours.message_types_by_name.items():
            theirs = (service_pb2.DESCRIPTOR.message_types_by_name.get(name) or
                      model_config_pb2.DESCRIPTOR.message_types_by_name[name])
            compare(message, theirs)
        for value in ours.enum_types_by_name["DataType"].values:
            self.assertEqual(model_config_pb2.DataType.Value(value.name), value.number)
        theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        for method in ours.services_by_name["GRPCInferenceService"].methods:
            other = theirs.methods_by_name[method.name]
            self.assertEqual((method.input_type.full_name, method.output_type.full_name, method.client_streaming),
                             (other.input_type.full_name, other.output_type.full_name, other.client_streaming))
        self.assertGreater(compared, 100)


class TritonGrpc(GrpcCase):
    seconds = 8

    def test_descriptions(self):
        self.assertTrue(self.triton.is_server_live() and self.triton.is_server_ready())
        self.assertTrue(self.triton.is_model_ready(MODEL) and self.triton.is_model_ready(MODEL, "1"))
        self.assertIn("StatusCode.NOT_FOUND", self.refusal(self.triton.is_model_ready, "no-such-model").status())
        server = self.triton.get_server_metadata(as_json=True)
        self.assertEqual(server["name"], "kinora")
        http = self.server.get("/v2").json()
        self.assertEqual(server["extensions"], http["extensions"])
        model = self.triton.get_model_metadata(MODEL, as_json=True)
        self.assertEqual([i["name"] for i in model["inputs"]],
                         [i["name"] for i in self.server.get(f"/v2/models/{MODEL}").json()["inputs"]])
        config = self.triton.get_model_config(MODEL).config
        self.assertEqual((config.name, config.backend, config.max_batch_size), (MODEL, "kinora", 0))
        self.assertTrue(config.model_transaction_policy.decoupled)
        self.assertEqual(config.version_policy.latest.num_versions, 1)
        self.assertIn("default_size", config.parameters)
        self.assertEqual([i.name for i in config.input if not i.optional], ["prompt"])
        self.assertIn("NOT_FOUND", self.refusal(self.triton.get_model_metadata, MODEL, "2").status())

    def test_an_inference_is_a_video(self):
        result = self.triton.infer(MODEL, small(), request_id="mine")
        self.assertEqual(result.get_response().id, "mine")
        video = self.server.video(result.as_numpy("video_id")[0].decode())
        self.assertEqual((video["status"], video["prompt"]), ("completed", "a ball"))
        self.assertEqual(result.as_numpy("video")[0], self.server.content(video["id"]))
        only = self.triton.infer(MODEL, small(), outputs=[triton.InferRequestedOutput("progress")])
        self.assertEqual([o.name for o in only.get_response().outputs], ["progress"])
        self.assertEqual(only.as_numpy("progress")[0], 100)

    def test_typed_contents(self):
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        request.parameters["num_inference_steps"].int64_param = 4
        request.parameters["num_frames"].uint64_param = 9
        for name, kind, field, value in [("prompt", "BYTES", "bytes_contents", b"a ball"),
                                         ("size", "BYTES", "bytes_contents", b"64x64"),
                                         ("guidance_scale", "FP32", "fp32_contents", 7.1),
                                         ("seed", "INT64", "int64_contents", 7)]:
            made = request.inputs.add(name=name, datatype=kind, shape=[1])
            getattr(made.contents, field).append(value)
        call = self.channel.unary_unary(f"/{INFERENCE}/ModelInfer", service_pb2.ModelInferRequest.SerializeToString,
                                        service_pb2.ModelInferResponse.FromString)
        answer = call(request, timeout=PATIENCE)
        at = [o.name for o in answer.outputs].index("video_id")
        video = self.server.video(answer.raw_output_contents[at][4:].decode())
        self.assertEqual((video["guidance_scale"], video["seed"], video["num_frames"]), (7.1, 7, 9))

    def test_refusals_name_the_field(self):
        for inputs, options, code, word in [
                (small()[1:], {}, "INVALID_ARGUMENT", "prompt"),
                (small()[:1] + [tensor("num_frames", 0, "INT32")], {}, "INVALID_ARGUMENT", "num_frames"),
                (small() + [tensor("steps", 1, "INT32")], {}, "INVALID_ARGUMENT", "steps"),
                (small(), {"parameters": {"bogus": 1}}, "INVALID_ARGUMENT", "bogus"),
                (small(), {"priority": 9}, "INVALID_ARGUMENT", "priority"),
                (small(), {"sequence_id": 5}, "INVALID_ARGUMENT", "sequence"),
                (small(), {"model_version": "2"}, "NOT_FOUND", "version")]:
            error = self.refusal(self.triton.infer, MODEL, inputs, **options)
            self.assertIn(code, error.status(), error)
            self.assertIn(word, error.message())
        self.assertIn("NOT_FOUND", self.refusal(self.triton.infer, "no-such-model", small()).status())

    def test_priority_timeout_and_idempotency(self):
        again = {"headers": {"idempotency-key": "once"}, "priority": 1}
        first, second = (self.triton.infer(MODEL, small(), **again).as_numpy("video_id")[0] for _ in range(2))
        self.assertEqual(first, second)
        self.assertEqual(self.server.video(first.decode())["service_tier"], "priority")
        error = self.refusal(self.triton.infer, MODEL, small("another"), **again)
        self.assertIn("Idempotency-Key", error.message())

    def test_repository_and_statistics(self):
        index = self.triton.get_model_repository_index(as_json=True)["models"]
        self.assertEqual([(m["name"], m["state"]) for m in index], [(MODEL, "READY")])
        self.triton.infer(MODEL, small())
        stats = self.triton.get_inference_statistics(MODEL, as_json=True)["model_stats"][0]
        http = self.server.get(f"/v2/models/{MODEL}/stats").json()["model_stats"][0]
        self.assertEqual(int(stats["inference_count"]), http["inference_count"])
        self.assertGreater(int(stats["inference_stats"]["compute_infer"]["ns"]), 0)
        self.assertIn("NOT_FOUND", self.refusal(self.triton.unload_model, "no-such-model").status())
        self.assertIn("config", self.refusal(self.triton.load_model, MODEL, config="{}").message())

    def test_the_callers_deadline_is_the_jobs_end(self):
        slow = self.another(*GRPC, device="fake:step_ms=300").start()
        with triton.InferenceServerClient(slow.said["grpc"][0]) as client:
            error = self.refusal(client.infer, MODEL, small()[:2], client_timeout=1.0)
            self.assertIn("DEADLINE_EXCEEDED", error.status())
        wait_for("a cancelled job", lambda: [v for v in slow.get("/v1/videos").json()["data"]
                                             if (v["error"] or {}).get("code") == "cancelled"])

    def test_asynchronous(self):
        answers = queue.Queue()
        for _ in range(4):
            self.triton.async_infer(MODEL, small(), lambda result, error: answers.put((result, error)))
        for _ in range(4):
            result, error = answers.get(timeout=PATIENCE)
            self.assertIsNone(error)
            self.assertEqual(result.as_numpy("status")[0], b"completed")


class TritonLoad(GrpcCase):
    seconds = 3

    def test_unload_and_load(self):
        self.triton.unload_model(MODEL)
        self.assertFalse(self.triton.is_model_ready(MODEL))
        self.assertEqual(self.triton.get_model_repository_index(as_json=True)["models"][0]["reason"], "unloaded")
        self.assertIn("UNAVAILABLE", self.refusal(self.triton.infer, MODEL, small()).status())
        self.triton.load_model(MODEL)
        self.triton.infer(MODEL, small())


class TritonStream(GrpcCase):
    seconds = 6
    device = "fake:step_ms=20"

    def stream(self, **options):
        answers = queue.Queue()
        self.triton.start_stream(callback=lambda result, error: answers.put((result, error)), **options)
        self.addCleanup(self.triton.stop_stream)
        return answers

    @staticmethod
    def last(result):
        return result.get_response().parameters["triton_final_response"].bool_param

    def test_progress_and_the_video(self):
        answers = self.stream()
        self.triton.async_stream_infer(MODEL, small(steps=20), request_id="one")
        seen = []
        while not seen or not self.last(seen[-1]):
            result, error = answers.get(timeout=PATIENCE)
            self.assertIsNone(error)
            self.assertEqual(result.get_response().id, "one")
            seen.append(result)
        progress = [int(r.as_numpy("progress")[0]) for r in seen]
        self.assertEqual(progress, sorted(progress))
        self.assertGreater(len(set(progress)), 4)
        self.assertEqual(progress[-1], 100)
        self.assertTrue(all(r.as_numpy("video") is None for r in seen[:-1]))
        video = self.server.video(seen[-1].as_numpy("video_id")[0].decode())
        self.assertEqual(seen[-1].as_numpy("video")[0], self.server.content(video["id"]))

    def test_an_error_leaves_the_stream_open(self):
        answers = self.stream()
        self.triton.async_stream_infer(MODEL, small()[1:], request_id="bad")
        result, error = answers.get(timeout=PATIENCE)
        self.assertIn("prompt", error.message())
        self.triton.async_stream_infer(MODEL, small(), request_id="good")
        while True:
            result, error = answers.get(timeout=PATIENCE)
            self.assertIsNone(error)
            if self.last(result):
                break
        self.assertEqual(result.get_response().id, "good")

    def test_many_requests_on_one_stream(self):
        answers = self.stream()
        names = {f"r{i}" for i in range(40)}  # more than are under way at a time
        for name in sorted(names):
            self.triton.async_stream_infer(MODEL, small(steps=1), request_id=name)
        ended = set()
        while ended != names:
            result, error = answers.get(timeout=PATIENCE)
            self.assertIsNone(error)
            if self.last(result):
                ended.add(result.get_response().id)

    def test_a_cancelled_stream_cancels_its_jobs(self):
        answers = self.stream()
        self.triton.async_stream_infer(MODEL, small(steps=200), request_id="long")
        result, _ = answers.get(timeout=PATIENCE)
        video_id = result.as_numpy("video_id")[0].decode()
        self.triton.stop_stream(cancel_requests=True)
        video = wait_for("the end", lambda: (v := self.server.video(video_id))["status"] == "failed" and v)
        self.assertEqual(video["error"]["code"], "cancelled")

    def test_a_drain_ends_streams(self):
        server = self.another(*GRPC, device="fake:step_ms=50").start()
        answers = queue.Queue()
        client = triton.InferenceServerClient(server.said["grpc"][0])
        self.addCleanup(client.close)
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer(MODEL, small(steps=200), request_id="long")
        answers.get(timeout=PATIENCE)
        server.process.send_signal(signal.SIGTERM)
        error = None
        while error is None:
            _, error = answers.get(timeout=PATIENCE)
        self.assertIn("shut down", error.message())
        client.stop_stream()
        self.assertEqual(server.wait(), 0)


class TritonGrpcKeys(GrpcCase):
    seconds = 3

    @classmethod
    def prepare(cls):
        cls.reader = cls.server.key("--tenant", "a", "--scopes", "read")["key"]
        cls.writer = cls.server.key("--tenant", "b", "--scopes", "submit,read")["key"]

    def test_scopes(self):
        client = self.triton
        self.assertTrue(client.is_model_ready(MODEL))
        self.assertIn("UNAUTHENTICATED", self.refusal(client.infer, MODEL, small()).status())
        as_reader, as_writer = ({"authorization": f"Bearer {key}"} for key in (self.reader, self.writer))
        client.get_model_metadata(MODEL, headers=as_reader)
        self.assertIn("PERMISSION_DENIED", self.refusal(client.infer, MODEL, small(), headers=as_reader).status())
        self.assertIn("PERMISSION_DENIED", self.refusal(client.unload_model, MODEL, headers=as_writer).status())
        client.infer(MODEL, small(), headers=as_writer)
        self.assertEqual(self.server.get("/v1/videos", key=self.reader).json()["data"], [])
        self.assertEqual(len(self.server.get("/v1/videos", key=self.writer).json()["data"]), 1)
