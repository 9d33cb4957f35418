/* Kernels for processors with avx2. */
#include "backend/cpu/kernels.h"

const struct cpu_kernels cpu_kernels_avx2 = CPU_KERNELS("avx2");
