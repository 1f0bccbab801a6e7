/* SPDX-License-Identifier: Apache-2.0
 *
 * The definitions are what protoc made of the .proto files of server/schema, kept as bytes. A walk over those bytes
 * finds the file that defines a symbol; they are ours, so it trusts their lengths and asserts them. */
#include "server/reflection.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include <reflection.pb-c.h>
#include "server/proto.h"

#define DESCRIPTOR(name, ...) static const unsigned char name##_file[] = {__VA_ARGS__};
#include <descriptors.inc>
#undef DESCRIPTOR

/* Each is a FileDescriptorSet: field 1, one file. */
static const struct {
    const unsigned char *bytes;
    size_t count;
} files[] = {
#define DESCRIPTOR(name, ...) {name##_file, sizeof name##_file},
#include <descriptors.inc>
#undef DESCRIPTOR
};

/* ---- a walk over definitions ---- */

typedef struct part {
    const unsigned char *at, *end;
} part;

static uint64_t read_varint(part *p)
{
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        assert(p->at < p->end && shift < 64);
        value |= (uint64_t)(*p->at & 0x7f) << shift;
        if (!(*p->at++ & 0x80)) return value;
    }
}

/* The next field: its number, and its content where that has a length. False: the end. */
static bool next_field(part *p, uint32_t *field, part *content)
{
    if (p->at == p->end) return false;
    const uint64_t tag = read_varint(p);
    *field = (uint32_t)(tag >> 3);
    *content = (part){0};
    if ((tag & 7) == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED) {
        const uint64_t count = read_varint(p);
        assert(count <= (uint64_t)(p->end - p->at));
        *content = (part){p->at, p->at + count};
        p->at += count;
    } else {
        assert((tag & 7) == PROTOBUF_C_WIRE_TYPE_VARINT); /* descriptors have no other kinds */
        read_varint(p);
    }
    return true;
}

static part field_of(part message, uint32_t wanted)
{
    uint32_t field;
    part content;
    while (next_field(&message, &field, &content))
        if (field == wanted) return content;
    return (part){0};
}

static bool is(part text, const char *name)
{
    const size_t count = (size_t)(text.end - text.at);
    return strlen(name) == count && (count == 0 || memcmp(text.at, name, count) == 0);
}

/* The rest of `name` behind "text."; NULL: it does not begin so. */
static const char *behind(const char *name, part text)
{
    const size_t count = (size_t)(text.end - text.at);
    return strlen(name) > count && memcmp(name, text.at, count) == 0 && name[count] == '.' ? name + count + 1 : NULL;
}

/* Field numbers of descriptor.proto. */
enum { FILE_NAME = 1, FILE_PACKAGE = 2, FILE_MESSAGE = 4, FILE_ENUM = 5, FILE_SERVICE = 6 };
enum { NAME = 1, MESSAGE_FIELD = 2, MESSAGE_NESTED = 3, MESSAGE_ENUM = 4, SERVICE_METHOD = 2 };

static bool defines(part thing, const char *name, bool message)
{
    uint32_t field;
    part content;
    const part own = field_of(thing, NAME);
    const char *rest = behind(name, own);
    if (is(own, name)) return true;
    if (!rest) return false;
    while (next_field(&thing, &field, &content)) {
        if (message && field == MESSAGE_NESTED && defines(content, rest, true)) return true;
        if (message && field == MESSAGE_ENUM && is(field_of(content, NAME), rest)) return true;
        if (field == MESSAGE_FIELD && is(field_of(content, NAME), rest)) return true; /* or a service's method */
    }
    return false;
}

static part file_at(size_t index)
{
    return field_of((part){files[index].bytes, files[index].bytes + files[index].count}, 1);
}

static bool found(kn_definition *out, part file)
{
    *out = (kn_definition){.bytes = file.at, .count = (size_t)(file.end - file.at)};
    return true;
}

bool kn_definition_of_file(kn_definition *out, const char *name)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (is(field_of(file_at(i), FILE_NAME), name)) return found(out, file_at(i));
    return false;
}

bool kn_definition_of_symbol(kn_definition *out, const char *name)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        uint32_t field;
        part content, file = file_at(i);
        const char *rest = behind(name, field_of(file, FILE_PACKAGE));
        while (rest && next_field(&file, &field, &content)) {
            const bool named = field == FILE_MESSAGE || field == FILE_ENUM || field == FILE_SERVICE;
            if (named && defines(content, rest, field == FILE_MESSAGE)) return found(out, file_at(i));
        }
    }
    return false;
}

