/* Kernels against the reference before they are trusted: a processor, hypervisor or compiler that nobody tried must not
 * make a model talk nonsense. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OUTS      48
#define INS       320
#define ROWS      33    /* a block of every size and a rest */
#define TOLERANCE 1e-3f /* sums of about 1: what another order of floats leaves is 100 times less */

/* Packed bytes need no packing here: any are a matrix, if the floats in them are small numbers. */
static void fill(struct weight *w, char *memory)
{
    uint32_t s = 1;
    weight_attach(w, memory);
    char *scales = w->group ? (char *)w->scales : memory + w->bytes;
    for (char *p = memory; p < memory + w->bytes; p += 4) {
        s = s * 1664525u + 1013904223u;
        float v = (float)(int32_t)s * 0x1p-34f;
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        uint32_t pair = w->group || w->layout == WEIGHT_F16 ? dtype_f32_to_f16(v) * 0x10001u : (bits >> 16) * 0x10001u;
        uint32_t word = p < scales && w->group ? s ^ s >> 13 : w->layout == WEIGHT_F32 && !w->group ? bits : pair;
        memcpy(p, &word, sizeof word);
    }
}

struct room {
    char *weights, *rows[2];
    float x[ROWS * INS], y[2][ROWS * OUTS];
};

static void compute(const struct cpu_kernels *k, const struct weight *w, struct room *room, int which)
{
    struct cpu_linear l = {.w = w, .x = room->x, .x_stride = INS, .n = ROWS, .y = room->y[which], .y_stride = OUTS};
    bool prepared = cpu_prepares(k, w);
    if (prepared)
        cpu_quantized_plan(k, w, ROWS, room->rows[which], &l.q);
    for (size_t r = 0; r < ROWS && prepared; r++)
        cpu_quantized_put(k, w, room->x + r * INS, r, &l.q);
    k->linear(&l, 0, OUTS / CPU_PANEL);
}

static bool same(const struct cpu_kernels *k, const struct weight *w, struct room *room)
{
    compute(&cpu_kernels_ref, w, room, 0);
    compute(k, w, room, 1);
    if (w->group)
        return memcmp(room->y[0], room->y[1], sizeof room->y[0]) == 0;
    for (size_t i = 0; i < ROWS * OUTS; i++)
        if (!(fabsf(room->y[0][i] - room->y[1][i]) <= TOLERANCE))
            return false;
    return true;
}

bool cpu_self_test(const struct cpu_kernels *k)
{
    static const struct {
        enum dtype t;
        enum weight_form form;
    } cases[] = {{DTYPE_F32, WEIGHT_EXACT},   {DTYPE_F16, WEIGHT_EXACT}, {DTYPE_BF16, WEIGHT_EXACT},
                 {DTYPE_F32, WEIGHT_INT8},    {DTYPE_F32, WEIGHT_INT4},  {DTYPE_Q8_0, WEIGHT_NATIVE},
                 {DTYPE_Q4_1, WEIGHT_NATIVE}, {DTYPE_Q4_1, WEIGHT_INT4}};
    bool ok = true;
    struct room *room = calloc(1, sizeof *room);
    size_t row_bytes = cpu_round_up((ROWS + CPU_ROWS_BLOCK) * (INS * CPU_BF16_TERMS * sizeof(uint16_t) + CPU_LINE), CPU_LINE);
    for (size_t i = 0; room && i < 2; i++)
        room->rows[i] = aligned_alloc(CPU_LINE, row_bytes);
    if (room)
        room->weights = aligned_alloc(CPU_LINE, OUTS * INS * 4 + CPU_LINE);
    if (!room || !room->rows[0] || !room->rows[1] || !room->weights) {
        ok = false;
    } else {
        memset(room->rows[0], 0, row_bytes);
        memset(room->rows[1], 0, row_bytes);
        for (size_t i = 0; i < ROWS * INS; i++)
            room->x[i] = sinf((float)(i * i % 1009)) * (i % 61 ? 1 : 30);
        for (size_t i = 0; i < sizeof cases / sizeof *cases && ok; i++) {
            struct weight w;
            struct err err;
            ok = weight_plan(cases[i].t, OUTS, INS, cases[i].form, &w, NULL, &err);
            if (ok) {
                fill(&w, room->weights);
                ok = same(k, &w, room);
            }
        }
    }
    if (room) {
        free(room->rows[0]);
        free(room->rows[1]);
        free(room->weights);
    }
    free(room);
    return ok;
}
