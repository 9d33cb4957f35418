/* Counters, gauges and histograms with at most one label (model_name), in a fixed table; text in Prometheus' exposition
 * format 0.0.4. Updating is an atomic add: any thread, no lock, no allocation. Registration happens at start-up or when
 * a model is loaded (takes a lock). */
#ifndef INFERD_BASE_METRICS_H
#define INFERD_BASE_METRICS_H

#include "base/buf.h"
#include "base/err.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

struct metric; /* one series (name + label values) */

/* Finds or creates the series. `labels` is the inside of the braces, already escaped (metrics_label), or "".
 * `bounds` are a histogram's upper bounds, ascending, n_bounds of them (static memory; NULL else).
 * Never fails once the table has room (METRICS_MAX series): NULL when it is full, and all updates of NULL do nothing. */
struct metric *metric_get(enum metric_kind kind, const char *name, const char *help, const char *labels, const double *bounds,
                          size_t n_bounds);
void metric_add(struct metric *m, double value);
void metric_set(struct metric *m, double value);
void metric_observe(struct metric *m, double value);
/* key="value" with the value escaped as the format asks. */
void metrics_label(struct buf *out, const char *key, struct str value);
/* Everything, grouped by name with HELP and TYPE. */
void metrics_write(struct buf *out);

#endif
