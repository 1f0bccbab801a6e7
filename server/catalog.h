/* SPDX-License-Identifier: Apache-2.0
 *
 * The models a server can offer: the folders below --models, read at start and on reload.
 *
 * An entry holds the folder's configuration and tokenizer and its weights' headers (mapped, not read), so that a
 * request can be checked, completed and measured before any worker sees it. It computes nothing.
 *
 * Owned and used by the loop thread. Entries stay valid until the catalog closes: one whose folder is gone is marked,
 * not removed, because jobs may still name it. */
#ifndef KN_SERVER_CATALOG_H
#define KN_SERVER_CATALOG_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/model.h"
#include "scheduler/scheduler.h"
#include "server/job.h"

enum {
    KN_CATALOG_MODELS_MAX = 16, /* as many as the scheduler knows */
    KN_CATALOG_ALIASES_MAX = 64,
    KN_CATALOG_ERROR_BYTES = 256,
};

typedef struct kn_catalog kn_catalog;

typedef struct kn_catalog_alias {
    char name[KN_MODEL_NAME_BYTES]; /* what clients say */
    char model[KN_MODEL_NAME_BYTES];
} kn_catalog_alias;

typedef struct kn_catalog_model {
    char name[KN_MODEL_NAME_BYTES]; /* the folder's */
    char *directory;
    int64_t created;                    /* seconds since 1970: the folder's model_index.json was last changed */
    bool available;                     /* the folder is there and this engine runs it */
    char error[KN_CATALOG_ERROR_BYTES]; /* why it is not available */
    bool offline;                       /* unloaded by an operator: no new jobs; those there are go on */
    kn_model *planner;                  /* for sizes and the tokenizer; NULL when not available */
    const kn_repository *repository;
} kn_catalog_model;

/* What a request will take, in the scheduler's terms. */
typedef struct kn_catalog_size {
    int32_t tokens;           /* rows of one sequence in the transformer */
    int32_t sequences;        /* 2 with classifier-free guidance */
    int32_t text_tokens;      /* of all sequences, as the text encoder sees them */
    int32_t latent_frames;    /* decode slices */
    int32_t latent_pixels;    /* height x width of one latent frame */
    uint64_t state_bytes;     /* held from the first slice to the last */
    uint64_t workspace_bytes; /* on top, during text and denoise slices */
    uint64_t decoder_bytes;   /* on top, while decoding */
} kn_catalog_size;

/* Reads every folder below `directory`; a directory that is itself a model folder is a catalog of one. A folder that
 * cannot be used is listed with its error. KN_NOT_FOUND: no such directory, or no model in it. */
kn_status kn_catalog_open(kn_catalog **out, const char *directory, const kn_catalog_alias *aliases, int32_t count);
void kn_catalog_close(kn_catalog **catalog);

/* The folder that holds the model folders by name, absolute: what a worker is told. False: `bytes` are too few. */
bool kn_catalog_folder(const kn_catalog *catalog, char *out, size_t bytes);

/* Looks for new, mended and vanished folders. */
kn_status kn_catalog_rescan(kn_catalog *catalog);

int32_t kn_catalog_count(const kn_catalog *catalog);
kn_catalog_model *kn_catalog_at(const kn_catalog *catalog, int32_t index);
int32_t kn_catalog_index(const kn_catalog *catalog, const kn_catalog_model *model);

/* Does it take new jobs? */
bool kn_catalog_serves(const kn_catalog_model *model);

/* By folder name or alias; NULL or "" is the default: the first model by name that takes jobs. NULL: no such model. */
kn_catalog_model *kn_catalog_find(const kn_catalog *catalog, const char *name);

/* Terms of the model for the scheduler's cost model, from its configuration. */
kn_status kn_catalog_cost(kn_cost_model *out, const kn_catalog_model *model);

/* For a resolved request. */
kn_status kn_catalog_measure(kn_catalog_size *out, const kn_catalog_model *model, const kn_request *request);

#endif
