/* SPDX-License-Identifier: Apache-2.0
 *
 * Fields of a request's body; the table in video_request.h says what each is. One reader per kind of field, one table
 * row per field. */
#define _POSIX_C_SOURCE 200809L
#include "server/video_fields.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "server/json.h"
#include "server/text.h"

enum { NUMBER_BYTES_MAX = 40, CHARACTER_NAME_CHARACTERS_MAX = 80 };

/* What several fields decide together. */
typedef struct reading {
    kn_video_params *params;
    int32_t size_width, size_height; /* from "size" */
    int32_t width, height;
    const char *priority_field; /* the field that set the priority */
} reading;

typedef kn_status (*field_reader)(reading *r, const char *name, const json_t *value, kn_api_error *error);

/* ---- typed values ---- */

static const char *kind_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER:
    case JSON_REAL: return "a number";
    case JSON_NULL: return "null";
    default: return "a boolean";
    }
}

static kn_status mistyped(kn_api_error *error, const char *name, const json_t *value, const char *wanted)
{
    return kn_api_invalid_type(error, name, "Invalid type for '%s': expected %s, but got %s instead.", name, wanted,
                               kind_of(value));
}

/* A JSON number, or text that is one. */
static kn_status take_number(const char *name, const json_t *value, double *out, kn_api_error *error)
{
    if (json_is_number(value)) {
        *out = json_number_value(value);
        return KN_OK;
    }
    if (!json_is_string(value)) return mistyped(error, name, value, "a number");
    const char *text = json_string_value(value);
    size_t count = json_string_length(value);
    char *end = NULL;
    double number = NAN;
    if (count > 0 && count <= NUMBER_BYTES_MAX && strspn(text, "0123456789+-.eE") == count) number = strtod(text, &end);
    if (!isfinite(number) || *end)
        return kn_api_invalid_type(error, name, "Invalid type for '%s': expected a number, but got '%.40s'.", name,
                                   text);
    *out = number;
    return KN_OK;
}

/* A JSON integer, a real without fraction, or text that is one of them. */
static kn_status take_integer(const char *name, const json_t *value, int64_t low, int64_t high, int64_t *out,
                              kn_api_error *error)
{
    const double exact = 9007199254740992.0; /* 2^53: from here on a double no longer says which integer */
    const char *text = json_string_value(value);
    char *end = NULL;
    int64_t number = 0;
    errno = 0;
    if (json_is_integer(value)) {
        number = json_integer_value(value);
    } else if (text && strspn(text, "-0123456789") == json_string_length(value)) {
        number = strtoll(text, &end, 10);
        if (end == text || *end)
            return kn_api_invalid_type(error, name, "Invalid type for '%s': expected an integer, but got '%.40s'.",
                                       name, text);
    } else {
        double real = 0;
        kn_status st = take_number(name, value, &real, error);
        if (st != KN_OK) return st;
        if (fabs(real) >= exact || real != floor(real))
            return kn_api_invalid_type(error, name, "Invalid type for '%s': expected an integer, but got %g.", name,
                                       real);
        number = (int64_t)real;
    }
    if (errno == ERANGE || number < low || number > high)
        return kn_api_invalid_value(error, name,
                                    "Invalid value for '%s': it must be an integer from %" PRId64 " to %" PRId64 ".",
                                    name, low, high);
    *out = number;
    return KN_OK;
}

static kn_status take_int32(const char *name, const json_t *value, int32_t low, int32_t high, int32_t *out,
                            kn_api_error *error)
{
    int64_t number = 0;
    kn_status st = take_integer(name, value, low, high, &number, error);
    if (st == KN_OK) *out = (int32_t)number;
    return st;
}

