/* SPDX-License-Identifier: Apache-2.0
 *
 * The names below are NVML's own, declared here so that building needs no NVML; they have not changed since its
 * versions _v2 of these calls (2016). */
#include "cli/nvlink.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { NVML_SUCCESS = 0, LINKS_MAX = 18 };

typedef struct nvml_pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} nvml_pci;

typedef struct nvml {
    void *library;
    int (*Init)(void);
    int (*Shutdown)(void);
    int (*HandleByPciBusId)(const char *bus_id, void **device);
    int (*NvLinkState)(void *device, unsigned link, unsigned *active);
    int (*NvLinkRemotePciInfo)(void *device, unsigned link, nvml_pci *remote);
} nvml;

static kn_status load(nvml *api, const char *name)
{
    api->library = dlopen(name ? name : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!api->library) return kn_fail(KN_UNSUPPORTED, "NVML cannot be loaded: %s", dlerror());
    struct {
        const char *name;
        void **out;
    } const calls[] = {{"nvmlInit_v2", (void **)&api->Init},
                       {"nvmlShutdown", (void **)&api->Shutdown},
                       {"nvmlDeviceGetHandleByPciBusId_v2", (void **)&api->HandleByPciBusId},
                       {"nvmlDeviceGetNvLinkState", (void **)&api->NvLinkState},
                       {"nvmlDeviceGetNvLinkRemotePciInfo_v2", (void **)&api->NvLinkRemotePciInfo}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        *calls[i].out = dlsym(api->library, calls[i].name);
        if (!*calls[i].out) return kn_fail(KN_UNSUPPORTED, "NVML is too old: it has no %s", calls[i].name);
    }
    return KN_OK;
}

/* The GPU at a PCI address; -1: something else is there. */
static int32_t gpu_at(const nvml_pci *pci, const char *const *addresses, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        unsigned domain, bus, device;
        if (sscanf(addresses[i], "%x:%x:%x", &domain, &bus, &device) == 3 && domain == pci->domain && bus == pci->bus &&
            device == pci->device)
            return i;
    }
    return -1;
}

static kn_status read_gpu(kn_nvlinks *out, const nvml *api, const char *const *addresses, int32_t gpu)
{
    void *device = NULL;
    const int result = api->HandleByPciBusId(addresses[gpu], &device);
    if (result != NVML_SUCCESS)
        return kn_fail(KN_UNSUPPORTED, "NVML does not know the device at %s (error %d)", addresses[gpu], result);
    for (unsigned link = 0; link < LINKS_MAX; link++) {
        unsigned active = 0;
        nvml_pci remote;
        memset(&remote, 0, sizeof remote);
        if (api->NvLinkState(device, link, &active) != NVML_SUCCESS || !active) continue; /* no such link, or down */
        const bool known = api->NvLinkRemotePciInfo(device, link, &remote) == NVML_SUCCESS;
        const int32_t other = known ? gpu_at(&remote, addresses, out->count) : -1;
        if (other >= 0)
            out->direct[gpu][other]++;
        else
            out->switched[gpu]++;
    }
    return KN_OK;
}

kn_status kn_nvlink_read(kn_nvlinks *out, const char *library, const char *const *addresses, int32_t count)
{
    kn_status st = KN_OK;
    nvml api = {0};
    bool running = false;
    KN_REQUIRE(count >= 0 && count <= KN_NVLINK_GPUS_MAX);
    memset(out, 0, sizeof *out);
    out->count = count;
    KN_TRY(load(&api, library));
    const int result = api.Init();
    running = result == NVML_SUCCESS;
    if (!running) KN_TRY(kn_fail(KN_UNSUPPORTED, "NVML does not start (error %d)", result));
    for (int32_t i = 0; i < count; i++) KN_TRY(read_gpu(out, &api, addresses, i));
fail:
    if (running) api.Shutdown();
    if (api.library) dlclose(api.library);
    if (st != KN_OK) memset(out, 0, sizeof *out);
    return st;
}

bool kn_nvlink_joins(const kn_nvlinks *links, int32_t a, int32_t b)
{
    return links->direct[a][b] > 0 || (links->switched[a] > 0 && links->switched[b] > 0);
}
