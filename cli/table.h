/* SPDX-License-Identifier: Apache-2.0
 *
 * A table whose columns are as wide as their widest cell, printed so that it
 * reads well on a terminal and is Markdown too. */
#ifndef KN_CLI_TABLE_H
#define KN_CLI_TABLE_H

#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum { KN_TABLE_COLUMNS_MAX = 12 };

typedef struct kn_table {
    const char *alignment; /* one letter a column: 'l' or 'r' */
    char **cells;          /* row after row; the first row is the head */
    int32_t count, capacity;
    kn_status status; /* of the first cell that found no memory */
} kn_table;

/* `alignment` stays valid. */
kn_table kn_table_start(const char *alignment);

/* Appends the next cell, left to right, top to bottom. */
void kn_table_cell(kn_table *table, const char *format, ...) KN_PRINTF(2, 3);

/* Prints the rows that are complete and frees the table, also on failure: KN_NOMEM when a cell was lost. */
kn_status kn_table_finish(kn_table *table, FILE *out);

#endif