/* A string of low..high Unicode code points, copied. */
static kn_status take_text(const char *name, const json_t *value, ptrdiff_t low, ptrdiff_t high, char **out,
                           kn_api_error *error)
{
    if (!json_is_string(value)) return mistyped(error, name, value, "a string");
    ptrdiff_t characters = kn_text_characters(json_string_value(value), json_string_length(value));
    if (characters < low || characters > high)
        return kn_api_invalid_value(error, name, "Invalid length of '%s': %td characters; it must have %td to %td.",
                                    name, characters, low, high);
    *out = kn_strdup(json_string_value(value));
    return *out ? KN_OK : kn_api_from_status(error, KN_NOMEM);
}

/* A short string without control characters into out [bytes]. */
static kn_status take_name(const char *name, const json_t *value, char *out, size_t bytes, kn_api_error *error)
{
    if (!json_is_string(value)) return mistyped(error, name, value, "a string");
    const char *text = json_string_value(value);
    size_t count = json_string_length(value);
    if (count >= bytes)
        return kn_api_invalid_value(error, name, "Invalid value for '%s': %zu bytes; at most %zu are accepted.", name,
                                    count, bytes - 1);
    for (size_t i = 0; i < count; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return kn_api_invalid_value(error, name, "Invalid value for '%s': it has a control character.", name);
    }
    memcpy(out, text, count + 1);
    return KN_OK;
}

/* An object, or text that is one; a new reference. */
static kn_status take_object(const char *name, const json_t *value, json_t **out, kn_api_error *error)
{
    if (json_is_object(value)) {
        *out = json_incref((json_t *)value);
        return KN_OK;
    }
    if (!json_is_string(value)) return mistyped(error, name, value, "an object");
    return kn_json_body_parse(out, json_string_value(value), json_string_length(value), name, error);
}

/* The first key of an object that is none of the two; NULL: no such key. */
static const char *foreign_key(json_t *object, const char *first, const char *second)
{
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        if (strcmp(key, first) != 0 && strcmp(key, second) != 0) return key;
    }
    return NULL;
}

