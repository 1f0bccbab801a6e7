/* SPDX-License-Identifier: Apache-2.0
 *
 * checkops holds every tier of every operator to the reference tier, and times
 * it against what the machine can do. The list in kernels/ops.inc is the law:
 * for each KN_OP(name) there must be a check_<name> and a bench_<name>.
 *
 * A check walks configurations. For each it builds inputs in fenced memory,
 * describes one call as a check_case, and hands it to check_judge(), which
 *   - runs the reference once,
 *   - runs each tier with 1, 2 and 3 threads: close to the reference (1), equal
 *     bit by bit among thread counts,
 *   - runs slices of the call (fewer rows, one sequence, one head): the same bits
 *     as the whole call gave,
 *   - after each run: nothing outside the output changed, nor any input.
 * Inputs end where an unreadable page begins, so a read past the end stops the
 * program with the name of the configuration. */
#ifndef KN_TESTS_CHECKOPS_H
#define KN_TESTS_CHECKOPS_H

#include "kernels/cpu.h"

enum {
    CHECK_THREADS = 3, /* devices with 1, 2 and 3 threads per tier */
    CHECK_TIERS = 8,
    CHECK_BUFFERS = 64,      /* live at once in one configuration */
    CHECK_ARGS_BYTES = 1024, /* room for any operator's arguments */
};

/* This build has a sanitizer. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CHECK_SANITIZED = 1 };
#else
enum { CHECK_SANITIZED = 0 };
#endif

#define CHECK_ROUND_F32 0x1p-24 /* unit roundoff of float */
#define CHECK_ROUND_BF16 0x1p-9 /* of bf16 */

#define CHECK_COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))

/* One set of implementations. On the CPU a run is repeated with 1, 2 and 3 threads, on the executor of CUDA kernels
 * (tests/simt) in three orders of GPU threads; both must give the same bits. */
typedef struct check_tier {
    const char *name; /* "ref", "avx2", "cuda", ... */
    bool reference;
    bool simt;
    kn_device *device[CHECK_THREADS]; /* [threads - 1]; simt: the same one */
    kn_stream *stream[CHECK_THREADS];
} check_tier;

typedef enum check_kind {
    CHECK_INPUT,     /* must not change */
    CHECK_OUTPUT,    /* changes where the case's view says */
    CHECK_WORKSPACE, /* contents free, surroundings must not change */
} check_kind;

typedef struct check_buffer {
    char *map; /* pages; the last one is unreadable */
    size_t map_bytes;
    char *begin;  /* first guarded byte before the data */
    size_t bytes; /* guard, data and guard */
    char *data;
    size_t data_bytes;
    char *saved; /* [bytes] what `begin` held before the first run */
    check_kind kind;
} check_buffer;

typedef enum check_pattern {
    CHECK_NORMAL, /* independent, mean 0, variance 1 */
    CHECK_NASTY,  /* row by row: ordinary, zero, constant, subnormal, 1e12, 1e-20, one spike, offset 1000 */
    CHECK_NAN,    /* normal with one NaN */
    CHECK_PATTERNS,
} check_pattern;

typedef struct check {
    const char *only_op;
    const char *only_tier; /* NULL: all */
    bool simt;             /* judges the CUDA kernels on tests/simt instead of the CPU tiers */
    const char *gpu;       /* judges them on this GPU, "cuda:0"; or NULL */
    bool aligned;          /* matrices are as vector and tensor copies want them; else, on a GPU, half of them are */
    uint64_t seed;
    bool verbose;

    check_tier tiers[CHECK_TIERS]; /* [0] is ref */
    int tier_count;

    const char *op;
    int config_index;
    char config[256];
    uint64_t random;
    check_buffer buffers[CHECK_BUFFERS];
    int buffer_count;

    uint64_t way; /* of the last tier's whole call */
    int passed, failed;
    double spent; /* seconds in reference runs */
} check;

/* ---- tiers (tiers.c) ---- */

kn_status check_open_tiers(check *c);
void check_close_tiers(check *c);
/* Before each run: `threads` 1.. chooses the order of a GPU's threads. */
void check_seed_run(const check_tier *tier, int threads);
/* Which kernels of a GPU the calls since the last question took, as a number; 0 on a CPU. */
uint64_t check_way(const check_tier *tier);
/* After a failure, so that the next run finds a working device. */
void check_revive(check_tier *tier);
/* Memory that the kernels of a GPU may use. */
void check_share(const check *c, void *memory, size_t bytes);
void check_unshare(const check *c, void *memory);

/* ---- configurations and random values ---- */

