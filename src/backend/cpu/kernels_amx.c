/* Kernels for processors with matrix tiles (AMX int8 and bf16). */
#define CPU_TILES
#include "backend/cpu/kernels.h"

const struct cpu_kernels cpu_kernels_amx = CPU_KERNELS("amx");
