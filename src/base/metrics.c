/* Metrics; see metrics.h. */
#include "base/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define METRICS_MAX 4096 /* series */

struct metric {
    enum metric_kind kind;
    const char *name, *help;
    char *labels;
    const double *bounds;
    size_t n_bounds;
    _Atomic double value;      /* counter, gauge; a histogram's sum */
    _Atomic uint64_t *buckets; /* [n_bounds + 1], not cumulative */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct metric *table[METRICS_MAX]; /* in order of registration; under the lock */
static size_t n_series;

static void free_metric(struct metric *m)
{
    free(m->labels);
    free(m->buckets);
    free(m);
}

static struct metric *new_metric(enum metric_kind kind, const char *name, const char *help, const char *labels,
                                 const double *bounds, size_t n_bounds)
{
    struct metric *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    *m = (struct metric){.kind = kind, .name = name, .help = help, .bounds = bounds, .n_bounds = n_bounds};
    m->labels = str_dup(str_from(labels));
    m->buckets = calloc(n_bounds + 1, sizeof *m->buckets);
    if (!m->labels || !m->buckets) {
        free_metric(m);
        return NULL;
    }
    return m;
}

struct metric *metric_get(enum metric_kind kind, const char *name, const char *help, const char *labels, const double *bounds,
                          size_t n_bounds)
{
    struct metric *found = NULL;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_series && !found; i++)
        if (strcmp(table[i]->name, name) == 0 && strcmp(table[i]->labels, labels) == 0)
            found = table[i];
    if (!found && n_series < METRICS_MAX && (found = new_metric(kind, name, help, labels, bounds, n_bounds)))
        table[n_series++] = found;
    pthread_mutex_unlock(&lock);
    return found;
}

static void add_double(_Atomic double *to, double value)
{
    double old = atomic_load_explicit(to, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(to, &old, old + value, memory_order_relaxed, memory_order_relaxed)) {
    }
}

void metric_add(struct metric *m, double value)
{
    if (m)
        add_double(&m->value, value);
}

void metric_set(struct metric *m, double value)
{
    if (m)
        atomic_store_explicit(&m->value, value, memory_order_relaxed);
}

void metric_observe(struct metric *m, double value)
{
    if (!m)
        return;
    size_t i = 0;
    while (i < m->n_bounds && value > m->bounds[i])
        i++;
    atomic_fetch_add_explicit(&m->buckets[i], 1, memory_order_relaxed);
    add_double(&m->value, value);
}

static double metric_value(const struct metric *m)
{
    return atomic_load_explicit(&m->value, memory_order_relaxed);
}

void metrics_label(struct buf *out, const char *key, struct str value)
{
    buf_printf(out, "%s=\"", key);
    for (size_t i = 0; i < value.len; i++) {
        char c = value.ptr[i];
        if (c == '\\' || c == '"')
            buf_printf(out, "\\%c", c);
        else if (c == '\n')
            buf_append_str(out, STR("\\n"));
        else
            buf_append_char(out, c);
    }
    buf_append_char(out, '"');
}

static void write_number(struct buf *out, double v)
{
    if (v == floor(v) && fabs(v) < 1e15)
        buf_printf(out, "%.0f\n", v);
    else
        buf_printf(out, "%.9g\n", v);
}

static void write_series(struct buf *out, const struct metric *m)
{
    const char *comma = *m->labels ? "," : "";
    if (m->kind != METRIC_HISTOGRAM) {
        buf_printf(out, *m->labels ? "%s{%s} " : "%s%s ", m->name, m->labels);
        write_number(out, metric_value(m));
        return;
    }
    uint64_t total = 0;
    for (size_t i = 0; i <= m->n_bounds; i++) {
        total += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
        if (i < m->n_bounds)
            buf_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", m->name, m->labels, comma, m->bounds[i],
                       (unsigned long long)total);
        else
            buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", m->name, m->labels, comma, (unsigned long long)total);
    }
    buf_printf(out, *m->labels ? "%s_sum{%s} " : "%s_sum%s ", m->name, m->labels);
    write_number(out, metric_value(m));
    buf_printf(out, *m->labels ? "%s_count{%s} " : "%s_count%s ", m->name, m->labels);
    buf_printf(out, "%llu\n", (unsigned long long)total);
}

void metrics_write(struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_series; i++) {
        bool first = true;
        for (size_t k = 0; k < i && first; k++)
            first = strcmp(table[k]->name, table[i]->name) != 0;
        if (!first)
            continue;
        buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", table[i]->name, table[i]->help, table[i]->name, kinds[table[i]->kind]);
        for (size_t k = i; k < n_series; k++)
            if (strcmp(table[k]->name, table[i]->name) == 0)
                write_series(out, table[k]);
    }
    pthread_mutex_unlock(&lock);
}
