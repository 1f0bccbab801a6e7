/* SPDX-License-Identifier: Apache-2.0
 *
 * The inference protocol on a running server: what both of its fronts, REST and gRPC, ask. Loop thread only. */
#ifndef KN_SERVER_KSERVE_CORE_H
#define KN_SERVER_KSERVE_CORE_H

#include "server/core.h"
#include "server/kserve.h"

/* Longest file inside an answer. A longer one is there all the same, under its id in the Videos API. */
enum { KN_KSERVE_FILE_BYTES_MAX = 56 << 20 };

/* What the answer of an inference is to hold, while its job runs. */
typedef struct kn_kserve_wish {
    unsigned outputs, binary;
    char model[KN_MODEL_NAME_BYTES];
    char id[KN_KSERVE_ID_BYTES_MAX + 1];
    void *stream; /* of ModelStreamInfer: its request (kserve_infer.c) */
} kn_kserve_wish;

/* By folder name or alias, with its one version; else 404. */
kn_status kn_kserve_find(kn_server *server, const char *name, const char *version, kn_catalog_model **out,
                         kn_api_error *error);
bool kn_kserve_model_ready(const kn_server *server, const kn_catalog_model *model);
kn_kserve_model kn_kserve_model_of(const kn_server *server, const kn_catalog_model *model);
/* All of them, or the ready ones. Returns how many. */
size_t kn_kserve_list(const kn_server *server, bool ready_only, kn_kserve_model out[KN_CATALOG_MODELS_MAX]);
/* Of one model, or with "" of all. */
kn_status kn_kserve_read_statistics(kn_server *server, const char *name, const char *version,
                                    kn_kserve_model models[KN_CATALOG_MODELS_MAX],
                                    kn_kserve_counts counts[KN_CATALOG_MODELS_MAX], size_t *count, kn_api_error *error);
/* A job has ended. */
void kn_kserve_job_ended(kn_server *server, const kn_live *live);

/* Takes a model out of service: no new jobs, those there are go on, and devices give its weights back once none is
 * left. Until a load, or the server's next start. `principal` is for the log. */
kn_status kn_kserve_unload(kn_server *server, const char *name, const char *who, kn_api_error *error);
/* Takes it back, also one whose folder has come or been mended meanwhile. */
kn_status kn_kserve_load(kn_server *server, const char *name, const char *who, kn_api_error *error);
/* From time to time: what unloading leaves to be done. */
void kn_kserve_sweep(kn_server *server);

/* NULL: no memory. kn_free it. */
kn_kserve_wish *kn_kserve_wish_of(const kn_kserve_request *request, const kn_catalog_model *model);
/* An answer to it without what the job says. */
kn_kserve_answer kn_kserve_answer_to(const kn_kserve_wish *wish);

/* The finished job's part of an answer; `answer` has model, id, outputs and binary already. KN_OK, or what the client
 * is told; the caller closes *fd (-1 where no output is a file). */
kn_status kn_kserve_open_answer(kn_server *server, const kn_live *live, kn_kserve_answer *answer, int *fd,
                                uint64_t *file_bytes, kn_api_error *error);
/* The file's bytes into out[bytes]. False: it is shorter, or cannot be read. */
bool kn_kserve_read_file(int fd, void *out, uint64_t bytes);

#endif
