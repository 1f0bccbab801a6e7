/* SPDX-License-Identifier: Apache-2.0
 *
 * Request bodies as clients send them: the same request from openai-python (httpx), openai-node (undici), curl and
 * aiohttp, each with its boundary, its order of headers and its types. */
#ifndef KN_TESTS_SERVER_BODIES_H
#define KN_TESTS_SERVER_BODIES_H

#include <stddef.h>

/* Eight bytes of a PNG's signature, then what a search for boundaries can trip over. */
#define PICTURE                                                                                                        \
    "\x89PNG\r\n\x1a\n\r\n\r\n--\r\n-\r\r\r\n--0123456789abcdef0123456789abcde\r\n--"                                  \
    "\0\xff"                                                                                                           \
    "end\r"
enum { PICTURE_BYTES = sizeof PICTURE - 1 };

typedef struct client_body {
    const char *client;
    const char *content_type;
    const char *body;
    size_t count;
} client_body;

#define BODY(client, type, text)                                                                                       \
    {                                                                                                                  \
        client, type, text, sizeof(text) - 1                                                                           \
    }

#define HTTPX "--0123456789abcdef0123456789abcdef"
#define HTTPX_FIELD(name, value) HTTPX "\r\nContent-Disposition: form-data; name=\"" name "\"\r\n\r\n" value "\r\n"
#define UNDICI "------formdata-undici-067185420354"
#define UNDICI_FIELD(name, value) UNDICI "\r\nContent-Disposition: form-data; name=\"" name "\"\r\n\r\n" value "\r\n"
#define CURL "--------------------------d74496d66958873e"
#define CURL_FIELD(name, value) CURL "\r\nContent-Disposition: form-data; name=\"" name "\"\r\n\r\n" value "\r\n"
#define AIOHTTP "--b5e1a6d0c3f94f6e9b1d2c3a4f5e6d7c"
#define AIOHTTP_FIELD(name, value)                                                                                     \
    AIOHTTP "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=\"" name              \
            "\"\r\n\r\n" value "\r\n"

static const client_body with_picture[] = {
    BODY("openai-python, open file", "multipart/form-data; boundary=0123456789abcdef0123456789abcdef",
         HTTPX_FIELD("prompt", "a red ball \xf0\x9f\x94\xb4") HTTPX_FIELD("model", "sora-2") HTTPX_FIELD("seconds", "4")
             HTTPX_FIELD("size", "1280x720") HTTPX
         "\r\nContent-Disposition: form-data; name=\"input_reference\"; filename=\"ball.png\"\r\n"
         "Content-Type: image/png\r\n\r\n" PICTURE "\r\n" HTTPX "--\r\n"),
    BODY("openai-python, bytes", "multipart/form-data; boundary=0123456789abcdef0123456789abcdef",
         HTTPX_FIELD("prompt", "a red ball \xf0\x9f\x94\xb4") HTTPX_FIELD("model", "sora-2") HTTPX_FIELD("seconds", "4")
             HTTPX_FIELD("size", "1280x720") HTTPX
         "\r\nContent-Disposition: form-data; name=\"input_reference\"; filename=\"upload\"\r\n"
         "Content-Type: application/octet-stream\r\n\r\n" PICTURE "\r\n" HTTPX "--\r\n"),
    BODY("openai-node", "multipart/form-data; boundary=----formdata-undici-067185420354",
         UNDICI_FIELD("prompt", "a red ball \xf0\x9f\x94\xb4") UNDICI_FIELD("model", "sora-2")
             UNDICI_FIELD("seconds", "4") UNDICI_FIELD("size", "1280x720") UNDICI
         "\r\nContent-Disposition: form-data; name=\"input_reference\"; filename=\"ball.png\"\r\n"
         "Content-Type: image/png\r\n\r\n" PICTURE "\r\n" UNDICI "--\r\n"),
    BODY("curl", "multipart/form-data; boundary=------------------------d74496d66958873e",
         CURL
         "\r\nContent-Disposition: form-data; name=\"input_reference\"; filename=\"C:\\\\tmp\\\\a \\\"b\\\".png\"\r\n"
         "Content-Type: image/png\r\n\r\n" PICTURE "\r\n" CURL_FIELD("prompt", "a red ball \xf0\x9f\x94\xb4")
             CURL_FIELD("size", "1280x720") CURL_FIELD("seconds", "4") CURL_FIELD("model", "sora-2") CURL "--\r\n"),
    BODY("aiohttp", "multipart/form-data; boundary=b5e1a6d0c3f94f6e9b1d2c3a4f5e6d7c",
         AIOHTTP_FIELD("prompt", "a red ball \xf0\x9f\x94\xb4") AIOHTTP_FIELD("model", "sora-2")
             AIOHTTP_FIELD("seconds", "4") AIOHTTP_FIELD("size", "1280x720") AIOHTTP
         "\r\nContent-Type: application/octet-stream\r\n"
         "Content-Disposition: form-data; name=\"input_reference\"; filename=\"image.png\"; filename*=utf-8''image.png"
         "\r\n\r\n" PICTURE "\r\n" AIOHTTP "--\r\n"),
};

enum { WITH_PICTURE = sizeof with_picture / sizeof *with_picture };

#endif
