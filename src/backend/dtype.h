/* Element types as files store them (safetensors dtypes and ggml types). Plain data.
 * Block formats: https://github.com/ggml-org/ggml (documentation of the GGUF format); one block = `block` elements in
 * `bytes` bytes, blocks run along the input dimension. */
#ifndef INFERD_BACKEND_DTYPE_H
#define INFERD_BACKEND_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_NONE,
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F64,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_I16,
    DTYPE_I32,
    DTYPE_I64,
    DTYPE_BOOL,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q8_0,
    DTYPE_Q8_1,
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_Q8_K,
    DTYPE_IQ4_NL,
    DTYPE_IQ4_XS,
    DTYPE_MXFP4,
    DTYPE_IQ2_XXS,
    DTYPE_IQ2_XS,
    DTYPE_IQ2_S,
    DTYPE_IQ3_XXS,
    DTYPE_IQ3_S,
    DTYPE_IQ1_S,
    DTYPE_IQ1_M,
    DTYPE_COUNT
};

struct dtype_info {
    const char *name;
    size_t block; /* elements */
    size_t bytes; /* per block */
};

/* Never NULL for a valid dtype. */
const struct dtype_info *dtype_info(enum dtype t);
/* Bytes of n elements (n a multiple of the block); SIZE_MAX on overflow or a partial block. */
size_t dtype_bytes(enum dtype t, size_t n);
/* Dequantizes / widens n elements (whole blocks) to fp32, exactly as ggml's reference does. False: type has no rule. */
bool dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst);

float dtype_f16_to_f32(uint16_t h);
uint16_t dtype_f32_to_f16(float f); /* round to nearest even */
float dtype_bf16_to_f32(uint16_t h);
uint16_t dtype_f32_to_bf16(float f); /* round to nearest even */

#endif