/* How many of `rounds` random configurations to walk: on tests/simt a call takes milliseconds, so fewer; with a
 * sanitizer too, which looks at each line and not at each number. */
int check_rounds(const check *c, int rounds);

/* Starts the next configuration: frees the last one's buffers, names this one
 * and seeds its random values from the program's seed, the operator and its index. */
void check_begin(check *c, const char *format, ...) KN_PRINTF(2, 3);

uint64_t check_random(check *c);
bool check_coin(check *c);
int64_t check_below(check *c, int64_t limit);
double check_normal(check *c);
int64_t check_pick_from(check *c, const int64_t *list, int count);
#define CHECK_PICK(c, ...)                                                                                             \
    check_pick_from(c, (const int64_t[]){__VA_ARGS__}, CHECK_COUNT(((const int64_t[]){__VA_ARGS__})))

/* ---- fenced memory; lives until the next check_begin ---- */

void *check_buffer_new(check *c, size_t bytes, size_t alignment, check_kind kind);
kn_matrix check_matrix(check *c, int64_t rows, int64_t cols, kn_dtype dtype, check_pattern pattern);
kn_matrix check_matrix_out(check *c, int64_t rows, int64_t cols, kn_dtype dtype);
/* An output that also holds input values. */
kn_matrix check_matrix_inout(check *c, int64_t rows, int64_t cols, kn_dtype dtype, check_pattern pattern);
/* center + spread * normal */
const float *check_vector(check *c, int64_t count, double center, double spread);
int32_t *check_indices(check *c, int64_t count, int64_t limit);
/* A row table with 3 entries and scattered indices, or one entry shared by all. */
kn_row_table check_row_table(check *c, int64_t rows, int64_t cols, bool indexed);
kn_frame check_frame(check *c, const kn_frame *shape, check_pattern pattern, check_kind kind);
void check_store(void *data, kn_dtype dtype, int64_t index, double value);
double check_load(const void *data, kn_dtype dtype, int64_t index);
const char *check_dtype_name(kn_dtype dtype);
const char *check_pattern_name(check_pattern pattern);

/* ---- one call ---- */

/* The elements a call writes: (i, j, l) at data[i * stride[0] + j * stride[1] + l]; (i, j) is a row. */
typedef struct check_view {
    void *data;
    kn_dtype dtype;
    int64_t count[3];
    int64_t stride[2];
    bool bytes; /* elements are single bytes; `dtype` is not read */
} check_view;

check_view check_view_matrix(const kn_matrix *m);
check_view check_view_frame(const kn_frame *f);

/* |got - want| <= relative * |want| + scaled * scale[row], plus one bf16 step when the output is bf16, and
 * sum (got - want)^2 <= nmse * sum want^2. */
typedef struct check_tolerance {
    double relative;
    double scaled;
    const double *scale; /* [rows of the view]; NULL: the row's largest |want| */
    double nmse;         /* 0: not judged */
    bool exact;          /* the same bits as the reference */
} check_tolerance;

typedef kn_status check_call(const kn_ops *ops, kn_stream *stream, const void *args);
#define KN_OP(name, summary) check_call check_call_##name;
#include "kernels/ops.inc"
#undef KN_OP

typedef struct check_case {
    check_call *call;
    const void *args;
    size_t args_bytes;
    check_view output;
    check_tolerance tolerance;
    /* Replaces what belongs to one tier (prepared weights, workspace); may be NULL. */
    kn_status (*prepare)(check *c, const check_tier *tier, void *args);
    /* Narrows the call: slice `index` of `slices`, and what it still writes. */
    int slices;
    void (*slice)(const void *args, int index, void *sliced, check_view *covered);
} check_case;

void check_judge(check *c, const check_case *one);

/* Rows [*first, *first + *count) of slice `index` for calls that are sliced by rows. */
enum { CHECK_ROW_SLICES = 6 };
void check_row_range(int64_t rows, int index, int64_t *first, int64_t *count);
kn_matrix check_rows_of(const kn_matrix *m, int64_t first, int64_t count);
kn_row_table check_table_rows_of(const kn_row_table *table, int64_t first);

/* [rows] largest finite |value| of each row; lives until the next check_begin. */
double *check_row_scale(check *c, int64_t rows);
double check_row_norm(const kn_matrix *m, int64_t row);
double check_row_largest(const kn_matrix *m, int64_t row);

#define KN_OP(name, summary) void check_##name(check *c);
#include "kernels/ops.inc"
#undef KN_OP

void check_note(const char *op, const char *tier, int threads, const char *config);

#endif
