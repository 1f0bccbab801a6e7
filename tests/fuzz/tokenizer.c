/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as a tokenizer: a first even byte makes the rest a tokenizer.json, an
 * odd one a spiece.model. What opens has to encode. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/token.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const texts[] = {
    "",
    " ",
    "a red ball  bounces off\tthe backboard \n",
    "e\xcc\x81\xcc\x82 \xc2\xbd\xe2\x80\x8d \xe3\x81\x8b\xe3\x82\x99 \xef\xac\x81 \xef\xb7\xba "
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7",
    "</s><pad> <extra_id_0>  <unk>aab\xe2\x96\x81\xe2\x96\x81"
    "b<0x41>",
    "\xff\xe2\x82 \xed\xa0\x80\xf4\x90\x80\x80 a",
};

static void encode(const kn_tokenizer *tokenizer, const char *text, size_t bytes, int32_t limit)
{
    int32_t *ids = NULL;
    int32_t count = 0;
    if (kn_tokenizer_encode(tokenizer, text, bytes, limit, &ids, &count) != KN_OK) return;
    if (count < 1 || count > limit) abort();
    for (int32_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= kn_tokenizer_vocabulary(tokenizer)) abort();
    }
    kn_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kn_log_configure(KN_LOG_ERROR, 0);
    if (size == 0) return 0;
    kn_tokenizer *tokenizer = NULL;
    kn_status st = data[0] % 2 == 0 ? kn_tokenizer_from_json(&tokenizer, (const char *)data + 1, size - 1, "fuzz")
                                    : kn_tokenizer_from_spiece(&tokenizer, data + 1, size - 1, "fuzz");
    if (st == KN_OK) {
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            encode(tokenizer, texts[i], strlen(texts[i]), 512);
            encode(tokenizer, texts[i], strlen(texts[i]), 3);
        }
        encode(tokenizer, (const char *)data, size < 4096 ? size : 4096, 512);
    }
    kn_tokenizer_close(&tokenizer);
    return 0;
}
