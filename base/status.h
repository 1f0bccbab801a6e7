/* SPDX-License-Identifier: Apache-2.0
 *
 * Status codes, and how a failure travels.
 *
 * Every function that can fail returns a kn_status. The place that notices a
 * failure describes it once, with kn_fail(), in one line a person can act on
 * (which file, which tensor, which limit). Callers only pass the status up with
 * KN_TRY and release what they hold behind a single `fail:` label.
 *
 * The description is kept per thread, like errno; it stays until the next
 * kn_fail() on that thread.
 */
#ifndef KN_BASE_STATUS_H
#define KN_BASE_STATUS_H

typedef enum kn_status {
    KN_OK = 0,
    /* Nothing is wrong; the work did not finish. */
    KN_AGAIN = -10,
    KN_CANCELLED = -11,
    /* The request is at fault. */
    KN_INVALID = -20,     /* an argument outside its stated range */
    KN_NOT_FOUND = -21,   /* a file, tensor or name that is not there */
    KN_UNSUPPORTED = -22, /* understood, but not something this build can do */
    KN_CORRUPT = -23,     /* data that contradicts its own format */
    /* This operation failed; the object is still usable. */
    KN_NOMEM = -30,
    KN_IO = -31,
    KN_UNAVAILABLE = -32, /* a device or codec that cannot be had now */
    /* At or below KN_FATAL: stop using the object. */
    KN_FATAL = -90,
    KN_DEVICE_LOST = -91,
    KN_BUG = -92,
} kn_status;

#if defined(__GNUC__)
#define KN_PRINTF(fmt, first) __attribute__((format(printf, fmt, first)))
#else
#define KN_PRINTF(fmt, first)
#endif

/* Records a one-line description for this thread and returns `status`, so that
 * `return kn_fail(KN_CORRUPT, ...)` reads as one statement. Long texts are cut. */
kn_status kn_fail(kn_status status, const char *format, ...) KN_PRINTF(2, 3);

/* Prefixes the recorded description with "context: ", keeping the status. */
kn_status kn_fail_context(kn_status status, const char *format, ...) KN_PRINTF(2, 3);

#if defined(__clang_analyzer__)
/* The analyzer sees one file at a time; here is what status.c does with `status`. */
static inline kn_status kn_fail_returns(kn_status recorded, kn_status status)
{
    (void)recorded;
    return status;
}
#define kn_fail(status, ...) kn_fail_returns(kn_fail(status, __VA_ARGS__), status)
#define kn_fail_context(status, ...) kn_fail_returns(kn_fail_context(status, __VA_ARGS__), status)
#endif

/* The last description on this thread; "" when there is none. Valid until the
 * next kn_fail() on this thread. */
const char *kn_fail_message(void);

/* Stable lower-case name of a status: "corrupt", "not_found", ... */
const char *kn_status_name(kn_status status);

/* Exit code of a command that ends with this status (sysexits.h). */
int kn_status_exit_code(kn_status status);

/* Needs `kn_status st` and a `fail:` label in the function. */
#define KN_TRY(call)                                                                                                   \
    do {                                                                                                               \
        st = (call);                                                                                                   \
        if (st != KN_OK) goto fail;                                                                                    \
    } while (0)

/* A contract broken by the layer above. Stays on in release builds. */
#define KN_REQUIRE(expression)                                                                                         \
    do {                                                                                                               \
        if (!(expression)) return kn_fail(KN_INVALID, "%s: requires %s", __func__, #expression);                       \
    } while (0)

#endif
