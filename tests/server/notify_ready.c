/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "server/notify_ready.h"

/* A service manager: a datagram socket at a path, or with '@' at an abstract name. */
static int listen_at(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t bytes = strlen(name);
    memcpy(address.sun_path, name, bytes);
    if (name[0] == '@') address.sun_path[0] = '\0';
    int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    assert_true(s >= 0);
    assert_int_equal(bind(s, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)),
                     0);
    setenv("NOTIFY_SOCKET", name, 1);
    return s;
}

static const char *heard(int s)
{
    static char text[1024];
    ssize_t count = recv(s, text, sizeof text - 1, 0);
    text[count > 0 ? count : 0] = '\0';
    return text;
}

static void messages(int s)
{
    assert_int_equal(kn_notify_ready("serving 2 models"), KN_OK);
    assert_string_equal(heard(s), "READY=1\nSTATUS=serving 2 models\n");
    assert_int_equal(kn_notify_status("busy\nREADY=1"), KN_OK);
    assert_string_equal(heard(s), "STATUS=busy\n"); /* no second assignment */
    assert_int_equal(kn_notify_reloading(1234567), KN_OK);
    assert_string_equal(heard(s), "RELOADING=1\nMONOTONIC_USEC=1234\n");
    assert_int_equal(kn_notify_stopping("draining"), KN_OK);
    assert_string_equal(heard(s), "STOPPING=1\nSTATUS=draining\n");
    assert_int_equal(kn_notify_watchdog(), KN_OK);
    assert_string_equal(heard(s), "WATCHDOG=1\n");
    assert_int_equal(kn_notify_extend(5000000), KN_OK);
    assert_string_equal(heard(s), "EXTEND_TIMEOUT_USEC=5000000\n");
    assert_string_equal(heard(s), "");
}

static void the_manager_hears(void **state)
{
    (void)state;
    char folder[] = "/tmp/kinora-notify-XXXXXX", path[64], abstract[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s", folder);
    int s = listen_at(path);
    messages(s);
    close(s);
    assert_int_equal(kn_notify_ready("x"), KN_IO); /* the manager has gone */
    unlink(path);
    rmdir(folder);
    snprintf(abstract, sizeof abstract, "@kinora-test-%ld", (long)getpid());
    s = listen_at(abstract);
    messages(s);
    close(s);
}

static void a_full_socket_is_not_waited_for(void **state)
{
    (void)state;
    char abstract[64];
    snprintf(abstract, sizeof abstract, "@kinora-full-%ld", (long)getpid());
    int s = listen_at(abstract), sent = 0;
    while (kn_notify_watchdog() == KN_OK && sent < 100000) sent++;
    assert_in_range(sent, 1, 99999);
    close(s);
}

static void nobody_asks(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    assert_int_equal(kn_notify_ready("x"), KN_OK);
    setenv("NOTIFY_SOCKET", "", 1);
    assert_int_equal(kn_notify_ready("x"), KN_OK);
    static const char *const bad[] = {"relative", "/", "@", "vsock:2:1234"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("NOTIFY_SOCKET", bad[i], 1);
        assert_int_equal(kn_notify_ready("x"), KN_INVALID);
    }
    char longest[200];
    memset(longest, 'a', sizeof longest - 1);
    longest[0] = '/';
    longest[sizeof longest - 1] = '\0';
    setenv("NOTIFY_SOCKET", longest, 1);
    assert_int_equal(kn_notify_ready("x"), KN_INVALID);
    unsetenv("NOTIFY_SOCKET");
}

static void how_often_the_watchdog_wants_to_hear(void **state)
{
    (void)state;
    char process[32];
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    assert_int_equal(kn_notify_watchdog_ns(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(kn_notify_watchdog_ns(), INT64_C(15000000000));
    snprintf(process, sizeof process, "%ld", (long)getpid());
    setenv("WATCHDOG_PID", process, 1);
    assert_int_equal(kn_notify_watchdog_ns(), INT64_C(15000000000));
    setenv("WATCHDOG_PID", "1", 1); /* meant for another process */
    assert_int_equal(kn_notify_watchdog_ns(), 0);
    unsetenv("WATCHDOG_PID");
    static const char *const bad[] = {"", "-5", "10x", "99999999999999999999", " 7", "9223372036854775807"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("WATCHDOG_USEC", bad[i], 1);
        assert_int_equal(kn_notify_watchdog_ns(), 0);
    }
    unsetenv("WATCHDOG_USEC");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_manager_hears),
        cmocka_unit_test(a_full_socket_is_not_waited_for),
        cmocka_unit_test(nobody_asks),
        cmocka_unit_test(how_often_the_watchdog_wants_to_hear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
