/* Kernels for any processor: the reference. */
#include "backend/cpu/kernels.h"

const struct cpu_kernels cpu_kernels_ref = CPU_KERNELS("ref");
