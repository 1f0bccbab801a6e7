/* SPDX-License-Identifier: Apache-2.0
 *
 * The ranks of a command that runs one generation on several devices: this process is the first, the others are
 * children of it. When one is lost, all are replaced and the group forms anew under the next epoch. */
#ifndef KN_CLI_RANKS_H
#define KN_CLI_RANKS_H

#include "cli/cli.h"
#include "engine/model.h"
#include "engine/team.h"

/* "cpu:4": four processes of the same machine; "cuda:0-3" or "cuda:0,2": these devices. */
typedef struct kn_cli_devices {
    int32_t count; /* 0: not given */
    char name[KN_COMM_RANKS_MAX][16];
    bool cpu;
} kn_cli_devices;

kn_status kn_cli_parse_devices(const kn_option *option, const char *text); /* kn_cli_devices */

typedef struct kn_ranks kn_ranks;

typedef struct kn_ranks_params {
    const kn_cli_devices *devices;
    kn_model *model; /* of this process, on the first device */
    const char *directory, *preset;
    int32_t preset_layers;
    kn_precision precision, vae_precision;
    const char *isa;
    int32_t threads; /* of each rank */
} kn_ranks_params;

/* Threads of each rank that share this machine, where none are given. */
int32_t kn_ranks_threads(const kn_cli_devices *devices, int32_t given);

/* Starts the others, waits for them, and sets the model's group. */
kn_status kn_ranks_start(kn_ranks **out, const kn_ranks_params *params);
/* Ends the others, whatever they do, and takes the group from the model. */
void kn_ranks_stop(kn_ranks **ranks);

/* Runs the generation's next slice on all ranks. Ranks that are lost are replaced, and the slice is run again: *lost
 * counts how often. Gives up, with the last reason, after three times without a slice in between. */
kn_status kn_ranks_step(kn_ranks *ranks, kn_generation *generation, int32_t *lost);

/* What this rank has sent so far, over all epochs. */
kn_comm_stats kn_ranks_stats(const kn_ranks *ranks);

#endif