/* A scalar as text, so that 81 and "81" compare equal; "" for a long string and for what is no scalar. */
static void scalar_text(const json_t *value, char out[NUMBER_BYTES_MAX + 1])
{
    out[0] = '\0';
    if (json_is_string(value) && json_string_length(value) <= NUMBER_BYTES_MAX)
        snprintf(out, NUMBER_BYTES_MAX + 1, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(out, NUMBER_BYTES_MAX + 1, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(out, NUMBER_BYTES_MAX + 1, "%.15g", json_real_value(value));
    else if (json_is_boolean(value))
        snprintf(out, NUMBER_BYTES_MAX + 1, "%s", json_is_true(value) ? "true" : "false");
}

/* ---- fields ---- */

static kn_status read_prompt(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_text(name, value, 1, KN_API_PROMPT_CHARACTERS_MAX, &r->params->prompt, error);
}

/* As take_text; an empty string is the same as none. */
static kn_status take_optional_text(const char *name, const json_t *value, ptrdiff_t high, char **out,
                                    kn_api_error *error)
{
    kn_status st = take_text(name, value, 0, high, out, error);
    if (st == KN_OK && **out == '\0') {
        kn_free(*out);
        *out = NULL;
    }
    return st;
}

static kn_status read_negative_prompt(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_optional_text(name, value, KN_API_PROMPT_CHARACTERS_MAX, &r->params->negative_prompt, error);
}

static kn_status read_model(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_name(name, value, r->params->model, sizeof r->params->model, error);
}

static kn_status read_size(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    if (!json_is_string(value)) return mistyped(error, name, value, "a string such as '1280x720'");
    const char *at = json_string_value(value);
    int32_t *const sides[2] = {&r->size_width, &r->size_height};
    for (int i = 0; i < 2; i++) {
        size_t digits = strspn(at, "0123456789");
        int32_t side = digits >= 1 && digits <= 5 ? (int32_t)strtol(at, NULL, 10) : 0;
        if (side < 1 || side > KN_API_SIZE_MAX || at[digits] != "x"[i])
            return kn_api_invalid_value(error, name,
                                        "Invalid value for 'size': '%.40s'; it must be WIDTHxHEIGHT in pixels, such as "
                                        "'1280x720', each at most %d.",
                                        json_string_value(value), KN_API_SIZE_MAX);
        *sides[i] = side;
        at += digits + 1;
    }
    return KN_OK;
}

static kn_status read_width(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_int32(name, value, 1, KN_API_SIZE_MAX, &r->width, error);
}

static kn_status read_height(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_int32(name, value, 1, KN_API_SIZE_MAX, &r->height, error);
}

static kn_status read_seconds(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    double seconds = 0;
    kn_status st = take_number(name, value, &seconds, error);
    if (st != KN_OK) return st;
    if (!(seconds > 0 && seconds <= KN_API_SECONDS_MAX))
        return kn_api_invalid_value(error, name, "Invalid value for 'seconds': %g; it must be above 0 and at most %d.",
                                    seconds, KN_API_SECONDS_MAX);
    snprintf(r->params->seconds, sizeof r->params->seconds, "%.15g", seconds);
    return KN_OK;
}

static kn_status read_num_frames(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_int32(name, value, 1, KN_API_FRAMES_MAX, &r->params->frames, error);
}

static int32_t greatest_common_divisor(int32_t a, int32_t b)
{
    while (b) {
        int32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* In thousandths: 23.976 is 2997/125. */
static kn_status read_fps(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    double fps = 0;
    kn_status st = take_number(name, value, &fps, error);
    if (st != KN_OK) return st;
    if (!(fps >= 0.1 && fps <= KN_FPS_MAX))
        return kn_api_invalid_value(error, name, "Invalid value for 'fps': %g; it must be 0.1 to %d.", fps, KN_FPS_MAX);
    int32_t thousandths = (int32_t)lround(fps * 1000.0);
    int32_t divisor = greatest_common_divisor(thousandths, 1000);
    r->params->fps_numerator = thousandths / divisor;
    r->params->fps_denominator = 1000 / divisor;
    return KN_OK;
}

static kn_status read_steps(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_int32(name, value, 1, KN_API_STEPS_MAX, &r->params->steps, error);
}

static kn_status read_guidance(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    double guidance = 0;
    kn_status st = take_number(name, value, &guidance, error);
    if (st != KN_OK) return st;
    if (!(guidance >= 0 && guidance <= 100))
        return kn_api_invalid_value(error, name, "Invalid value for '%s': %g; it must be 0 to 100.", name, guidance);
    r->params->guidance = guidance + 0.0; /* -0 is 0 */
    return KN_OK;
}

static kn_status read_shift(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    double shift = 0;
    kn_status st = take_number(name, value, &shift, error);
    if (st != KN_OK) return st;
    if (!(shift > 0 && shift <= 1000))
        return kn_api_invalid_value(error, name, "Invalid value for '%s': %g; it must be above 0 and at most 1000.",
                                    name, shift);
    r->params->shift = shift;
    return KN_OK;
}

static kn_status read_seed(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    int64_t seed = -1;
    kn_status st = take_integer(name, value, -1, INT64_MAX, &seed, error);
    if (st != KN_OK) return st;
    r->params->has_seed = seed >= 0;
    r->params->seed = seed >= 0 ? (uint64_t)seed : 0;
    return KN_OK;
}

static kn_status read_sampler(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    char sampler[16] = "";
    if (json_is_string(value) && json_string_length(value) < sizeof sampler)
        memcpy(sampler, json_string_value(value), json_string_length(value) + 1);
    bool euler = strcmp(sampler, "euler") == 0;
    if (!euler && strcmp(sampler, "unipc") != 0)
        return kn_api_invalid_value(error, name, "Invalid value for 'sampler': it must be 'unipc' or 'euler'.");
    r->params->has_sampler = true;
    r->params->sampler = euler ? KN_SAMPLER_EULER : KN_SAMPLER_UNIPC;
    return KN_OK;
}

/* image_url is text, or {"url": text} as in the chat API. */
static kn_status read_reference_url(kn_video_reference *reference, const json_t *url, kn_api_error *error)
{
    const char *name = "input_reference.image_url";
    if (json_is_object(url)) {
        if (foreign_key((json_t *)url, "url", "detail")) return mistyped(error, name, url, "a string");
        url = json_object_get(url, "url");
    }
    if (!json_is_string(url))
        return kn_api_invalid_type(error, name, "Invalid type for 'input_reference.image_url': expected a string.");
    if (json_string_length(url) > KN_API_URL_BYTES_MAX || json_string_length(url) == 0)
        return kn_api_invalid_value(error, name, "Invalid length of '%s': it must have 1 to %d characters.", name,
                                    KN_API_URL_BYTES_MAX);
    reference->kind = KN_REFERENCE_IMAGE_URL;
    reference->text = kn_strdup(json_string_value(url));
    return reference->text ? KN_OK : kn_api_from_status(error, KN_NOMEM);
}

static kn_status read_reference_object(kn_video_reference *reference, const char *name, json_t *object,
                                       kn_api_error *error)
{
    char id[KN_API_FILE_ID_BYTES_MAX + 1];
    json_t *url = json_object_get(object, "image_url"), *file = json_object_get(object, "file_id");
    if (json_is_null(url)) url = NULL;
    if (json_is_null(file)) file = NULL;
    if (foreign_key(object, "image_url", "file_id") || !url == !file)
        return kn_api_invalid_value(error, name, "'%s' must have exactly one of 'image_url' and 'file_id'.", name);
    if (url) return read_reference_url(reference, url, error);
    kn_status st = take_name("input_reference.file_id", file, id, sizeof id, error);
    if (st != KN_OK) return st;
    reference->kind = KN_REFERENCE_FILE_ID;
    reference->text = kn_strdup(id);
    return reference->text ? KN_OK : kn_api_from_status(error, KN_NOMEM);
}

static kn_status read_reference(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    json_t *object = NULL;
    if (json_is_string(value) && json_string_value(value)[0] != '{')
        return mistyped(error, name, value, "a file"); /* word for word what OpenAI's service says */
    kn_status st = take_object(name, value, &object, error);
    if (st == KN_OK) st = read_reference_object(&r->params->reference, name, object, error);
    json_decref(object);
    return st;
}

static kn_status read_characters(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    if (!json_is_array(value)) return mistyped(error, name, value, "an array of objects with an 'id'");
    size_t count = json_array_size(value);
    if (count > KN_API_CHARACTERS_MAX)
        return kn_api_invalid_value(error, name, "Invalid value for 'characters': %zu of them; at most %d.", count,
                                    KN_API_CHARACTERS_MAX);
    for (size_t i = 0; i < count; i++) {
        json_t *element = json_array_get(value, i);
        const json_t *id = json_object_get(element, "id");
        if (!json_is_object(element) || !id || foreign_key(element, "id", "id") || json_string_length(id) == 0)
            return kn_api_invalid_value(error, name,
                                        "Each of 'characters' must be an object with an 'id' and no more.");
        kn_status st =
            take_name("characters[].id", id, r->params->characters[i], sizeof r->params->characters[i], error);
        if (st != KN_OK) return st;
    }
    r->params->character_count = (int32_t)count;
    return KN_OK;
}

static kn_status set_priority(reading *r, const char *name, kn_priority priority, kn_api_error *error)
{
    if (r->priority_field && r->params->priority != priority)
        return kn_api_invalid_value(error, name, "'service_tier' and 'priority' ask for different things.");
    r->priority_field = name;
    r->params->has_priority = true;
    r->params->priority = priority;
    return KN_OK;
}

static kn_status read_service_tier(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    if (!json_is_string(value)) return mistyped(error, name, value, "a string");
    const char *tier = json_string_value(value);
    if (strcmp(tier, "auto") == 0) return KN_OK;
    for (int priority = 0; priority < KN_PRIORITIES; priority++) {
        if (strcmp(tier, kn_priority_name((kn_priority)priority)) == 0)
            return set_priority(r, name, (kn_priority)priority, error);
    }
    return kn_api_invalid_value(error, name,
                                "Invalid value for '%s': '%.40s'; it must be 'auto', 'default', 'flex' or 'priority'.",
                                name, tier);
}

static kn_status read_priority(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    int32_t priority = 0;
    kn_status st = take_int32(name, value, INT32_MIN, INT32_MAX, &priority, error);
    if (st != KN_OK) return st;
    kn_priority asked = priority < 0 ? KN_PRIORITY_URGENT : priority == 0 ? KN_PRIORITY_DEFAULT : KN_PRIORITY_FLEX;
    return set_priority(r, name, asked, error);
}

/* Days from 1970-01-01 to a date of the Gregorian calendar, in years that start in March so that the leap day ends
 * them. */
static int64_t days_since_1970(int64_t year, int64_t month, int64_t day)
{
    if (month <= 2) year--;
    int64_t of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    return year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719468;
}

/* Exactly `count` digits and then `after` (0: anything), which *at moves past; -1 when they are not there. */
static int take_digits(const char **at, size_t count, const char *after)
{
    int number = 0;
    for (size_t i = 0; i < count; i++) {
        char c = (*at)[i];
        if (c < '0' || c > '9') return -1;
        number = 10 * number + (c - '0');
    }
    *at += count;
    if (!after) return number;
    if (**at == '\0' || !strchr(after, **at)) return -1;
    ++*at;
    return number;
}

/* What follows the seconds: a fraction, which is dropped, and the offset in seconds. */
static bool take_offset(const char *at, int64_t *out)
{
    if (*at == '.') {
        size_t digits = strspn(at + 1, "0123456789");
        if (digits == 0) return false;
        at += 1 + digits;
    }
    *out = 0;
    if (*at == 'Z' || *at == 'z') return at[1] == '\0';
    const int sign = *at == '-' ? -1 : 1;
    if (*at != '-' && *at != '+') return false;
    at++;
    int hours = take_digits(&at, 2, ":"), minutes = hours < 0 ? -1 : take_digits(&at, 2, NULL);
    *out = sign * (hours * 3600 + minutes * 60);
    return hours >= 0 && hours <= 23 && minutes >= 0 && minutes <= 59 && *at == '\0';
}

/* RFC 3339 date-time, from 1970 on, to Unix seconds. */
static bool parse_date_time(const char *text, int64_t *out)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    static const char *const after[] = {"-", "-", "Tt ", ":", ":", NULL};
    int part[6]; /* year, month, day, hour, minute, second */
    for (int i = 0; i < 6; i++) {
        part[i] = take_digits(&text, i == 0 ? 4 : 2, after[i]);
        if (part[i] < 0) return false;
    }
    int64_t offset;
    if (!take_offset(text, &offset) || part[0] < 1970 || part[1] < 1 || part[1] > 12) return false;
    bool leap = part[0] % 4 == 0 && (part[0] % 100 != 0 || part[0] % 400 == 0);
    int last = days[part[1] - 1] + (leap && part[1] == 2);
    if (part[2] < 1 || part[2] > last || part[3] > 23 || part[4] > 59 || part[5] > 60) return false;
    *out = days_since_1970(part[0], part[1], part[2]) * 86400 + part[3] * 3600 + part[4] * 60 + part[5] - offset;
    return true;
}

static kn_status read_deadline(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    const double first_unix = 1e9, last_unix = 1e11; /* 2001 to 5138 */
    int64_t at = 0;
    double number = 0;
    const char *text = json_string_value(value);
    if (text && json_string_length(value) <= NUMBER_BYTES_MAX && parse_date_time(text, &at)) {
        r->params->deadline = KN_DEADLINE_AT;
        r->params->deadline_us = at * 1000000;
        return KN_OK;
    }
    if (take_number(name, value, &number, error) != KN_OK)
        return kn_api_invalid_type(error, name,
                                   "Invalid type for 'deadline': expected seconds from now, Unix seconds or an RFC "
                                   "3339 time such as '2030-01-31T12:00:00Z'.");
    if (!(number > 0 && number <= KN_API_DEADLINE_MAX) && !(number >= first_unix && number <= last_unix))
        return kn_api_invalid_value(
            error, name, "Invalid value for 'deadline': %g; seconds from now must be above 0 and at most %d.", number,
            KN_API_DEADLINE_MAX);
    r->params->deadline = number >= first_unix ? KN_DEADLINE_AT : KN_DEADLINE_FROM_NOW;
    r->params->deadline_us = (int64_t)(number * 1e6);
    return KN_OK;
}

static kn_status check_metadata(const char *name, json_t *object, kn_api_error *error)
{
    if (json_object_size(object) > KN_API_METADATA_PAIRS_MAX)
        return kn_api_invalid_value(error, name, "Invalid value for 'metadata': %zu pairs; at most %d.",
                                    json_object_size(object), KN_API_METADATA_PAIRS_MAX);
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        const json_t *value = json_object_iter_value(at);
        if (!json_is_string(value)) return mistyped(error, name, value, "strings as values");
        if (kn_text_characters(key, strlen(key)) > KN_API_METADATA_KEY_CHARACTERS_MAX ||
            kn_text_characters(json_string_value(value), json_string_length(value)) >
                KN_API_METADATA_VALUE_CHARACTERS_MAX)
            return kn_api_invalid_value(
                error, name, "Invalid value for 'metadata': keys have at most %d characters and values at most %d.",
                KN_API_METADATA_KEY_CHARACTERS_MAX, KN_API_METADATA_VALUE_CHARACTERS_MAX);
    }
    return KN_OK;
}

static kn_status read_metadata(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    const size_t flags = JSON_COMPACT | JSON_SORT_KEYS;
    json_t *object = NULL;
    size_t bytes;
    kn_status st = KN_OK;
    KN_TRY(take_object(name, value, &object, error));
    KN_TRY(check_metadata(name, object, error));
    if (json_object_size(object) == 0) goto fail; /* the same as none */
    bytes = json_dumpb(object, NULL, 0, flags);
    r->params->metadata = bytes > 0 ? kn_alloc(bytes + 1) : NULL;
    if (!r->params->metadata || json_dumpb(object, r->params->metadata, bytes, flags) != bytes)
        st = kn_api_from_status(error, KN_NOMEM);
fail:
    json_decref(object);
    return st;
}

static kn_status read_user(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    return take_optional_text(name, value, KN_API_USER_CHARACTERS_MAX, &r->params->user, error);
}

static const struct {
    const char *name;
    field_reader read;
} fields[] = {
    {"prompt", read_prompt},
    {"negative_prompt", read_negative_prompt},
    {"model", read_model},
    {"size", read_size},
    {"width", read_width},
    {"height", read_height},
    {"seconds", read_seconds},
    {"num_frames", read_num_frames},
    {"fps", read_fps},
    {"num_inference_steps", read_steps},
    {"guidance_scale", read_guidance},
    {"flow_shift", read_shift},
    {"seed", read_seed},
    {"sampler", read_sampler},
    {"input_reference", read_reference},
    {"characters", read_characters},
    {"service_tier", read_service_tier},
    {"priority", read_priority},
    {"deadline", read_deadline},
    {"metadata", read_metadata},
    {"user", read_user},
};

/* Fields of other engines that change nothing here: whatever their value (NULL), or with one of these values. */
static const struct {
    const char *name;
    const char *values; /* separated by spaces */
} ignored[] = {
    {"n", "1"},
    {"num_outputs_per_prompt", "1"},
    {"num_videos_per_prompt", "1"},
    {"quality", "standard auto"},
    {"response_format", "url video file auto"},
    {"format", "mp4 auto"},
    {"output_format", "mp4 auto"},
    {"stream", "false"},
    {"generate_sound", "false"},
    {"generate_audio", "false"},
    {"enable_teacache", "false"},
    {"enable_upscaling", "false"},
    {"enable_frame_interpolation", "false"},
    {"generator_device", NULL}, /* noise comes from the host always, the same on every device */
    {"safety_identifier", NULL},
    {"request_id", NULL},
};

/* Letter case aside: Python's str(False) is what some clients put into a form. */
static bool one_of(const char *values, const char *value)
{
    const size_t count = strlen(value);
    for (const char *at = values; count > 0 && *at;) {
        size_t word = strcspn(at, " ");
        if (word == count && strncasecmp(at, value, count) == 0) return true;
        at += word + (at[word] == ' ');
    }
    return false;
}

static kn_status read_ignored(kn_video_params *params, size_t row, const json_t *value, kn_api_error *error)
{
    char text[NUMBER_BYTES_MAX + 1];
    const char *name = ignored[row].name;
    scalar_text(value, text);
    if (ignored[row].values && !one_of(ignored[row].values, text))
        return kn_api_unsupported(error, name, "unsupported_value",
                                  "This server does not change '%s'; leave it out or send one of: %s.", name,
                                  ignored[row].values);
    if (params->ignored_count < KN_API_IGNORED_MAX)
        snprintf(params->ignored[params->ignored_count++], KN_API_IGNORED_BYTES, "%s", name);
    return KN_OK;
}

static kn_status read_field(reading *r, const char *name, const json_t *value, kn_api_error *error)
{
    if (json_is_null(value)) return KN_OK;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strcmp(name, fields[i].name) == 0) return fields[i].read(r, fields[i].name, value, error);
    }
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        if (strcmp(name, ignored[i].name) == 0) return read_ignored(r->params, i, value, error);
    }
    return kn_api_unknown_parameter(error, name);
}

