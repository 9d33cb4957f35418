/* Element types against blocks that the gguf package and torch decoded (tools/golden_dtypes.py), and every 16-bit value. */
#include "backend/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const enum dtype with_goldens[] = {
    DTYPE_F16,  DTYPE_BF16, DTYPE_F8_E4M3, DTYPE_F8_E5M2, DTYPE_Q4_0, DTYPE_Q4_1,   DTYPE_Q5_0,   DTYPE_Q5_1,  DTYPE_Q8_0,
    DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K,    DTYPE_Q5_K,    DTYPE_Q6_K, DTYPE_IQ4_NL, DTYPE_IQ4_XS, DTYPE_MXFP4,
};

static void check_golden(enum dtype t)
{
    const char *name = dtype_info(t)->name;
    char path[128];
    uint32_t sizes[2];
    snprintf(path, sizeof path, "tests/golden/dtypes/%s.bin", name);
    FILE *f = fopen(path, "rb");
    if (!f || fread(sizes, sizeof *sizes, 2, f) != 2)
        fail_msg("%s is missing", path);
    size_t n = sizes[0], bytes = sizes[1];
    uint8_t *raw = malloc(bytes);
    float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    assert_int_equal(fread(raw, 1, bytes, f), bytes);
    assert_int_equal(fread(want, sizeof *want, n, f), n);
    fclose(f);
    assert_int_equal(dtype_bytes(t, n), bytes);
    assert_true(dtype_to_f32(t, raw, n, got));
    for (size_t i = 0; i < n; i++)
        if (isnan(want[i]) ? !isnan(got[i]) : !(got[i] == want[i]))
            fail_msg("%s element %zu: %.9g, not %.9g", name, i, (double)got[i], (double)want[i]);
    free(raw);
    free(want);
    free(got);
}

static void test_goldens(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof with_goldens / sizeof *with_goldens; i++)
        check_golden(with_goldens[i]);
}

/* Every 16-bit value survives the way to fp32 and back; NaN stays NaN. */
static void test_halves_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = dtype_f16_to_f32((uint16_t)h), b = dtype_bf16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(dtype_f16_to_f32(dtype_f32_to_f16(f))));
        else
            assert_int_equal(dtype_f32_to_f16(f), h);
        if (isnan(b))
            assert_true(isnan(dtype_bf16_to_f32(dtype_f32_to_bf16(b))));
        else
            assert_int_equal(dtype_f32_to_bf16(b), h);
    }
}

/* Between two neighbours: to the nearer, halfway to the even one. */
static void test_rounding(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float low = dtype_f16_to_f32((uint16_t)h), high = dtype_f16_to_f32((uint16_t)(h + 1)), mid = (low + high) / 2;
        assert_int_equal(dtype_f32_to_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(dtype_f32_to_f16(nextafterf(mid, 1e9f)), h + 1);
        assert_int_equal(dtype_f32_to_f16(-nextafterf(mid, 0)), h | 0x8000);
    }
    assert_int_equal(dtype_f32_to_f16(65519.99f), 0x7bff);
    assert_int_equal(dtype_f32_to_f16(65520), 0x7c00);
    assert_int_equal(dtype_f32_to_f16(1e-9f), 0);
    assert_int_equal(dtype_f32_to_bf16(1.00390625f), 0x3f80);
    assert_int_equal(dtype_f32_to_bf16(1.01171875f), 0x3f82);
}

static void test_sizes(void **state)
{
    (void)state;
    assert_int_equal(dtype_bytes(DTYPE_Q4_K, 512), 288);
    assert_true(dtype_bytes(DTYPE_Q4_K, 100) == SIZE_MAX);
    assert_true(dtype_bytes(DTYPE_F32, SIZE_MAX / 2) == SIZE_MAX);
    for (int t = DTYPE_NONE; t < DTYPE_COUNT; t++) {
        assert_non_null(dtype_info((enum dtype)t)->name);
        assert_true(dtype_info((enum dtype)t)->block > 0);
    }
    float f;
    assert_false(dtype_to_f32(DTYPE_I32, "1234", 1, &f));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_halves_round_trip),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
