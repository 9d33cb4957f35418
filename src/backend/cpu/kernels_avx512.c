/* Kernels for processors with avx512. */
#include "backend/cpu/kernels.h"

const struct cpu_kernels cpu_kernels_avx512 = CPU_KERNELS("avx512");
