/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora devices: what this machine has, how it hangs together, and which groups of devices can share a generation.
 * Processors, memory nodes and PCI devices are read from sysfs, NVLink from NVML where there is one; nothing is
 * changed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/nvlink.h"
#include "cli/table.h"
#include "engine/comm.h"
#include "kernels/device.h"

enum { GPUS_MAX = KN_NVLINK_GPUS_MAX, TEXT_BYTES = 64, PATH_BYTES = 512 };

#define VENDOR_NVIDIA "0x10de"
#define CLASS_DISPLAY "0x03" /* 0x0300 with and 0x0302 without a screen */

typedef struct gpu {
    char address[TEXT_BYTES]; /* 0000:17:00.0 */
    char node[TEXT_BYTES];    /* memory node; -1: not known */
    char speed[TEXT_BYTES], width[TEXT_BYTES];
} gpu;

typedef struct settings {
    const char *sysfs, *nvml;
    bool json;
} settings;

/* First line of a small file, "" where there is none. */
static void read_line(char out[TEXT_BYTES], const char *root, const char *folder, const char *name)
{
    char path[PATH_BYTES];
    out[0] = '\0';
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (fgets(out, TEXT_BYTES, file)) out[strcspn(out, "\n")] = '\0';
    fclose(file);
}

static int compare_gpus(const void *a, const void *b)
{
    return strcmp(((const gpu *)a)->address, ((const gpu *)b)->address);
}

static int find_gpus(const char *root, gpu out[GPUS_MAX])
{
    char path[PATH_BYTES], folder[PATH_BYTES], vendor[TEXT_BYTES], class[TEXT_BYTES];
    int count = 0;
    snprintf(path, sizeof path, "%s/bus/pci/devices", root);
    DIR *listing = opendir(path);
    for (struct dirent *entry; listing && count < GPUS_MAX && (entry = readdir(listing));) {
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= TEXT_BYTES) continue;
        snprintf(folder, sizeof folder, "bus/pci/devices/%.63s", entry->d_name);
        read_line(vendor, root, folder, "vendor");
        read_line(class, root, folder, "class");
        if (strcmp(vendor, VENDOR_NVIDIA) != 0 || strncmp(class, CLASS_DISPLAY, strlen(CLASS_DISPLAY)) != 0) continue;
        gpu *g = &out[count++];
        snprintf(g->address, sizeof g->address, "%.63s", entry->d_name);
        read_line(g->node, root, folder, "numa_node");
        read_line(g->speed, root, folder, "current_link_speed");
        read_line(g->width, root, folder, "current_link_width");
    }
    if (listing) closedir(listing);
    qsort(out, (size_t)count, sizeof *out, compare_gpus);
    return count;
}

/* How the members of a group reach each other; two GPUs of one memory node do without crossing the processors' link. */
static const char *path_between(const gpu *gpus, const kn_nvlinks *links, int first, int count)
{
    bool joined = true, same_node = true;
    for (int i = first; i < first + count; i++) {
        same_node = same_node && strcmp(gpus[i].node, gpus[first].node) == 0;
        for (int j = first; j < i; j++) joined = joined && kn_nvlink_joins(links, i, j);
    }
    return joined ? "NVLink" : same_node ? "PCIe, one memory node" : "PCIe, across memory nodes";
}

/* "18 to a switch", "4 to cuda:5", "none". */
static void describe_links(char out[TEXT_BYTES], const kn_nvlinks *links, int own)
{
    int used = 0;
    out[0] = '\0';
    if (links->switched[own] > 0) used = snprintf(out, TEXT_BYTES, "%d to a switch", links->switched[own]);
    for (int i = 0; i < links->count && used < TEXT_BYTES; i++)
        if (links->direct[own][i] > 0)
            used += snprintf(out + used, (size_t)(TEXT_BYTES - used), "%s%d to cuda:%d", used ? ", " : "",
                             links->direct[own][i], i);
    if (used == 0) snprintf(out, TEXT_BYTES, "none");
}

static void print_groups(const gpu *gpus, const kn_nvlinks *links, int count)
{
    printf("groups  cpu:1 to cpu:%d, processes of this machine over shared memory\n", KN_COMM_RANKS_MAX);
    for (int size = 2; size <= count && size <= KN_COMM_RANKS_MAX; size *= 2)
        for (int first = 0; first + size <= count; first += size)
            printf("        cuda:%d-%d, %s\n", first, first + size - 1, path_between(gpus, links, first, size));
}