/* ---- the whole ---- */

/* One benchmark client sends num_frames as a number in extra_body and again as text beside it. */
static bool same_value(const json_t *a, const json_t *b)
{
    char text[2][NUMBER_BYTES_MAX + 1];
    if (json_equal(a, b)) return true;
    scalar_text(a, text[0]);
    scalar_text(b, text[1]);
    return text[0][0] != '\0' && strcmp(text[0], text[1]) == 0;
}

/* Moves the members of root[name] into root. */
static kn_status merge(json_t *root, const char *name, kn_api_error *error)
{
    json_t *value = json_object_get(root, name), *extra = NULL;
    if (!value || json_is_null(value)) {
        json_object_del(root, name);
        return KN_OK;
    }
    kn_status st = take_object(name, value, &extra, error);
    if (st != KN_OK) return st;
    json_object_del(root, name);
    for (void *at = json_object_iter(extra); at && st == KN_OK; at = json_object_iter_next(extra, at)) {
        const char *key = json_object_iter_key(at);
        json_t *member = json_object_iter_value(at), *there = json_object_get(root, key);
        if (there && !json_is_null(there) && !same_value(there, member))
            st = kn_api_invalid_value(error, key, "'%s' is given at the top level and in '%s', with different values.",
                                      key, name);
        else if (json_object_set(root, key, member) != 0)
            st = kn_api_from_status(error, KN_NOMEM);
    }
    json_decref(extra);
    return st;
}

