/* SPDX-License-Identifier: Apache-2.0 */
#include "server/proto.h"

#include <string.h>

#include "base/mem.h"

typedef struct budget {
    size_t left;
    bool spent;
} budget;

static void *take(void *data, size_t bytes)
{
    budget *b = data;
    if (bytes > b->left) {
        b->spent = true;
        return NULL;
    }
    b->left -= bytes;
    return kn_alloc(bytes ? bytes : 1);
}

static void give_back(void *data, void *memory)
{
    (void)data;
    kn_free(memory);
}

static bool strings_are_text(const ProtobufCMessage *message);

static bool is_text(const char *string)
{
    return !string || kn_text_characters(string, strlen(string)) >= 0;
}

/* One value of a field: a string or a message; others cannot be wrong. */
static bool value_is_text(const ProtobufCFieldDescriptor *field, const void *value)
{
    void *pointer;
    memcpy(&pointer, value, sizeof pointer);
    if (field->type == PROTOBUF_C_TYPE_STRING) return is_text(pointer);
    return !pointer || strings_are_text(pointer);
}

static bool strings_are_text(const ProtobufCMessage *message)
{
    const char *base = (const char *)message;
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE) continue;
        size_t count = 1;
        const char *values = base + field->offset;
        if (field->label == PROTOBUF_C_LABEL_REPEATED) {
            memcpy(&count, base + field->quantifier_offset, sizeof count);
            const void *array;
            memcpy(&array, values, sizeof array);
            values = array;
        } else if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
            uint32_t chosen; /* protobuf-c keeps the case in an enum */
            memcpy(&chosen, base + field->quantifier_offset, sizeof chosen);
            if (chosen != field->id) continue;
        }
        for (size_t k = 0; k < count; k++)
            if (!value_is_text(field, values + k * sizeof(void *))) return false;
    }
    return true;
}

kn_status kn_proto_read(ProtobufCMessage **out, const ProtobufCMessageDescriptor *type, const void *bytes, size_t count,
                        kn_api_error *error)
{
    budget b = {.left = KN_PROTO_MEMORY_BASE + KN_PROTO_MEMORY_TIMES * count};
    ProtobufCAllocator allocator = {.alloc = take, .free = give_back, .allocator_data = &b};
    *out = protobuf_c_message_unpack(type, &allocator, count, bytes);
    if (!*out)
        return kn_api_invalid_body(
            error, b.spent ? "The %s has too many parts for its length." : "The body is not a %s in protobuf.",
            type->short_name);
    if (strings_are_text(*out)) return KN_OK;
    kn_proto_free(out);
    return kn_api_invalid_body(error, "A string of the %s is not UTF-8.", type->short_name);
}

void kn_proto_free(ProtobufCMessage **message)
{
    ProtobufCAllocator allocator = {.alloc = take, .free = give_back};
    if (*message) protobuf_c_message_free_unpacked(*message, &allocator);
    *message = NULL;
}

/* ---- writing ---- */

typedef struct text_buffer {
    ProtobufCBuffer base;
    kn_text *text;
} text_buffer;

static void append(ProtobufCBuffer *buffer, size_t count, const uint8_t *bytes)
{
    kn_text_append(((text_buffer *)buffer)->text, bytes, count);
}

void kn_proto_write(kn_text *out, const ProtobufCMessage *message)
{
    text_buffer buffer = {.base = {.append = append}, .text = out};
    protobuf_c_message_pack_to_buffer(message, &buffer.base);
}

static void write_varint(kn_text *out, uint64_t value)
{
    unsigned char bytes[10];
    size_t count = 0;
    do {
        bytes[count++] = (unsigned char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value > 0);
    kn_text_append(out, bytes, count);
}

void kn_proto_write_length(kn_text *out, uint32_t field, uint64_t bytes)
{
    write_varint(out, (uint64_t)field << 3 | PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED);
    write_varint(out, bytes);
}
