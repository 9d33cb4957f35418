/* Which kernels run here; see cpu.h. Compiled without instruction-set flags. */
#include "backend/cpu/cpu.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* arch_prctl: allow this process an extended state */
#define XFEATURE_XTILEDATA  18
#define LEAF7_EDX_AMX       (1u << 22 | 1u << 24 | 1u << 25) /* bf16, tiles, int8 */

static bool has_avx2(void)
{
    /* f16c, which clang 14 cannot ask for, is in every processor that has avx2. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
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

/* The system must grant the tiles' 8 KB of state, and may refuse. Every processor with tiles has vbmi too, but a virtual
 * machine may hide it. */
static bool has_amx(void)
{
    unsigned a, b, c, d = 0;
    return has_vnni() && __builtin_cpu_supports("avx512vbmi") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (d & LEAF7_EDX_AMX) == LEAF7_EDX_AMX && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
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
    {&cpu_kernels_amx, has_amx},   {&cpu_kernels_vnni, has_vnni}, {&cpu_kernels_avx512, has_avx512},
    {&cpu_kernels_avx2, has_avx2}, {&cpu_kernels_ref, has_any},
};

const struct cpu_kernels *cpu_select(const char *isa, const struct cpu_kernels **failed, struct err *err)
{
    bool allowed = !isa || strcmp(isa, "auto") == 0;
    *failed = NULL;
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        const struct cpu_kernels *k = choices[i].kernels;
        allowed = allowed || strcmp(isa, k->name) == 0;
        if (!allowed || !choices[i].runs())
            continue;
        if (k == &cpu_kernels_ref || cpu_self_test(k))
            return k;
        *failed = *failed ? *failed : k;
    }
    err_set(err, ERR_USAGE, "Unknown instruction set '%s'; choose auto, amx, vnni, avx512, avx2 or ref.", isa);
    return NULL;
}
