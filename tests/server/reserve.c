/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/reserve.h"
#include "tests/engine/folder.h"

enum { MIB = 1 << 20 };

static int64_t size_of(const char *data)
{
    char path[4200];
    struct stat info;
    snprintf(path, sizeof path, "%s/reserve", data);
    return stat(path, &info) == 0 ? (int64_t)info.st_blocks * 512 : -1;
}

static void test_taken_and_kept(void **state)
{
    kn_reserve r;
    const char *path = *state;
    assert_int_equal(kn_reserve_open(&r, path, MIB), KN_OK);
    assert_true(r.held);
    assert_true(r.free_bytes > 0);
    assert_true(size_of(path) >= MIB);
    assert_false(kn_reserve_tend(&r, false)); /* nothing changes */
    kn_reserve_close(&r);
    assert_true(size_of(path) >= MIB); /* for the next life */
    assert_int_equal(kn_reserve_open(&r, path, MIB), KN_OK);
    assert_true(r.held);
    kn_reserve_close(&r);
    assert_int_equal(kn_reserve_open(&r, path, 2 * MIB), KN_OK); /* another size: made anew */
    assert_true(size_of(path) >= 2 * MIB);
    kn_reserve_close(&r);
}

static void test_given_up_and_taken_again(void **state)
{
    kn_reserve r;
    const char *path = *state;
    assert_int_equal(kn_reserve_open(&r, path, MIB), KN_OK);
    assert_true(kn_reserve_tend(&r, true));
    assert_false(r.held);
    assert_int_equal(size_of(path), -1);
    assert_false(kn_reserve_tend(&r, true)); /* still full */
    assert_true(kn_reserve_tend(&r, false));
    assert_true(r.held);
    assert_true(size_of(path) >= MIB);
    kn_reserve_close(&r);
}

static void test_none_wanted(void **state)
{
    kn_reserve r;
    const char *path = *state;
    assert_int_equal(kn_reserve_open(&r, path, MIB), KN_OK);
    kn_reserve_close(&r);
    assert_int_equal(kn_reserve_open(&r, path, 0), KN_OK);
    assert_true(r.held);
    assert_int_equal(size_of(path), -1);
    assert_false(kn_reserve_tend(&r, true));
    assert_true(r.held);
    kn_reserve_close(&r);
}

/* More than any disk has: the server starts and says so. */
static void test_no_room(void **state)
{
    kn_reserve r;
    assert_int_equal(kn_reserve_open(&r, *state, INT64_C(1) << 60), KN_OK);
    assert_false(r.held);
    assert_int_equal(size_of(*state), -1);
    assert_false(kn_reserve_tend(&r, false));
    kn_reserve_close(&r);
}

/* In a process with a file system of its own, of 4 MiB. The exit status says at which line it failed; 0: good. */
static int on_a_small_disk(const char *data)
{
    kn_reserve r;
    char path[4200], page[4096] = {1};
    if (kn_reserve_open(&r, data, MIB) != KN_OK || !r.held) return 1;
    snprintf(path, sizeof path, "%s/video", data);
    const int file = open(path, O_WRONLY | O_CREAT, 0600);
    while (write(file, page, sizeof page) > 0) continue; /* until the disk is full */
    if (errno != ENOSPC) return 2;
    if (!kn_reserve_tend(&r, false) || r.held) return 3;         /* seen without anybody's failure */
    if (write(file, page, sizeof page) != sizeof page) return 4; /* what it was kept for */
    if (kn_reserve_tend(&r, false) || r.held) return 5;
    if (ftruncate(file, 0) != 0) return 6;
    if (!kn_reserve_tend(&r, false) || !r.held) return 7;
    close(file);
    kn_reserve_close(&r);
    return 0;
}

static void test_a_disk_that_is_full(void **state)
{
    enum { CANNOT = 77 };
    int status;
    const pid_t child = fork();
    if (child == 0) {
        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("none", *state, "tmpfs", 0, "size=4m") != 0)
            _exit(CANNOT);
        _exit(on_a_small_disk(*state));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT) {
        print_message("no file system of its own can be mounted here\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static folder here;

static int make_folder(void **state)
{
    here = folder_create();
    *state = here.path;
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    folder_remove(&here);
    return 0;
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(test_taken_and_kept), TEST(test_given_up_and_taken_again), TEST(test_none_wanted),
        TEST(test_no_room),        TEST(test_a_disk_that_is_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
