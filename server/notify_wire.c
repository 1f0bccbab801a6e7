/* SPDX-License-Identifier: Apache-2.0 */
#include "server/notify_wire.h"

#include <string.h>

#include "server/notify.h"

/* ---- writing ---- */

typedef struct writer {
    char *bytes;
    size_t used, capacity;
    bool overflow;
} writer;

static void put_bytes(writer *w, const void *bytes, size_t count)
{
    if (count > w->capacity - w->used) {
        w->overflow = true;
        return;
    }
    if (count > 0) memcpy(w->bytes + w->used, bytes, count);
    w->used += count;
}

static void put_integer(writer *w, uint64_t value, int size)
{
    unsigned char bytes[8];
    for (int i = 0; i < size; i++) bytes[i] = (unsigned char)(value >> 8 * i);
    put_bytes(w, bytes, (size_t)size);
}

static void put_text(writer *w, const char *text, size_t count)
{
    if (count > KN_NOTIFY_FRAME_MAX) {
        w->overflow = true;
        return;
    }
    put_integer(w, count, 4);
    put_bytes(w, text, count);
    put_bytes(w, "", 1);
}

static void put_texts(writer *w, const char *const *texts, size_t count)
{
    put_integer(w, count, 1);
    for (size_t i = 0; i < count; i++) put_text(w, texts[i], strlen(texts[i]));
}

static void put_message(writer *w, const kn_notify_message *message)
{
    put_integer(w, (uint64_t)message->type, 1);
    switch (message->type) {
    case KN_NOTIFY_CONFIGURE:
        put_integer(w, message->configure.development, 1);
        put_text(w, message->configure.ca_file, strlen(message->configure.ca_file));
        put_texts(w, message->configure.allow, message->configure.allow_count);
        break;
    case KN_NOTIFY_DELIVER:
        put_integer(w, message->deliver.ticket, 8);
        put_text(w, message->deliver.url, strlen(message->deliver.url));
        put_text(w, message->deliver.event_id, strlen(message->deliver.event_id));
        put_texts(w, message->deliver.secrets, message->deliver.secret_count);
        put_text(w, message->deliver.body, message->deliver.body_bytes);
        break;
    case KN_NOTIFY_RESULT:
        put_integer(w, message->result.ticket, 8);
        put_integer(w, (uint64_t)message->result.outcome, 1);
        put_integer(w, (uint32_t)message->result.http_status, 4);
        put_integer(w, (uint64_t)message->result.retry_after_s, 8);
        put_text(w, message->result.error, strlen(message->result.error));
        break;
    }
}

kn_status kn_notify_encode(char frame[KN_NOTIFY_HEAD_BYTES + KN_NOTIFY_FRAME_MAX], size_t *bytes,
                           const kn_notify_message *message)
{
    *bytes = 0;
    writer payload = {.bytes = frame + KN_NOTIFY_HEAD_BYTES, .capacity = KN_NOTIFY_FRAME_MAX};
    put_message(&payload, message);
    kn_notify_message check;
    if (payload.overflow || kn_notify_decode(&check, payload.bytes, payload.used) != KN_OK)
        return kn_fail(KN_INVALID, "notifier message: a text or count is beyond its limit");
    writer head = {.bytes = frame, .capacity = KN_NOTIFY_HEAD_BYTES};
    put_integer(&head, payload.used, KN_NOTIFY_HEAD_BYTES);
    *bytes = KN_NOTIFY_HEAD_BYTES + payload.used;
    return KN_OK;
}

/* ---- reading ---- */

/* After the first violation everything reads as 0 or "", and `bad` tells in the end. */
typedef struct reader {
    const char *bytes;
    size_t left;
    bool bad;
} reader;

static uint64_t get_integer(reader *r, int size)
{
    if (r->bad || r->left < (size_t)size) {
        r->bad = true;
        return 0;
    }
    uint64_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint64_t)(unsigned char)r->bytes[i] << 8 * i;
    r->bytes += size;
    r->left -= (size_t)size;
    return value;
}

