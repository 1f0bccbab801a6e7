/* SPDX-License-Identifier: Apache-2.0
 *
 * The rules under which a child process of the server makes a request: one method, no redirects, no proxy, no
 * credentials from files, TLS 1.2 or newer with the name checked, time limits, and the address rule of
 * server/webhook.h, applied after the name is resolved and before anything is sent to what it resolved to. */
#ifndef KN_SERVER_OUTGOING_H
#define KN_SERVER_OUTGOING_H

#include <curl/curl.h>

#include "server/webhook.h"

/* One request; lives as long as its handle. */
typedef struct kn_outgoing {
    kn_webhook_url url;
    bool opened;           /* an address passed the policy */
    const char *forbidden; /* range of an address that did not, or NULL */
    char error[CURL_ERROR_SIZE];
} kn_outgoing;

typedef struct kn_outgoing_options {
    const char *ca_file; /* PEM; NULL or "": the system's */
    long timeout_ms, connect_timeout_ms;
    struct curl_slist *headers; /* the caller's, as long as the handle */
} kn_outgoing_options;

/* Sets everything but the body. false: this libcurl does not know an option, so a rule would silently not hold. */
bool kn_outgoing_configure(CURL *easy, kn_outgoing *request, const kn_outgoing_options *options);

#endif
