/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose turn it is in the event loop. A device that has finished a slice stands still until it is told what comes next,
 * and so does a client whose commit is on disk; a flood of requests must not come before either, and no request behind
 * a flood of new connections. So the loop has three priorities, looks for events of a better one after every
 * KN_LOOP_TURN callbacks of a worse one, and libevent gives the second, which is half of three, to every event that
 * asks for none. */
#ifndef KN_SERVER_LOOP_H
#define KN_SERVER_LOOP_H

enum {
    KN_LOOP_FIRST, /* devices, the store, decisions */
    KN_LOOP_OTHERS,
    KN_LOOP_LAST, /* connections of which nothing has come yet: turns.h */
    KN_LOOP_PRIORITIES,
    KN_LOOP_TURN = 8,
};

#endif