static const char *get_bytes(reader *r, size_t max, size_t *count)
{
    const uint64_t length = get_integer(r, 4);
    *count = 0;
    if (r->bad || length > max || length >= r->left || r->bytes[length] != '\0') {
        r->bad = true;
        return "";
    }
    const char *text = r->bytes;
    r->bytes += length + 1;
    r->left -= (size_t)length + 1;
    *count = (size_t)length;
    return text;
}

static const char *get_text(reader *r, size_t max)
{
    size_t count;
    const char *text = get_bytes(r, max, &count);
    if (memchr(text, '\0', count)) r->bad = true;
    return text;
}

static size_t get_texts(reader *r, const char **texts, size_t count_max, size_t text_max)
{
    const size_t count = (size_t)get_integer(r, 1);
    if (count > count_max) {
        r->bad = true;
        return 0;
    }
    for (size_t i = 0; i < count; i++) texts[i] = get_text(r, text_max);
    return count;
}

static void get_configure(reader *r, kn_notify_configure *out)
{
    const uint64_t development = get_integer(r, 1);
    r->bad |= development > 1;
    out->development = development == 1;
    out->ca_file = get_text(r, KN_NOTIFY_PATH_MAX - 1);
    out->allow_count = get_texts(r, out->allow, KN_WEBHOOK_ALLOW_MAX, KN_WEBHOOK_HOST_MAX + 8);
}

static void get_deliver(reader *r, kn_notify_deliver *out)
{
    out->ticket = get_integer(r, 8);
    out->url = get_text(r, KN_WEBHOOK_URL_MAX);
    out->event_id = get_text(r, KN_WEBHOOK_ID_MAX);
    out->secret_count = get_texts(r, out->secrets, KN_WEBHOOK_SECRETS_MAX, KN_WEBHOOK_SECRET_TEXT_MAX);
    out->body = get_bytes(r, KN_WEBHOOK_BODY_MAX, &out->body_bytes);
}

static void get_result(reader *r, kn_notify_result *out)
{
    out->ticket = get_integer(r, 8);
    const uint64_t outcome = get_integer(r, 1);
    r->bad |= outcome > KN_WEBHOOK_REFUSED;
    out->outcome = r->bad ? KN_WEBHOOK_FAILED : (kn_webhook_outcome)outcome;
    const uint64_t status = get_integer(r, 4), wait = get_integer(r, 8);
    r->bad |= status > 999 || wait > INT64_MAX;
    out->http_status = r->bad ? 0 : (int32_t)status;
    out->retry_after_s = r->bad ? 0 : (int64_t)wait;
    out->error = get_text(r, KN_NOTIFIER_ERROR_BYTES - 1);
}

kn_status kn_notify_length(size_t *bytes, const void *head)
{
    reader r = {.bytes = head, .left = KN_NOTIFY_HEAD_BYTES};
    *bytes = (size_t)get_integer(&r, KN_NOTIFY_HEAD_BYTES);
    if (*bytes >= 1 && *bytes <= KN_NOTIFY_FRAME_MAX) return KN_OK;
    return kn_fail(KN_CORRUPT, "notifier message: %zu bytes, must be 1 to %d", *bytes, KN_NOTIFY_FRAME_MAX);
}

kn_status kn_notify_decode(kn_notify_message *out, const void *payload, size_t bytes)
{
    reader r = {.bytes = payload, .left = bytes};
    const uint64_t type = get_integer(&r, 1);
    switch (type) {
    case KN_NOTIFY_CONFIGURE: get_configure(&r, &out->configure); break;
    case KN_NOTIFY_DELIVER: get_deliver(&r, &out->deliver); break;
    case KN_NOTIFY_RESULT: get_result(&r, &out->result); break;
    default: r.bad = true;
    }
    if (r.bad || r.left != 0) return kn_fail(KN_CORRUPT, "notifier message: does not follow its format");
    out->type = (kn_notify_type)type;
    return KN_OK;
}
