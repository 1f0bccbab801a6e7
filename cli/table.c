/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/table.h"

#include <stdarg.h>
#include <string.h>

#include "base/mem.h"

enum { CELL_BYTES = 512, FIRST_CELLS = 64 };

kn_table kn_table_start(const char *alignment)
{
    return (kn_table){.alignment = alignment};
}

void kn_table_cell(kn_table *table, const char *format, ...)
{
    char text[CELL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (table->status != KN_OK) return;
    if (table->count == table->capacity) {
        const int32_t capacity = table->capacity ? 2 * table->capacity : FIRST_CELLS;
        char **cells = kn_realloc(table->cells, (size_t)capacity * sizeof *cells);
        if (!cells) {
            table->status = KN_NOMEM;
            return;
        }
        table->cells = cells;
        table->capacity = capacity;
    }
    table->cells[table->count] = kn_strdup(text);
    if (table->cells[table->count])
        table->count++;
    else
        table->status = KN_NOMEM;
}

static void put_row(const kn_table *table, int32_t row, int32_t columns, const int *widths, FILE *out)
{
    for (int32_t c = 0; c < columns; c++) {
        const char *cell = table->cells[row * columns + c];
        fprintf(out, table->alignment[c] == 'r' ? "| %*s " : "| %-*s ", widths[c], cell);
    }
    fputs("|\n", out);
}

static void put_rule(const kn_table *table, int32_t columns, const int *widths, FILE *out)
{
    for (int32_t c = 0; c < columns; c++) {
        fputs("|-", out);
        for (int i = 0; i < widths[c]; i++) fputc('-', out);
        fputc(table->alignment[c] == 'r' ? ':' : '-', out);
    }
    fputs("|\n", out);
}

kn_status kn_table_finish(kn_table *table, FILE *out)
{
    const kn_status st = table->status;
    const int32_t columns = (int32_t)strlen(table->alignment);
    int widths[KN_TABLE_COLUMNS_MAX] = {0};
    if (columns < 1 || columns > KN_TABLE_COLUMNS_MAX)
        return kn_fail(KN_BUG, "a table of %d columns; at most %d", columns, KN_TABLE_COLUMNS_MAX);
    const int32_t rows = table->count / columns;
    for (int32_t i = 0; i < rows * columns; i++) {
        const int width = (int)strlen(table->cells[i]);
        if (width > widths[i % columns]) widths[i % columns] = width;
    }
    for (int32_t row = 0; st == KN_OK && row < rows; row++) {
        put_row(table, row, columns, widths, out);
        if (row == 0) put_rule(table, columns, widths, out);
    }
    for (int32_t i = 0; i < table->count; i++) kn_free(table->cells[i]);
    kn_free(table->cells);
    *table = (kn_table){.alignment = table->alignment};
    return st;
}
