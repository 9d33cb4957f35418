/* Health and metrics, answered on the http thread: no engine and no disk is waited for. */
#include "serve/call.h"
#include "serve/lasting.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>

#define STUCK_NS ((uint64_t)30 * 1000000000u) /* work waiting and no step for so long: degraded */

static uint64_t status_bytes(const char *key)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), ": %llu", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (uint64_t)kib << 10;
}

static size_t stuck_engines(struct server *s, struct buf *reasons)
{
    struct served *loaded[REGISTRY_LOADED_MAX];
    size_t n = registry_loaded(s->registry, loaded), stuck = 0;
    uint64_t now = clock_mono_ns();
    for (size_t i = 0; i < n; i++) {
        struct engine_counters c;
        engine_counters(loaded[i]->engine, &c);
        uint64_t since = c.last_step_ns > loaded[i]->loaded_ns ? c.last_step_ns : loaded[i]->loaded_ns;
        if (c.running && now > since && now - since > STUCK_NS) {
            char text[256];
            snprintf(text, sizeof text, "model %s has made no step for %.0f s", loaded[i]->id, (double)(now - since) / 1e9);
            buf_append_str(reasons, stuck++ ? STR(",") : STR(""));
            buf_append_json(reasons, str_from(text));
        }
        registry_drop(s->registry, loaded[i]);
    }
    return stuck;
}

void health_write(struct server *s, struct buf *out)
{
    struct registry_status r;
    registry_status(s->registry, &r);
    struct buf reasons;
    buf_init(&reasons, 1 << 16);
    size_t n_reasons = lasting_reasons(s, &reasons, stuck_engines(s, &reasons));
    const char *status = atomic_load(&s->draining) ? "draining" : n_reasons ? "degraded" : r.loading ? "starting" : "healthy";
    buf_printf(out,
               "{\"status\":\"%s\",\"reasons\":[%s],\"uptime_seconds\":%.3f,\"models_loaded\":%zu,\"models_cached\":%zu,"
               "\"cache_limit\":%zu,\"engine_version\":\"%s\","
               "\"cuda_available\":false,\"gpu_memory_allocated_mb\":0,\"gpu_memory_reserved_mb\":0,\"cpu_mode\":\"%s\","
               "\"threads\":%u,\"memory_limit_bytes\":%llu,\"memory_planned_bytes\":%llu,\"memory_rss_bytes\":%llu,"
               "\"memory_peak_bytes\":%llu,\"active_requests\":%zu,\"connections\":%u",
               status, buf_str(&reasons).ptr, (double)(clock_mono_ns() - s->started_ns) / 1e9, r.loaded, r.loaded,
               s->config->models_max, INFERD_VERSION, backend_mode(s->backend), backend_threads(s->backend),
               (unsigned long long)s->memory.total, (unsigned long long)(r.bytes_used + s->memory.total - s->memory.models),
               (unsigned long long)status_bytes("VmRSS"), (unsigned long long)status_bytes("VmHWM"), s->n_active,
               http_connections(s->http));
    buf_append_char(out, ',');
    lasting_health(s, out);
    if (r.loading) {
        buf_append_str(out, STR(",\"loading\":"));
        buf_append_json(out, str_from(r.loading_name));
        buf_printf(out, ",\"loading_progress\":%.3f", r.loading_fraction);
    }
    buf_append_str(out, STR(",\"alias_problems\":"));
    aliases_write_problems(names_aliases(s->names), out);
    buf_append_str(out, STR(",\"memory_plan\":{"));
    memory_plan_write(&s->memory, out);
    buf_append_str(out, STR("}}\n"));
    buf_release(&reasons);
}

bool health_ready(struct server *s)
{
    struct registry_status r;
    registry_status(s->registry, &r);
    return !atomic_load(&s->draining) && !(r.loading && !r.loaded);
}

void metrics_scrape(struct server *s, struct buf *out)
{
    struct served *loaded[REGISTRY_LOADED_MAX];
    size_t n = registry_loaded(s->registry, loaded);
    if (n)
        buf_append_str(out, STR(SERVED_METRICS_CACHE_HEAD));
    for (size_t i = 0; i < n; i++) {
        const struct served *m = loaded[i];
        struct engine_counters c;
        engine_counters(m->engine, &c);
        served_metrics_engine(m->metrics, &c);
        served_metrics_cache(out, m->id, m->pages, kv_type_name(m->plan.kv_type), s->config->prefix_cache);
        registry_drop(s->registry, loaded[i]);
    }
    metric_set(metric_get(METRIC_GAUGE, "inferd:memory_rss_bytes", "Resident memory.", "", NULL, 0),
               (double)status_bytes("VmRSS"));
    metric_set(metric_get(METRIC_GAUGE, "inferd:active_requests", "Generating requests that are not done.", "", NULL, 0),
               (double)s->n_active);
    metrics_write(out);
}