/* ---- the service ---- */

typedef Grpc__Reflection__V1__ServerReflectionRequest reflection_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse reflection_response;

enum { RESPONSE_BYTES_MAX = 256 << 10 };

static kn_status send(kn_grpc_call *call, const reflection_response *response)
{
    kn_text text = kn_text_growing(RESPONSE_BYTES_MAX);
    kn_proto_write(&text, &response->base);
    kn_status st = kn_text_status(&text);
    if (st == KN_OK) st = kn_grpc_send(call, text.bytes, text.count);
    kn_text_release(&text);
    return st;
}

static kn_status send_error(kn_grpc_call *call, reflection_response *response, kn_grpc_code code, char *words)
{
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = (int32_t)code;
    error.error_message = words;
    response->message_response_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response->error_response = &error;
    return send(call, response);
}

static kn_status send_services(kn_grpc_call *call, reflection_response *response)
{
    Grpc__Reflection__V1__ServiceResponse services[KN_GRPC_SERVICES_MAX], *list[KN_GRPC_SERVICES_MAX];
    Grpc__Reflection__V1__ListServiceResponse all = GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    const kn_grpc_server *server = kn_grpc_call_server(call);
    all.n_service = kn_grpc_service_count(server);
    all.service = list;
    for (size_t i = 0; i < all.n_service; i++) {
        services[i] = (Grpc__Reflection__V1__ServiceResponse)GRPC__REFLECTION__V1__SERVICE_RESPONSE__INIT;
        services[i].name = (char *)(uintptr_t)kn_grpc_service_at(server, i)->name;
        list[i] = &services[i];
    }
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response->list_services_response = &all;
    return send(call, response);
}

static kn_status send_definition(kn_grpc_call *call, reflection_response *response, const char *name, bool file)
{
    char words[160];
    kn_definition definition;
    if (!(file ? kn_definition_of_file(&definition, name) : kn_definition_of_symbol(&definition, name))) {
        snprintf(words, sizeof words, "There is no protobuf definition of '%.100s' here.", name);
        return send_error(call, response, KN_GRPC_NOT_FOUND, words);
    }
    ProtobufCBinaryData bytes = {.len = definition.count, .data = (uint8_t *)(uintptr_t)definition.bytes};
    Grpc__Reflection__V1__FileDescriptorResponse all = GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    all.n_file_descriptor_proto = 1;
    all.file_descriptor_proto = &bytes;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response->file_descriptor_response = &all;
    return send(call, response);
}

static kn_status answer(kn_grpc_call *call, reflection_request *request)
{
    reflection_response response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    response.valid_host = request->host;
    response.original_request = request;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        return send_services(call, &response);
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        return send_definition(call, &response, request->file_by_filename, true);
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        return send_definition(call, &response, request->file_containing_symbol, false);
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        return send_error(call, &response, KN_GRPC_NOT_FOUND, (char[]){"Nothing here has extensions."});
    default: return send_error(call, &response, KN_GRPC_INVALID_ARGUMENT, (char[]){"The request asks for nothing."});
    }
}

static void on_message(kn_grpc_call *call, const void *bytes, size_t count)
{
    ProtobufCMessage *message;
    kn_api_error error;
    if (kn_proto_read(&message, &grpc__reflection__v1__server_reflection_request__descriptor, bytes, count, &error) !=
        KN_OK) {
        kn_grpc_fail(call, &error);
        return;
    }
    const kn_status st = answer(call, (reflection_request *)message);
    kn_proto_free(&message);
    if (st == KN_OK) return;
    kn_grpc_finish(call, KN_GRPC_RESOURCE_EXHAUSTED, "Answers are read too slowly, or there is no memory.");
}

static void on_half_closed(kn_grpc_call *call)
{
    kn_grpc_finish(call, KN_GRPC_OK, NULL);
}

static void on_closed(kn_grpc_call *call)
{
    (void)call; /* nothing is kept between messages */
}

static const kn_grpc_method methods[] = {
    {.name = "ServerReflectionInfo",
     .client_streams = true,
     .server_streams = true,
     .message_bytes = 4096,
     .message = on_message,
     .half_closed = on_half_closed,
     .closed = on_closed},
};

const kn_grpc_service kn_reflection_service = {
    .name = "grpc.reflection.v1.ServerReflection", .methods = methods, .method_count = 1};
const kn_grpc_service kn_reflection_alpha_service = {
    .name = "grpc.reflection.v1alpha.ServerReflection", .methods = methods, .method_count = 1};
