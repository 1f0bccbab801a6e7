/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora devices, on this machine and on one made of files: eight GPUs on two memory nodes. */
#define _XOPEN_SOURCE 700
#include "tests/cli/command.h"
#include "tests/engine/folder.h"

static void this_machine_has_a_processor(void **state)
{
    (void)state;
    assert_int_equal(command("devices"), 0);
    assert_printed("cpu");
    assert_printed("cpu:1 to cpu:8");
    assert_int_equal(command("devices --json"), 0);
    assert_printed("\"ranks_max\":8");
    assert_int_equal(command("devices --nothing"), 64);
    assert_one_line();
}

static void put(const folder *at, const char *name, const char *text)
{
    folder_text(at, name, text);
}

static void eight_gpus_form_groups(void **state)
{
    (void)state;
    static const char *const folders[] = {"bus",     "bus/pci",        "bus/pci/devices",
                                          "devices", "devices/system", "devices/system/node"};
    const folder at = folder_create();
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) folder_make(&at, folders[i]);
    put(&at, "devices/system/node/online", "0-1\n");
    for (int i = 0; i < 9; i++) { /* the last is a network card */
        char name[64], file[128];
        snprintf(name, sizeof name, "bus/pci/devices/0000:%02x:00.0", 0x10 + 7 * i);
        folder_make(&at, name);
        snprintf(file, sizeof file, "%s/vendor", name);
        put(&at, file, i < 8 ? "0x10de\n" : "0x15b3\n");
        snprintf(file, sizeof file, "%s/class", name);
        put(&at, file, i < 8 ? "0x030200\n" : "0x020000\n");
        snprintf(file, sizeof file, "%s/numa_node", name);
        put(&at, file, i < 4 ? "0\n" : "1\n");
        snprintf(file, sizeof file, "%s/current_link_speed", name);
        put(&at, file, "32.0 GT/s PCIe\n");
        snprintf(file, sizeof file, "%s/current_link_width", name);
        put(&at, file, "16\n");
    }
    assert_int_equal(command("devices --sysfs '%s' --nvml /there/is/none.so", at.path), 0);
    assert_printed("cuda:7");
    assert_printed("32.0 GT/s PCIe x16");
    assert_printed("NVML cannot be loaded");
    assert_printed("not known");
    assert_printed("cuda:0-3, PCIe, one memory node");
    assert_printed("cuda:0-7, PCIe, across memory nodes");
    assert_null(strstr(command_output, "cuda:8"));
    assert_int_equal(command("devices --json --sysfs '%s' --nvml /there/is/none.so 2>/dev/null", at.path), 0);
    assert_printed("\"address\":\"0000:10:00.0\",\"node\":\"0\"");
    assert_null(strstr(command_output, "nvlink"));

    /* As a FAKE of NVML has it. */
    assert_int_equal(command("devices --sysfs '%s' --nvml '%s'", at.path, KN_FAKE_NVML), 0);
    assert_printed("18 to a switch");
    assert_printed("4 to cuda:5");
    assert_printed("4 to cuda:4");
    assert_printed("none");
    assert_printed("cuda:0-3, NVLink");
    assert_printed("cuda:4-5, NVLink");
    assert_printed("cuda:6-7, PCIe, one memory node");
    assert_printed("cuda:4-7, PCIe, one memory node");
    assert_printed("cuda:0-7, PCIe, across memory nodes");
    assert_int_equal(command("devices --json --sysfs '%s' --nvml '%s'", at.path, KN_FAKE_NVML), 0);
    assert_printed("\"nvlink_switched\":18,\"nvlink\":[0,0,0,0,0,0,0,0]");
    assert_printed("\"nvlink_switched\":0,\"nvlink\":[0,0,0,0,0,4,0,0]");
    folder_remove(&at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(this_machine_has_a_processor),
        cmocka_unit_test(eight_gpus_form_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
