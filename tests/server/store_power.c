/* SPDX-License-Identifier: Apache-2.0
 *
 * A machine that loses its power: before every operation on a file that a run of the store makes, images of the disk
 * are built as the failure may leave it (fault_vfs.h) and opened as a store. Each must open, be sound, have everything
 * that was acknowledged until then, and of the operation under way all or nothing.
 *
 * KN_DRAWS in the environment: random images for each operation. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/server/fault_vfs.h"
#include "tests/server/store_test.h"

enum { DRAWS = 1, DRAWS_MAX = 1000, JOBS = 30, MESSAGE_BYTES = 512, IMAGES_MIN = 1000 };

typedef struct power {
    fault_vfs vfs;
    kn_store *store;
    char directory[PATH_BYTES], image[PATH_BYTES];
    uint64_t seed;
    int draws;
    kn_job_state acknowledged[JOBS], under_way[JOBS]; /* KN_JOB_STATES: there is no such job */
    char ids[JOBS][KN_JOB_ID_BYTES];
    kn_audit_head head;              /* of the last acknowledged operation */
    int64_t images, unsynced, ahead; /* images; with something not synced; with the operation under way already there */
    char message[MESSAGE_BYTES];     /* what was wrong with an image: the hook runs on the store's thread */
} power;

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static bool write_image(power *p)
{
    remove_directory(p->image);
    if (mkdir(p->image, 0700) != 0) return false;
    bool unsynced = false;
    for (int i = 0; i < VFS_FILES_MAX; i++) {
        const vfs_disk *disk = &p->vfs.disks[i];
        char path[2 * PATH_BYTES];
        uint8_t *bytes;
        int64_t count;
        if (disk->name[0] == '\0') continue;
        if (disk_after_power_loss(disk, next_random, &p->seed, &bytes, &count)) {
            snprintf(path, sizeof path, "%s/%s", p->image, disk->name);
            FILE *file = fopen(path, "wb");
            if (!file || fwrite(bytes, 1, (size_t)count, file) != (size_t)count || fclose(file) != 0) return false;
        }
        unsynced |= disk->first != NULL;
        free(bytes);
    }
    p->unsynced += unsynced;
    return true;
}

/* NULL, or what is wrong. */
static const char *check_image(power *p)
{
    kn_store *store = NULL;
    const kn_store_params params = {.directory = p->image, .quick_check = true};
    if (kn_store_open(&store, &params) != KN_OK) return kn_fail_message();
    const char *wrong = NULL;
    for (int i = 0; i < JOBS && !wrong; i++) {
        kn_job job;
        kn_job_state state = KN_JOB_STATES;
        if (kn_store_job_get(store, NULL, p->ids[i], &job) == KN_OK) {
            state = job.state;
            kn_job_release(&job);
        }
        if (state != p->acknowledged[i] && state != p->under_way[i]) wrong = "a job is not as it was acknowledged";
        p->ahead += state != p->acknowledged[i];
    }
    if (!wrong && kn_store_audit_verify(store, &p->head, NULL) != KN_OK) wrong = kn_fail_message();
    kn_store_close(&store);
    if (wrong) return wrong;
    char path[PATH_BYTES + 16];
    sqlite3 *db = NULL;
    database_path(path, p->image);
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) == SQLITE_OK)
        wrong = broken_invariant(db);
    else
        wrong = "it cannot be opened";
    sqlite3_close(db);
    return wrong;
}

static void lose_power(void *context)
{
    power *p = context;
    for (int i = 0; i < p->draws && p->message[0] == '\0'; i++) {
        const uint64_t seed = p->seed;
        const char *wrong = write_image(p) ? check_image(p) : "an image could not be written";
        p->images++;
        if (wrong)
            snprintf(p->message, sizeof p->message, "before file operation %d, seed %llu: %s", (int)p->vfs.operations,
                     (unsigned long long)seed, wrong);
    }
}

static void step(power *p, int job, kn_store_op op, kn_job_state to)
{
    p->under_way[job] = to;
    op.id = p->ids[job];
    const kn_store_result r = perform(p->store, &op);
    assert_outcome(r, KN_STORE_DONE);
    p->acknowledged[job] = to;
    assert_int_equal(kn_store_audit_head(p->store, &p->head), KN_OK);
    if (p->message[0]) fail_msg("%s", p->message);
}

