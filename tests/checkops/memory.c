/* SPDX-License-Identifier: Apache-2.0
 *
 * Fenced memory and the values put into it. Every buffer is its own mapping:
 *   [ 0xff bytes | data | guard, outputs only ][ page without access ]
 * 0xff bytes are NaN in every format used here, so a value read from outside a
 * view shows in the result. */
#define _GNU_SOURCE
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/half.h"
#include "base/mem.h"
#include "tests/checkops/checkops.h"

enum { GUARD_BYTES = 256, CANARY = 0xff };

static void die(const char *what)
{
    fprintf(stderr, "checkops: %s: %s\n", what, kn_fail_message());
    _exit(2);
}

static void release_buffers(check *c)
{
    for (int i = 0; i < c->buffer_count; i++) {
        check_unshare(c, c->buffers[i].data);
        munmap(c->buffers[i].map, c->buffers[i].map_bytes);
        kn_free(c->buffers[i].saved);
    }
    c->buffer_count = 0;
}

void check_begin(check *c, const char *format, ...)
{
    release_buffers(c);
    va_list list;
    va_start(list, format);
    vsnprintf(c->config, sizeof c->config, format, list);
    va_end(list);
    uint64_t hash = c->seed ^ 0x9e3779b97f4a7c15u * (uint64_t)(++c->config_index);
    for (const char *p = c->op; *p; p++) hash = (hash ^ (unsigned char)*p) * 0x100000001b3u;
    c->random = hash;
    check_note(c->op, "ref", 1, c->config);
    if (c->verbose) {
        printf("%s: %s\n", c->op, c->config);
        fflush(stdout);
    }
}

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t check_random(check *c)
{
    uint64_t z = c->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

bool check_coin(check *c)
{
    return check_random(c) >> 63;
}

int64_t check_below(check *c, int64_t limit)
{
    return (int64_t)((check_random(c) >> 16) % (uint64_t)limit);
}

/* Nearly normal, which is all that is needed: four uniforms, variance 1. */
double check_normal(check *c)
{
    uint64_t bits = check_random(c);
    double sum = 0;
    for (int i = 0; i < 4; i++, bits >>= 16) sum += (double)(bits & 0xffff) / 65536;
    return (sum - 2) * 1.7320508;
}

int64_t check_pick_from(check *c, const int64_t *list, int count)
{
    return list[check_below(c, count)];
}

void *check_buffer_new(check *c, size_t bytes, size_t alignment, check_kind kind)
{
    if (c->buffer_count == CHECK_BUFFERS) die("too many buffers in one configuration");
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t tail = kind == CHECK_INPUT ? 0 : GUARD_BYTES;
    const size_t usable = (bytes + tail + GUARD_BYTES + alignment + page - 1) / page * page;

    check_buffer *b = &c->buffers[c->buffer_count];
    *b = (check_buffer){.map_bytes = usable + page, .data_bytes = bytes, .kind = kind};
    b->map = mmap(NULL, b->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->map == MAP_FAILED || mprotect(b->map + usable, page, PROT_NONE) != 0) die("mmap");
    size_t offset = usable - tail - bytes;
    b->data = b->map + offset - offset % alignment;
    b->begin = b->data - GUARD_BYTES;
    b->bytes = (size_t)(b->map + usable - b->begin);
    memset(b->begin, CANARY, b->bytes);
    check_share(c, b->data, bytes);
    c->buffer_count++;
    return b->data;
}

void check_store(void *data, kn_dtype dtype, int64_t index, double value)
{
    float f = (float)value;
    if (dtype == KN_F32) {
        ((float *)data)[index] = f;
    } else if (dtype == KN_BF16) {
        ((uint16_t *)data)[index] = kn_bf16_from_float(f);
    } else {
        /* Test values need no correct rounding: 10 fraction bits are cut. Normal numbers only, else zero. */
        uint32_t bits = kn_float_bits(f);
        int32_t exponent = (int32_t)((bits >> 23) & 0xff) - 112;
        uint32_t sign = (bits >> 16) & 0x8000u;
        uint32_t half = exponent <= 0 || exponent >= 31 ? 0 : (uint32_t)exponent << 10 | ((bits >> 13) & 0x3ffu);
        ((uint16_t *)data)[index] = (uint16_t)(sign | half);
    }
}

double check_load(const void *data, kn_dtype dtype, int64_t index)
{
    if (dtype == KN_F32) return ((const float *)data)[index];
    uint16_t half = ((const uint16_t *)data)[index];
    return dtype == KN_BF16 ? kn_bf16_to_float(half) : kn_f16_to_float(half);
}

const char *check_dtype_name(kn_dtype dtype)
{
    static const char *const names[] = {"f32", "bf16", "f16"};
    return names[dtype];
}

const char *check_pattern_name(check_pattern pattern)
{
    static const char *const names[] = {"normal", "nasty", "nan"};
    return names[pattern];
}

/* One row of `count` values; `row` selects the kind of nastiness. */
static void fill_row(check *c, void *data, kn_dtype dtype, int64_t offset, int64_t count, check_pattern pattern,
                     int64_t row)
{
    int kind = pattern == CHECK_NASTY ? (int)(row % 8) : 0;
    double constant = check_normal(c);
    int64_t spike = check_below(c, count);
    for (int64_t i = 0; i < count; i++) {
        double value = check_normal(c);
        switch (kind) {
        case 1: value = check_coin(c) ? 0.0 : -0.0; break;
        case 2: value = constant; break;
        case 3: value *= 1e-39; break;
        case 4: value *= 1e12; break;
        case 5: value *= 1e-20; break;
        case 6: value = i == spike ? 3e4 : 0; break;
        case 7: value += 1000; break;
        default: break;
        }
        check_store(data, dtype, offset + i, value);
    }
}

static kn_matrix new_matrix(check *c, int64_t rows, int64_t cols, kn_dtype dtype, check_kind kind)
{
    int64_t stride = cols + CHECK_PICK(c, 0, 0, 1, 3, 8, 64);
    size_t element = kn_dtype_bytes(dtype), alignment = element;
    if ((c->simt || c->gpu) &&
        (c->aligned || check_coin(c))) { /* GPU variants want vectors of 16 bytes, and are not chosen without */
        stride = (cols + 7) / 8 * 8 + CHECK_PICK(c, 0, 8, 64);
        alignment = 16;
    }
    void *data = check_buffer_new(c, (size_t)((rows - 1) * stride + cols) * element, alignment, kind);
    return (kn_matrix){.data = data, .rows = rows, .cols = cols, .stride = stride, .dtype = dtype};
}

static void fill_matrix(check *c, const kn_matrix *m, check_pattern pattern)
{
    int64_t first = check_below(c, 8);
    for (int64_t r = 0; r < m->rows; r++) fill_row(c, m->data, m->dtype, r * m->stride, m->cols, pattern, first + r);
    if (pattern == CHECK_NAN)
        check_store(m->data, m->dtype, check_below(c, m->rows) * m->stride + check_below(c, m->cols), NAN);
}

kn_matrix check_matrix(check *c, int64_t rows, int64_t cols, kn_dtype dtype, check_pattern pattern)
{
    kn_matrix m = new_matrix(c, rows, cols, dtype, CHECK_INPUT);
    fill_matrix(c, &m, pattern);
    return m;
}

kn_matrix check_matrix_out(check *c, int64_t rows, int64_t cols, kn_dtype dtype)
{
    return new_matrix(c, rows, cols, dtype, CHECK_OUTPUT);
}

kn_matrix check_matrix_inout(check *c, int64_t rows, int64_t cols, kn_dtype dtype, check_pattern pattern)
{
    kn_matrix m = new_matrix(c, rows, cols, dtype, CHECK_OUTPUT);
    fill_matrix(c, &m, pattern);
    return m;
}

const float *check_vector(check *c, int64_t count, double center, double spread)
{
    float *data = check_buffer_new(c, (size_t)count * sizeof *data, sizeof *data, CHECK_INPUT);
    for (int64_t i = 0; i < count; i++) data[i] = (float)(center + spread * check_normal(c));
    return data;
}

int32_t *check_indices(check *c, int64_t count, int64_t limit)
{
    int32_t *data = check_buffer_new(c, (size_t)count * sizeof *data, sizeof *data, CHECK_INPUT);
    for (int64_t i = 0; i < count; i++) data[i] = (int32_t)check_below(c, limit);
    return data;
}

kn_row_table check_row_table(check *c, int64_t rows, int64_t cols, bool indexed)
{
    enum { ENTRIES = 3 };
    kn_row_table table = {.stride = cols + check_below(c, 9)};
    table.data = check_vector(c, (indexed ? ENTRIES - 1 : 0) * table.stride + cols, 0.1, 1);
    if (indexed) table.row_index = check_indices(c, rows, ENTRIES);
    return table;
}

kn_frame check_frame(check *c, const kn_frame *shape, check_pattern pattern, check_kind kind)
{
    kn_frame f = *shape;
    const int64_t b = f.border, element = (int64_t)kn_dtype_bytes(f.dtype);
    f.row_stride = (int32_t)(f.width + 2 * b + CHECK_PICK(c, 0, 0, 1, 5));
    int64_t pixels = (f.height + 2 * b - 1) * f.row_stride + f.width + 2 * b;
    char *first = check_buffer_new(c, (size_t)(pixels * f.channels * element), (size_t)element, kind);
    f.data = first + (b * f.row_stride + b) * f.channels * element;
    for (int64_t y = -b; y < f.height + b; y++)
        memset((char *)f.data + (y * f.row_stride - b) * f.channels * element, 0,
               (size_t)((f.width + 2 * b) * f.channels * element));
    for (int64_t y = 0; y < f.height; y++)
        for (int64_t x = 0; x < f.width; x++)
            fill_row(c, f.data, f.dtype, (y * f.row_stride + x) * f.channels, f.channels, pattern, y * f.width + x);
    if (pattern == CHECK_NAN) {
        int64_t pixel = check_below(c, f.height) * f.row_stride + check_below(c, f.width);
        check_store(f.data, f.dtype, pixel * f.channels + check_below(c, f.channels), NAN);
    }
    return f;
}

double *check_row_scale(check *c, int64_t rows)
{
    return check_buffer_new(c, (size_t)rows * sizeof(double), sizeof(double), CHECK_INPUT);
}

double check_row_norm(const kn_matrix *m, int64_t row)
{
    double squares = 0;
    for (int64_t i = 0; i < m->cols; i++) {
        double value = check_load(m->data, m->dtype, row * m->stride + i);
        if (isfinite(value)) squares += value * value;
    }
    return sqrt(squares);
}

double check_row_largest(const kn_matrix *m, int64_t row)
{
    double largest = 0;
    for (int64_t i = 0; i < m->cols; i++) {
        double value = fabs(check_load(m->data, m->dtype, row * m->stride + i));
        if (isfinite(value)) largest = fmax(largest, value);
    }
    return largest;
}
