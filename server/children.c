/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's child processes are this program under another name. */
#include <string.h>

#include "server/hook_child.h"
#include "server/json.h"
#include "server/notify.h"
#include "server/sandbox.h"
#include "server/server.h"
#include "server/worker.h"

int kn_server_child(int argc, char **argv, bool *known)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } children[] = {{"worker", kn_worker_main},
                    {"notifier", kn_notifier_main},
                    {"sandbox", kn_sandbox_main},
                    {"hook", kn_hook_main}};
    for (size_t i = 0; i < sizeof children / sizeof *children; i++)
        if (strcmp(argv[0], children[i].name) == 0) {
            *known = true;
            return children[i].run(argc, argv);
        }
    *known = false;
    return 0;
}

void kn_server_prepare_process(void)
{
    kn_json_use_kn_alloc();
}
