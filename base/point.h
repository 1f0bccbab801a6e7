/* SPDX-License-Identifier: Apache-2.0
 *
 * Named points at which a test may have the process killed, to see that nothing is lost there. Each stands right before
 * or after something becomes durable. KINORA_KILL_AT=NAME or NAME:N in the environment ends the process with SIGKILL
 * the N-th time (the first) it comes by; without the variable a point costs one load. Whoever can set a process's
 * environment could kill it anyway. Thread-safe. */
#ifndef KN_BASE_POINT_H
#define KN_BASE_POINT_H

/* X(name): the points there are, so that a test can walk them all. */
#define KN_POINTS(X)                                                                                                   \
    X(store_begin)       /* operations taken, transaction open */                                                      \
    X(store_commit)      /* everything written, not committed */                                                       \
    X(store_committed)   /* on disk, nobody told */                                                                    \
    X(submit_committed)  /* the job is on disk, the client not answered */                                             \
    X(submit_answered)   /* the answer is in the socket's hands */                                                     \
    X(claim_committed)   /* the lease is on disk, no worker told */                                                    \
    X(start_sent)        /* a worker was told */                                                                       \
    X(slice_done)        /* a slice's result arrived, nothing kept of it */                                            \
    X(checkpoint_kept)   /* a checkpoint's row was handed to the store */                                              \
    X(publish_begin)     /* the video's file is complete, no row names it */                                           \
    X(publish_committed) /* the row is on disk, nobody told */                                                         \
    X(finish_begin)      /* a job is about to be failed or cancelled */                                                \
    X(finish_committed)  /* that is on disk, nobody told */                                                            \
    X(remove_committed)  /* a deletion is on disk, its files are there */                                              \
    X(delivery_sent)     /* a webhook was handed to the notifier */                                                    \
    X(delivery_answered) /* the receiver has answered, no row says so */                                               \
    X(recover)           /* at a start, in the middle of taking jobs up again */                                       \
    X(drain)             /* draining has begun */

#define KN_POINT_ENUM(name) KN_POINT_##name,
typedef enum kn_point_name { KN_POINTS(KN_POINT_ENUM) KN_POINT_COUNT } kn_point_name;
#undef KN_POINT_ENUM

void kn_point(kn_point_name point);

/* "store_begin", ...; NULL past the end. */
const char *kn_point_text(int index);

#endif
