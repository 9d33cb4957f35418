/* Kernels for processors with vnni. */
#include "backend/cpu/kernels.h"

const struct cpu_kernels cpu_kernels_vnni = CPU_KERNELS("vnni");
