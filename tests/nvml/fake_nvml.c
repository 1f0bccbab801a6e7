/* SPDX-License-Identifier: Apache-2.0
 *
 * A FAKE of NVML for tests on machines without GPUs, with the names that cli/nvlink.c looks for: eight GPUs at
 * 0000:10:00.0, 0000:17:00.0, ...; the first four on a switch with 18 links each, the fifth and sixth joined by four,
 * the last two without. It says nothing about NVML itself. */
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPUS = 8, FIRST = 0x10, APART = 7, SWITCH = 0xe0 };

typedef struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci;

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device);
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active);
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, pci *remote);

static int gpus[GPUS] = {0, 1, 2, 3, 4, 5, 6, 7};

EXPORT int nvmlInit_v2(void)
{
    return SUCCESS;
}

EXPORT int nvmlShutdown(void)
{
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device)
{
    unsigned domain, bus, slot;
    if (sscanf(bus_id, "%x:%x:%x", &domain, &bus, &slot) != 3) return INVALID;
    for (int i = 0; i < GPUS; i++)
        if (domain == 0 && slot == 0 && bus == (unsigned)(FIRST + APART * i)) {
            *device = &gpus[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active)
{
    const int gpu = *(int *)device;
    if (gpu >= 6) return NOT_SUPPORTED;
    if (link >= 18) return INVALID;
    *active = gpu < 4 || link < 4;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, pci *remote)
{
    const int gpu = *(int *)device;
    (void)link;
    memset(remote, 0, sizeof *remote);
    remote->bus = gpu < 4 ? SWITCH : (unsigned)(FIRST + APART * (9 - gpu));
    snprintf(remote->bus_id, sizeof remote->bus_id, "00000000:%02X:00.0", remote->bus);
    return SUCCESS;
}
