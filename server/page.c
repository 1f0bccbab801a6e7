/* SPDX-License-Identifier: Apache-2.0
 *
 * The status page: a few static files that are part of the program, so that a server without a disk or a network to
 * the outside still shows it. The page itself is a client of the API like any other: what it may see is decided there,
 * by the key its user enters, and the files say nothing about this server.
 *
 * The build turns server/page into page_files.inc: for every file its bytes and an entity tag that is a hash of them
 * (RFC 9110 8.8.3, strong). */
#include <string.h>

#include "server/api.h"
#include "server/http_range.h"

#include <page_files.inc>

typedef struct page_file {
    const char *name; /* what stands for {id}; "": the page */
    const char *content_type;
    const char *etag;
    const unsigned char *bytes;
    size_t count;
} page_file;

#define SCRIPT "text/javascript; charset=utf-8"

static const page_file files[] = {
    {"", "text/html; charset=utf-8", index_html_etag, index_html, sizeof index_html},
    {"page.css", "text/css; charset=utf-8", page_css_etag, page_css, sizeof page_css},
    {"page.js", SCRIPT, page_js_etag, page_js, sizeof page_js},
    {"wire.js", SCRIPT, wire_js_etag, wire_js, sizeof wire_js},
    {"words.js", SCRIPT, words_js_etag, words_js, sizeof words_js},
};

static const page_file *find_file(const char *name)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (strcmp(files[i].name, name) == 0) return &files[i];
    return NULL;
}

void kn_api_page(kn_call *call)
{
    kn_api_error error;
    const page_file *file = find_file(call->parameter);
    if (!file) {
        kn_api_not_found(&error, "page", call->parameter);
        kn_call_error(call, &error);
        return;
    }
    /* Pictures come as data: (they need the key, which an <img> cannot send), videos as blob: for the same reason. */
    const kn_http_reply_header headers[] = {
        {"etag", file->etag},
        {"cache-control", "no-cache"},
        {"content-security-policy", "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
                                    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
        {"x-content-type-options", "nosniff"},
        {"referrer-policy", "no-referrer"},
        {"x-frame-options", "DENY"},
        {"cross-origin-opener-policy", "same-origin"},
        {"cross-origin-resource-policy", "same-origin"},
    };
    const size_t header_count = sizeof headers / sizeof *headers;
    const char *known = kn_http_header(call->exchange, "if-none-match");
    if (known && kn_http_etag_listed(known, file->etag, true))
        kn_call_reply(call, 304, NULL, NULL, 0, headers, header_count);
    else
        kn_call_reply(call, 200, file->content_type, file->bytes, file->count, headers, header_count);
}
