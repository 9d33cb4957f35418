/* Which kernels run here; see cpu.h. Compiled without instruction-set flags. */
#include "backend/cpu/cpu.h"

#include <string.h>

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_any(void)
{
    return true;
}

/* Best first. */
static const struct choice {
    const struct cpu_kernels *kernels;
    bool (*runs)(void);
} choices[] = {
    {&cpu_kernels_vnni, has_vnni},
    {&cpu_kernels_avx512, has_avx512},
    {&cpu_kernels_avx2, has_avx2},
    {&cpu_kernels_ref, has_any},
};

const struct cpu_kernels *cpu_select(const char *isa, struct err *err)
{
    bool allowed = !isa || strcmp(isa, "auto") == 0 || strcmp(isa, "amx") == 0;
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        allowed = allowed || strcmp(isa, choices[i].kernels->name) == 0;
        if (allowed && choices[i].runs())
            return choices[i].kernels;
    }
    err_set(err, ERR_USAGE, "Unknown instruction set '%s'; choose auto, amx, vnni, avx512, avx2 or ref.", isa);
    return NULL;
}
