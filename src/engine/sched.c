/* How many rows a step takes; see sched.h. */
#include "engine/sched.h"

#define LEARN_WEIGHT  0.2
#define STALL_SHARE   0.5
#define PREFILL_FIRST 64 /* rows beside running streams before anything was measured */

static double blend(double old, double now)
{
    return old > 0 ? old + (now - old) * LEARN_WEIGHT : now;
}

void sched_learn(struct sched_cost *c, size_t n_decode, size_t n_prefill, uint64_t step_ns)
{
    double ns = (double)step_ns;
    if (n_prefill == 0) {
        if (n_decode)
            c->base_ns = blend(c->base_ns, ns);
        return;
    }
    double base = n_decode ? c->base_ns : 0;
    double row = (ns > base ? ns - base : 0) / (double)n_prefill;
    /* slower is believed at once, faster only slowly: the limit is a promise */
    c->row_ns = row > c->row_ns ? row : blend(c->row_ns, row);
}

size_t sched_prefill_rows(const struct sched_cost *c, size_t n_decode, size_t rows_max, unsigned stall_ms_max)
{
    size_t room = rows_max > n_decode ? rows_max - n_decode : 0;
    if (n_decode == 0)
        return room;
    double left = (double)stall_ms_max * 1e6 * STALL_SHARE - c->base_ns;
    double rows = c->row_ns > 0 ? left / c->row_ns : PREFILL_FIRST;
    size_t n = rows < SCHED_PREFILL_ROWS_MIN ? SCHED_PREFILL_ROWS_MIN : rows > (double)room ? room : (size_t)rows;
    return n < room ? n : room;
}