static kn_status print_text(const kn_device_info *cpu, const char *nodes, const gpu *gpus, const kn_nvlinks *links,
                            int count)
{
    char memory[16], joined[TEXT_BYTES];
    kn_table table = kn_table_start("lllllll");
    const char *const head[] = {"device", "what", "tier", "memory", "node", "bus", "NVLink"};
    for (int i = 0; i < 7; i++) kn_table_cell(&table, "%s", head[i]);
    kn_table_cell(&table, "cpu");
    kn_table_cell(&table, "%s, %d threads", cpu->description, cpu->threads);
    kn_table_cell(&table, "%s", cpu->tier);
    kn_table_cell(&table, "%s", kn_cli_bytes(memory, cpu->memory_bytes));
    kn_table_cell(&table, "%s", *nodes ? nodes : "0");
    kn_table_cell(&table, " ");
    kn_table_cell(&table, " ");
    for (int i = 0; i < count; i++) {
        kn_table_cell(&table, "cuda:%d", i);
        kn_table_cell(&table, "NVIDIA at %s", gpus[i].address);
        kn_table_cell(&table, " ");
        kn_table_cell(&table, " ");
        kn_table_cell(&table, "%s", gpus[i].node);
        kn_table_cell(&table, "%s x%s", gpus[i].speed, gpus[i].width);
        describe_links(joined, links, i);
        kn_table_cell(&table, "%s", links->count > 0 ? joined : "not known");
    }
    kn_status st = kn_table_finish(&table, stdout);
    if (count == 0) puts("no NVIDIA device on the PCI bus");
    print_groups(gpus, links, count);
    return st;
}

static void print_json(const kn_device_info *cpu, const char *nodes, const gpu *gpus, const kn_nvlinks *links,
                       int count)
{
    printf("{\"cpu\":{\"description\":");
    kn_cli_put_json_string(stdout, cpu->description);
    printf(",\"tier\":\"%s\",\"threads\":%d,\"memory_bytes\":%llu,\"nodes\":", cpu->tier, cpu->threads,
           (unsigned long long)cpu->memory_bytes);
    kn_cli_put_json_string(stdout, *nodes ? nodes : "0");
    printf(",\"ranks_max\":%d},\"gpus\":[", KN_COMM_RANKS_MAX);
    for (int i = 0; i < count; i++) {
        printf("%s{\"address\":", i ? "," : "");
        kn_cli_put_json_string(stdout, gpus[i].address);
        printf(",\"node\":");
        kn_cli_put_json_string(stdout, gpus[i].node);
        printf(",\"link_speed\":");
        kn_cli_put_json_string(stdout, gpus[i].speed);
        printf(",\"link_width\":");
        kn_cli_put_json_string(stdout, gpus[i].width);
        if (links->count > 0) { /* else it is not known */
            printf(",\"nvlink_switched\":%d,\"nvlink\":[", links->switched[i]);
            for (int j = 0; j < count; j++) printf("%s%d", j ? "," : "", links->direct[i][j]);
            printf("]");
        }
        printf("}");
    }
    printf("]}\n");
}

static kn_status show(const settings *s)
{
    kn_status st = KN_OK;
    kn_device *device = NULL;
    kn_device_info cpu;
    char nodes[TEXT_BYTES];
    gpu gpus[GPUS_MAX];
    kn_nvlinks links = {0};
    const char *addresses[GPUS_MAX];
    KN_TRY(kn_device_open(&device, &(kn_device_params){.name = "cpu"}));
    kn_device_describe(device, &cpu);
    read_line(nodes, s->sysfs, "devices/system/node", "online");
    const int count = find_gpus(s->sysfs, gpus);
    for (int i = 0; i < count; i++) addresses[i] = gpus[i].address;
    if (count > 0 && kn_nvlink_read(&links, s->nvml, addresses, count) != KN_OK)
        kn_log(KN_LOG_WARNING, "%s", kn_fail_message());
    if (s->json)
        print_json(&cpu, nodes, gpus, &links, count);
    else
        KN_TRY(print_text(&cpu, nodes, gpus, &links, count));
fail:
    kn_device_close(&device);
    return st;
}

int kn_cli_devices_show(int argc, char **argv)
{
    settings s = {.sysfs = "/sys"};
    const kn_option options[] = {
        {"sysfs", 0, "DIR", "read another machine's sysfs; default /sys", kn_cli_text, &s.sysfs, NULL},
        {"nvml", 0, "FILE", "the management library; default libnvidia-ml.so.1", kn_cli_text, &s.nvml, NULL},
        {"json", 0, NULL, "one JSON document", kn_cli_switch, &s.json, NULL},
    };
    kn_status st =
        kn_cli_parse(argc, argv, options, sizeof options / sizeof *options, "devices [OPTIONS]", NULL, 0, NULL);
    if (st == KN_CANCELLED) return 0;
    if (st == KN_OK) st = show(&s);
    return kn_cli_end(st, s.json);
}