static kn_status decide_size(reading *r, kn_api_error *error)
{
    if ((r->width == 0) != (r->height == 0)) return kn_api_missing_parameter(error, r->width ? "height" : "width");
    if (r->size_width && r->width && (r->size_width != r->width || r->size_height != r->height))
        return kn_api_invalid_value(error, "size", "'size' is %dx%d but 'width' and 'height' are %d and %d.",
                                    r->size_width, r->size_height, r->width, r->height);
    r->params->width = r->width ? r->width : r->size_width;
    r->params->height = r->height ? r->height : r->size_height;
    return KN_OK;
}

static kn_status read_create(kn_video_params *out, json_t *root, const char *file_field, kn_api_error *error)
{
    reading r = {.params = out};
    if (file_field && strcmp(file_field, "input_reference") != 0) return kn_api_unknown_parameter(error, file_field);
    const json_t *reference = json_object_get(root, "input_reference");
    if (file_field && reference && !json_is_null(reference))
        return kn_api_invalid_value(error, file_field, "'input_reference' is given twice.");
    for (void *at = json_object_iter(root); at; at = json_object_iter_next(root, at)) {
        kn_status st = read_field(&r, json_object_iter_key(at), json_object_iter_value(at), error);
        if (st != KN_OK) return st;
    }
    if (!out->prompt) return kn_api_missing_parameter(error, "prompt");
    return decide_size(&r, error);
}

