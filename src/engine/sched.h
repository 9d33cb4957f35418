/* How many rows a step takes, as pure functions of measured times: the only place that knows of --max-stall-ms. */
#ifndef INFERD_ENGINE_SCHED_H
#define INFERD_ENGINE_SCHED_H

#include <stddef.h>
#include <stdint.h>

#define SCHED_PREFILL_ROWS_MIN 8 /* a prompt always moves on, however slow the machine */

/* What steps have cost: learnt from each. */
struct sched_cost {
    double base_ns;  /* a step of decode rows only */
    double row_ns;   /* what a prompt row adds */
};
/* n_decode, n_prefill: the rows of the step that took step_ns. */
void sched_learn(struct sched_cost *c, size_t n_decode, size_t n_prefill, uint64_t step_ns);
/* Prompt rows that a step may take beside n_decode decode rows: all that fit when nobody is streaming, else as many as
 * keep the step within the stall limit (half of it: the estimate is an estimate). */
size_t sched_prefill_rows(const struct sched_cost *c, size_t n_decode, size_t rows_max, unsigned stall_ms_max);

#endif
