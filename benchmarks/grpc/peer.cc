// SPDX-License-Identifier: Apache-2.0
//
// gRPC's own C++ server on the core that grpcio wraps, at its best: its callback API, no codec, a fixed answer to any
// unary call. Built by benchmarks/grpc/measure where libgrpc++-dev is installed; never part of the product.
//
//   peer ADDRESS ANSWER_FILE
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

namespace
{

class answer final : public grpc::ServerGenericBidiReactor
{
  public:
    explicit answer(const grpc::ByteBuffer &reply) : reply_(reply)
    {
        StartRead(&request_);
    }
    void OnReadDone(bool good) override
    {
        if (good)
            StartWriteAndFinish(&reply_, grpc::WriteOptions(), grpc::Status::OK);
        else
            Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no message"));
    }
    void OnDone() override
    {
        delete this;
    }

  private:
    grpc::ByteBuffer request_, reply_;
};

class service final : public grpc::CallbackGenericService
{
  public:
    explicit service(const std::string &bytes)
    {
        grpc::Slice slice(bytes);
        reply_ = grpc::ByteBuffer(&slice, 1);
    }
    grpc::ServerGenericBidiReactor *CreateReactor(grpc::GenericCallbackServerContext *) override
    {
        return new answer(reply_);
    }

  private:
    grpc::ByteBuffer reply_;
};

} // namespace

int main(int argc, char **argv)
{
    if (argc != 3) return 64;
    std::ifstream file(argv[2], std::ios::binary);
    service generic{std::string(std::istreambuf_iterator<char>(file), {})};
    grpc::ServerBuilder builder;
    builder.AddListeningPort(argv[1], grpc::InsecureServerCredentials());
    builder.RegisterCallbackGenericService(&generic);
    auto server = builder.BuildAndStart();
    if (!server) return 69;
    std::puts("ready");
    std::fflush(stdout);
    server->Wait();
}