/* Whether the source video is there: a file part or an object with an id. */
static kn_status require_video(json_t *root, const char *file_field, bool file_only, kn_api_error *error)
{
    json_t *object = NULL;
    if (file_field && strcmp(file_field, "video") != 0) return kn_api_unknown_parameter(error, file_field);
    if (file_field) return KN_OK;
    const json_t *video = json_object_get(root, "video");
    if (!video || json_is_null(video)) return kn_api_missing_parameter(error, "video");
    if (file_only || (json_is_string(video) && json_string_value(video)[0] != '{'))
        return mistyped(error, "video", video, "a file");
    kn_status st = take_object("video", video, &object, error);
    if (st == KN_OK && !json_is_string(json_object_get(object, "id"))) st = kn_api_missing_parameter(error, "video.id");
    json_decref(object);
    return st;
}

/* A required field read by one of the readers above. */
static kn_status require_field(reading *r, json_t *root, const char *name, kn_api_error *error)
{
    const json_t *value = json_object_get(root, name);
    if (!value || json_is_null(value)) return kn_api_missing_parameter(error, name);
    return read_field(r, name, value, error);
}

/* The operations that are known and not offered: a request that is wrong hears what is wrong with it first. */
static kn_status refuse_operation(kn_video_params *out, json_t *root, const char *file_field, kn_api_error *error)
{
    static const char *const what[] = {
        [KN_VIDEO_REMIX] = "remix videos",
        [KN_VIDEO_EDIT] = "edit videos",
        [KN_VIDEO_EXTEND] = "extend videos",
        [KN_VIDEO_CHARACTER] = "create characters from videos",
    };
    kn_status st = KN_OK;
    reading r = {.params = out};
    if (out->operation == KN_VIDEO_CHARACTER) {
        char *name = NULL;
        const json_t *value = json_object_get(root, "name");
        if (!value || json_is_null(value)) return kn_api_missing_parameter(error, "name");
        st = take_text("name", value, 1, CHARACTER_NAME_CHARACTERS_MAX, &name, error);
        kn_free(name);
        if (st != KN_OK) return st;
    } else {
        KN_TRY(require_field(&r, root, "prompt", error));
    }
    if (out->operation != KN_VIDEO_REMIX)
        KN_TRY(require_video(root, file_field, out->operation == KN_VIDEO_CHARACTER, error));
    if (out->operation == KN_VIDEO_EXTEND) KN_TRY(require_field(&r, root, "seconds", error));
    return kn_api_unsupported(error, NULL, "unsupported_operation",
                              "This server does not %s; create a new video with POST /v1/videos.",
                              what[out->operation]);
fail:
    return st;
}

kn_status kn_video_fields_read(kn_video_params *out, kn_video_operation operation, json_t *root, const char *file_field,
                               kn_api_error *error)
{
    kn_status st = KN_OK;
    *out = (kn_video_params){.operation = operation, .guidance = NAN, .shift = NAN};
    KN_TRY(merge(root, "extra_body", error));
    KN_TRY(merge(root, "extra_params", error));
    if (operation == KN_VIDEO_CREATE)
        KN_TRY(read_create(out, root, file_field, error));
    else
        KN_TRY(refuse_operation(out, root, file_field, error));
fail:
    return st;
}
