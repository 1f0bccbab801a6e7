/* SPDX-License-Identifier: Apache-2.0
 *
 * A backup is a data directory: every test opens the copy and looks at what is in it. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <openssl/sha.h>

#include "base/log.h"
#include "server/artifact.h"
#include "server/server.h"
#include "tests/server/store_test.h"

typedef struct place {
    fixture *f;
    char copy[PATH_BYTES + 16];
} place;

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

static int make_place(void **state)
{
    place *p = kn_alloc(sizeof *p);
    assert_non_null(p);
    void *f = NULL;
    set_up(&f);
    p->f = f;
    assert_int_equal(kn_artifact_prepare(p->f->directory), KN_OK);
    snprintf(p->copy, sizeof p->copy, "%s.copy", p->f->directory);
    *state = p;
    return 0;
}

static int remove_place(void **state)
{
    place *p = *state;
    kn_store_close(&p->f->store);
    nftw(p->copy, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    nftw(p->f->directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    pthread_mutex_destroy(&p->f->gate);
    kn_free(p->f);
    kn_free(p);
    return 0;
}

static void put_file(const place *p, const char *folder, const char *name, const char *text)
{
    char path[2 * PATH_BYTES];
    snprintf(path, sizeof path, "%s/%s%s", p->f->directory, folder, name);
    assert_int_equal(kn_artifact_write(path, text, strlen(text)), KN_OK);
}

static bool has_file(const char *directory, const char *folder, const char *name, const char *text)
{
    char path[2 * PATH_BYTES], found[64] = "";
    snprintf(path, sizeof path, "%s/%s%s", directory, folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    const size_t bytes = fread(found, 1, sizeof found - 1, file);
    fclose(file);
    return bytes == strlen(text) && strcmp(found, text) == 0;
}

/* A completed job with a file of these bytes; its name in blobs/. */
static void publish(place *p, kn_job *job, const char *text, char name[KN_ARTIFACT_NAME_BYTES])
{
    kn_artifact a = {.kind = KN_ARTIFACT_VIDEO};
    submit_job(p->f->store, job, "acme");
    claim(p->f->store, job->id, 0);
    memcpy(a.lease.job, job->id, sizeof a.lease.job);
    a.lease.epoch = 1;
    kn_artifact_name(name, &a);
    put_file(p, "blobs/", name, text);
    kn_store_op op = publish_of(job->id, 1);
    op.publish.blob = name;
    SHA256((const unsigned char *)text, strlen(text), op.publish.sha256);
    assert_outcome(perform(p->f->store, &op), KN_STORE_DONE);
}

static kn_backup_report make_backup(const place *p)
{
    kn_backup_report report;
    if (kn_backup(p->f->directory, p->copy, &report) != KN_OK) fail_msg("%s", kn_fail_message());
    check_invariants(p->copy);
    return report;
}

static kn_job read_copy(const place *p, const char *id)
{
    kn_store *store;
    kn_job job;
    assert_int_equal(kn_store_open(&store, &(kn_store_params){.directory = p->copy}), KN_OK);
    assert_int_equal(kn_store_job_get(store, NULL, id, &job), KN_OK);
    kn_store_close(&store);
    return job;
}

static void test_while_it_is_open(void **state)
{
    place *p = *state;
    kn_job done, running, queued, removed;
    char name[KN_ARTIFACT_NAME_BYTES], checkpoint[KN_ARTIFACT_NAME_BYTES];
    kn_audit_head head;
    publish(p, &done, "a video", name);
    submit_job(p->f->store, &running, "acme");
    submit_job(p->f->store, &queued, "acme");
    put_in_state(p->f, &removed, KN_JOB_DELETED);
    claim(p->f->store, running.id, 0);
    kn_artifact a = {.kind = KN_ARTIFACT_CHECKPOINT, .lease.epoch = 1, .step = 3};
    memcpy(a.lease.job, running.id, sizeof a.lease.job);
    kn_artifact_name(checkpoint, &a);
    put_file(p, "checkpoints/", checkpoint, "state");
    const kn_store_op op = {
        .kind = KN_STORE_CHECKPOINT, .id = running.id, .epoch = 1, .checkpoint = {.name = checkpoint, .step = 3}};
    assert_outcome(perform(p->f->store, &op), KN_STORE_DONE);
    put_file(p, "", "key.pepper", "pepper");
    put_file(p, "", "admin.json", "not in a backup");
    const kn_backup_report r = make_backup(p);
    assert_true(r.live);
    assert_int_equal(r.jobs, 3);
    assert_int_equal(r.unfinished, 2);
    assert_int_equal(r.files, 2);
    assert_int_equal(r.gone + r.damaged, 0);
    assert_int_equal(kn_store_audit_head(p->f->store, &head), KN_OK);
    assert_int_equal(r.audit_sequence, head.sequence);
    assert_true(has_file(p->copy, "blobs/", name, "a video"));
    assert_true(has_file(p->copy, "checkpoints/", checkpoint, "state"));
    assert_true(has_file(p->copy, "", "key.pepper", "pepper"));
    assert_false(has_file(p->copy, "", "admin.json", "not in a backup"));
    kn_job back = read_copy(p, running.id);
    assert_int_equal(back.state, KN_JOB_RUNNING);
    assert_string_equal(back.checkpoint, checkpoint);
    kn_job_release(&back);
    submit_job(p->f->store, &queued, "acme"); /* the original goes on */
    struct stat info;
    assert_int_equal(stat(p->copy, &info), 0);
    assert_int_equal(info.st_mode & 077, 0);
}

