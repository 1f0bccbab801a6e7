/* SPDX-License-Identifier: Apache-2.0
 *
 * One sink, four levels. Messages go to standard error as "level: text" or, in
 * JSON mode, as one object a line. Secrets are never passed here. Thread-safe. */
#ifndef KN_BASE_LOG_H
#define KN_BASE_LOG_H

#include "base/status.h"

typedef enum kn_log_level { KN_LOG_DEBUG, KN_LOG_INFO, KN_LOG_WARNING, KN_LOG_ERROR } kn_log_level;

/* Messages below `level` are dropped; the default is KN_LOG_INFO. */
void kn_log_configure(kn_log_level level, int json);

void kn_log(kn_log_level level, const char *format, ...) KN_PRINTF(2, 3);

#endif