/* Records from here on: what is on the disk now is synced. */
static void start_recording(power *p)
{
    static const char *const names[] = {"kinora.db", "kinora.db-wal"};
    for (int i = 0; i < 2; i++) {
        char path[PATH_BYTES + 32];
        snprintf(path, sizeof path, "%s/%s", p->directory, names[i]);
        FILE *file = fopen(path, "rb");
        if (!file) continue;
        vfs_disk *disk = disk_find(&p->vfs, names[i], true);
        assert_int_equal(fseek(file, 0, SEEK_END), 0);
        disk->count = ftell(file);
        disk->bytes = malloc((size_t)disk->count + 1);
        assert_non_null(disk->bytes);
        rewind(file);
        assert_int_equal(fread(disk->bytes, 1, (size_t)disk->count, file), disk->count);
        disk->durable = true;
        fclose(file);
    }
    p->vfs.before = lose_power;
    p->vfs.context = p;
    p->vfs.recording = true;
}

static void run_jobs(power *p)
{
    for (int i = 0; i < JOBS; i++) {
        kn_job job;
        fill_job(&job, "acme");
        memcpy(job.id, p->ids[i], sizeof job.id);
        kn_store_op op = submit_of(&job);
        op.submit.idempotency_key = job.id;
        step(p, i, op, KN_JOB_QUEUED);
        if (i % 3 == 2) continue;
        step(p, i, (kn_store_op){.kind = KN_STORE_CLAIM}, KN_JOB_RUNNING);
        step(p, i, (kn_store_op){.kind = KN_STORE_CHECKPOINT, .epoch = 1, .checkpoint = {.name = "c"}}, KN_JOB_RUNNING);
        if (i % 3 == 0)
            step(p, i, publish_of(p->ids[i], 1), KN_JOB_COMPLETED);
        else
            step(p, i, finish_of(p->ids[i], 1, KN_JOB_FAILED), KN_JOB_FAILED);
        if (i % 6 == 0) step(p, i, (kn_store_op){.kind = KN_STORE_REMOVE, .tenant = "acme"}, KN_JOB_DELETED);
    }
}

static void test_power_lost_anywhere(void **state)
{
    (void)state;
    power *p = kn_alloc(sizeof *p);
    assert_non_null(p);
    const char *draws = getenv("KN_DRAWS");
    p->draws = draws && *draws ? (int)strtol(draws, NULL, 10) : DRAWS;
    assert_in_range(p->draws, 1, DRAWS_MAX);
    p->seed = 20261122;
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(kn_job_new_id(p->ids[i]), KN_OK);
        p->acknowledged[i] = p->under_way[i] = KN_JOB_STATES;
    }
    vfs_install(&p->vfs);
    make_fast_directory(p->directory);
    make_fast_directory(p->image);
    kn_store_params params = {.directory = p->directory};
    assert_int_equal(kn_store_open(&p->store, &params), KN_OK); /* made whole, then opened for the run */
    kn_store_close(&p->store);

    params.vfs = "fault";
    params.checkpoint_bytes = 200 << 10; /* the log is copied and begun again several times */
    start_recording(p);
    assert_int_equal(kn_store_open(&p->store, &params), KN_OK);
    run_jobs(p);
    assert_true(kn_store_read_stats(p->store).checkpoints >= 3);
    kn_store_close(&p->store);
    p->vfs.recording = false;
    if (p->message[0]) fail_msg("%s", p->message);
    print_message(
        "%d images before %d file operations, %d with something not synced, %d ahead of the acknowledgement\n",
        (int)p->images, (int)p->vfs.operations, (int)p->unsynced, (int)p->ahead);
    assert_true(p->images >= IMAGES_MIN);
    assert_true(p->unsynced > p->images / 2);
    vfs_remove(&p->vfs);
    remove_directory(p->directory);
    remove_directory(p->image);
    kn_free(p);
}

int main(void)
{
    kn_log_configure(KN_LOG_ERROR + 1, 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_lost_anywhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