static void test_without_a_server(void **state)
{
    place *p = *state;
    kn_job job;
    char name[KN_ARTIFACT_NAME_BYTES];
    publish(p, &job, "a video", name);
    kn_store_close(&p->f->store);
    const kn_backup_report r = make_backup(p);
    assert_false(r.live);
    assert_int_equal(r.jobs, 1);
    open_store(p->f); /* the lock was given back */
}

static void test_files_that_are_gone_or_damaged(void **state)
{
    place *p = *state;
    kn_job gone, damaged;
    char gone_name[KN_ARTIFACT_NAME_BYTES], damaged_name[KN_ARTIFACT_NAME_BYTES], path[2 * PATH_BYTES];
    publish(p, &gone, "removed right now", gone_name);
    publish(p, &damaged, "as published", damaged_name);
    snprintf(path, sizeof path, "%s/blobs/%s", p->f->directory, gone_name);
    assert_int_equal(unlink(path), 0);
    put_file(p, "blobs/", damaged_name, "bit rot");
    const kn_backup_report r = make_backup(p);
    assert_int_equal(r.gone, 1);
    assert_int_equal(r.damaged, 1);
    kn_job back = read_copy(p, gone.id);
    assert_int_equal(back.state, KN_JOB_EXPIRED); /* 410 and not 500 */
    assert_null(back.blob);
    kn_job_release(&back);
    assert_true(has_file(p->copy, "blobs/", damaged_name, "bit rot"));
}

static void test_refusals(void **state)
{
    place *p = *state;
    kn_backup_report report;
    char inside[PATH_BYTES + 16], partial[PATH_BYTES + 32];
    struct stat info;
    assert_int_equal(kn_backup(p->f->directory, p->f->directory, &report), KN_INVALID);
    snprintf(inside, sizeof inside, "%s/copy", p->f->directory);
    assert_int_equal(kn_backup(p->f->directory, inside, &report), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "within"));
    assert_int_not_equal(lstat(inside, &info), 0);
    assert_int_equal(kn_backup("/nonexistent/kinora", p->copy, &report), KN_NOT_FOUND);
    snprintf(partial, sizeof partial, "%s.partial", p->copy);
    assert_int_equal(mkdir(partial, 0700), 0);
    assert_int_equal(kn_backup(p->f->directory, p->copy, &report), KN_INVALID);
    assert_int_equal(rmdir(partial), 0); /* somebody else's: left alone */
    assert_int_equal(kn_backup(p->f->directory, "/nonexistent/copy", &report), KN_IO);
}

static void test_a_damaged_database(void **state)
{
    place *p = *state;
    kn_backup_report report;
    kn_job job;
    struct stat info;
    for (int i = 0; i < 50; i++) submit_job(p->f->store, &job, "acme");
    kn_store_close(&p->f->store);
    sqlite3 *db = open_database(p->f->directory);
    const int64_t page = query_number(db, "SELECT rootpage FROM sqlite_schema WHERE name = 'jobs_id'");
    sqlite3_close(db);
    char path[PATH_BYTES + 16];
    database_path(path, p->f->directory);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (page - 1) * 4096 + 4, SEEK_SET), 0);
    fwrite("\xff\xff\xff", 1, 3, file);
    fclose(file);
    assert_int_equal(kn_backup(p->f->directory, p->copy, &report), KN_CORRUPT);
    assert_int_not_equal(lstat(p->copy, &info), 0); /* nothing that looks like a backup */
}

typedef struct writing {
    kn_store *store;
    atomic_bool stop;
    atomic_int submitted;
} writing;

static void *write_on(void *context)
{
    writing *w = context;
    while (!atomic_load(&w->stop)) {
        kn_job job = {.cost_us = 1};
        kn_store_result result;
        kn_job_new_id(job.id);
        memcpy(job.tenant, "acme", 5);
        memcpy(job.model, "demo", 5);
        const kn_store_op op = submit_of(&job);
        if (kn_store_perform(w->store, &op, &result) == KN_OK) atomic_fetch_add(&w->submitted, 1);
        kn_store_result_release(&result);
    }
    return NULL;
}

/* What was acknowledged before it began is in it; what is in it is whole. */
static void test_while_it_is_written(void **state)
{
    place *p = *state;
    writing w = {.store = p->f->store};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, write_on, &w), 0);
    for (int round = 0; round < 5; round++) {
        while (atomic_load(&w.submitted) < (round + 1) * 20) usleep(1000);
        const int before = atomic_load(&w.submitted);
        const kn_backup_report r = make_backup(p);
        assert_true(r.jobs >= before);
        assert_int_equal(r.jobs, r.unfinished);
        nftw(p->copy, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    }
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(kn_store_health(p->f->store), KN_OK);
}

int main(void)
{
    kn_log_configure(KN_LOG_ERROR, 0);
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)
    const struct CMUnitTest tests[] = {
        TEST(test_while_it_is_open), TEST(test_without_a_server),   TEST(test_files_that_are_gone_or_damaged),
        TEST(test_refusals),         TEST(test_a_damaged_database), TEST(test_while_it_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
