/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose turn it is in the event loop. A device that has finished a slice stands still until it is told what comes next,
 * and so does a client whose commit is on disk; a flood of requests must not come before either. So the loop has two
 * priorities, looks for events of the first one after every KN_LOOP_TURN callbacks of the second, and libevent gives
 * the second, which is half of two, to every event that asks for none. */
#ifndef KN_SERVER_LOOP_H
#define KN_SERVER_LOOP_H

enum {
    KN_LOOP_FIRST, /* devices, the store, decisions */
    KN_LOOP_OTHERS,
    KN_LOOP_PRIORITIES,
    KN_LOOP_TURN = 8,
};

#endif
