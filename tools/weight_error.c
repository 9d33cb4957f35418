/* weight_error int8|int4 N_OUT N_IN < floats > root mean square error of the packed matrix over that of the floats
 *
 * Reads [N_OUT][N_IN] fp32 in the machine's byte order. What tools/check_profiles.py compares with other quantizers. */
#include "backend/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct err err = {0};
    struct backend_options options = {.n_threads = 2, .isa = "auto"};
    if (argc < 4)
        return 2;
    size_t n_out = strtoul(argv[2], NULL, 10), n_in = strtoul(argv[3], NULL, 10);
    float *x = malloc(n_out * n_in * sizeof *x);
    if (!x || fread(x, sizeof *x, n_out * n_in, stdin) != n_out * n_in) {
        fprintf(stderr, "weight_error: %zu x %zu floats were expected\n", n_out, n_in);
        return 1;
    }
    struct weight w;
    struct backend *b = backend_open_cpu(&options, &err);
    void *memory = NULL;
    if (b && weight_plan(DTYPE_F32, n_out, n_in, strcmp(argv[1], "int8") == 0 ? WEIGHT_INT8 : WEIGHT_INT4, &w, NULL, &err))
        memory = backend_alloc(b, w.bytes, &err);
    if (memory)
        weight_attach(&w, memory);
    if (!memory || !backend_weight_pack(b, &w, DTYPE_F32, x, 0, n_out, &err)) {
        fprintf(stderr, "weight_error: %s\n", err.text);
        return 1;
    }
    double errors = 0, size = 0;
    for (size_t i = 0; i < n_out * n_in; i++) {
        double e = (double)weight_at(&w, i / n_in, i % n_in) - x[i];
        errors += e * e;
        size += (double)x[i] * x[i];
    }
    printf("%.6f %.4f\n", sqrt(errors / size), 8.0 * (double)w.bytes / (double)(n_out * n_in));
    return 0;
}
