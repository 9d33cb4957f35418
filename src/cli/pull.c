/* pull, rm, verify: models of the hub on this machine's disk.
 *
 * pull asks the server that runs, and follows its job; where none runs it fetches by itself. On a terminal progress is a
 * block of lines that is drawn anew, elsewhere a line at a time. */
#include "cli/cli.h"

#include "base/clock.h"
#include "base/options.h"
#include "hub/hub.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DRAW_MS          250
#define PLAIN_LINE_NS    5000000000u /* between two plain lines of progress */
#define BAR_CELLS        24
#define FILES_SHOWN      6
#define COLUMNS_FALLBACK 80
#define SIZE_TEXT_BYTES  32

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static void catch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static const char *size_text(double bytes, char out[SIZE_TEXT_BYTES])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    size_t i = 0;
    for (; bytes >= 999.95 && i + 1 < sizeof units / sizeof *units; i++)
        bytes /= 1000;
    snprintf(out, SIZE_TEXT_BYTES, i ? "%.1f %s" : "%.0f %s", bytes, units[i]);
    return out;
}

static const char *left_text(double s, char out[SIZE_TEXT_BYTES])
{
    if (s < 0)
        snprintf(out, SIZE_TEXT_BYTES, "time left unknown");
    else if (s < 3600)
        snprintf(out, SIZE_TEXT_BYTES, "%d:%02d left", (int)s / 60, (int)s % 60);
    else
        snprintf(out, SIZE_TEXT_BYTES, "%.1f h left", s / 3600 < 10000 ? s / 3600 : 9999.0);
    return out;
}

/* ---- what a person sees -------------------------------------------------------------------------------------------------- */

struct view {
    int terminal;
    size_t lines;         /* of the block that is on the screen */
    char *told;           /* a flag a file */
    uint64_t line_ns;     /* plain: the last line of progress */
    int headed;
};

static unsigned columns(void)
{
    struct winsize w;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col >= 40 ? w.ws_col : COLUMNS_FALLBACK;
}

/* One line of the block, cut so that it never wraps. */
static void put_line(struct view *v, const char *text)
{
    printf("\r\033[K%.*s\n", (int)columns() - 1, text);
    v->lines++;
}

static void clear_block(struct view *v)
{
    if (v->lines)
        printf("\033[%zuA\r\033[J", v->lines);
    v->lines = 0;
}

static void bar(double fraction, char out[BAR_CELLS + 1])
{
    int full = (int)(fraction * BAR_CELLS + 0.5);
    for (int i = 0; i < BAR_CELLS; i++)
        out[i] = i < full ? '#' : '-';
    out[BAR_CELLS] = 0;
}

static void summary(const struct hub_progress *p, char *out, size_t out_bytes)
{
    char done[SIZE_TEXT_BYTES], total[SIZE_TEXT_BYTES], rate[SIZE_TEXT_BYTES], left[SIZE_TEXT_BYTES];
    snprintf(out, out_bytes, "%3d %%  %s of %s  %s/s  %s%s%s", (int)(p->fraction * 100),
             size_text((double)p->bytes_done, done), size_text((double)p->bytes_total, total),
             size_text(p->bytes_per_s, rate), left_text(p->eta_s, left), p->waiting_for[0] ? "  " : "", p->waiting_for);
}

static void draw_block(struct view *v, const struct hub_progress *p)
{
    char line[2048], cells[BAR_CELLS + 1], done[SIZE_TEXT_BYTES], total[SIZE_TEXT_BYTES], text[512];
    size_t shown = 0, n_done = 0;
    clear_block(v);
    for (size_t i = 0; i < p->n_files; i++) {
        const struct hub_file_progress *f = &p->files[i];
        bool running = f->state == HUB_FILE_RUNNING || f->state == HUB_FILE_CHECKING;
        n_done += f->state == HUB_FILE_DONE;
        if (!running || shown++ >= FILES_SHOWN)
            continue;
        bar(f->bytes_total ? (double)f->bytes_done / (double)f->bytes_total : 0, cells);
        snprintf(line, sizeof line, "  [%s] %9s of %9s  %s%s", cells, size_text((double)f->bytes_done, done),
                 size_text((double)f->bytes_total, total), f->path, f->state == HUB_FILE_CHECKING ? " (checking)" : "");
        put_line(v, line);
    }
    if (p->state == HUB_PULL_RESOLVING) {
        snprintf(line, sizeof line, "asking the hub %s", p->waiting_for);
    } else {
        bar(p->fraction, cells);
        summary(p, text, sizeof text);
        snprintf(line, sizeof line, "[%s] %zu/%zu files %s", cells, n_done, p->n_files, text);
    }
    put_line(v, line);
    fflush(stdout);
}

static void plain_lines(struct view *v, const struct hub_progress *p)
{
    char text[512], size[SIZE_TEXT_BYTES];
    if (!v->headed && p->n_files) {
        v->headed = 1;
        v->told = calloc(p->n_files, 1);
        printf("%zu files, %s, commit %s\n", p->n_files, size_text((double)p->bytes_total, size), p->commit);
        v->line_ns = clock_mono_ns();
    }
    for (size_t i = 0; v->told && i < p->n_files; i++) {
        if (v->told[i] || p->files[i].state != HUB_FILE_DONE)
            continue;
        v->told[i] = 1;
        printf("done %s (%s)\n", p->files[i].path, size_text((double)p->files[i].bytes_total, size));
    }
    uint64_t now_ns = clock_mono_ns();
    if (v->headed && p->state == HUB_PULL_RUNNING && now_ns >= v->line_ns + PLAIN_LINE_NS) {
        v->line_ns = now_ns;
        summary(p, text, sizeof text);
        puts(text);
    }
    fflush(stdout);
}

static void view_show(struct view *v, const struct hub_progress *p)
{
    if (v->terminal)
        draw_block(v, p);
    else
        plain_lines(v, p);
}

static void view_end(struct view *v)
{
    if (v->terminal)
        clear_block(v);
    free(v->told);
}

/* ---- without a server ------------------------------------------------------------------------------------------------------ */

bool cli_hub_config(const struct options *o, struct hub_config *c, struct err *err)
{
    if (!hub_config_from_env(c, err))
        return false;
    c->rate_max = o->download_rate;
    c->connections_max = (unsigned)o->download_connections;
    c->files_max = (unsigned)o->download_files;
    c->part_bytes = o->download_part;
    c->attempts_max = (unsigned)o->download_attempts;
    c->stall_ms = o->download_stall_ms;
    return true;
}

static bool read_config(struct hub_config *c, struct err *err)
{
    static struct options o;
    return options_load(&o, 0, NULL, 0, err) && cli_hub_config(&o, c, err);
}

static int fail(const struct err *err)
{
    fprintf(stderr, "inferd: %s\n", err->text);
    return err->code == ERR_USAGE || err->code == ERR_INVALID_REQUEST ? 2 : 1;
}

static int finish(const struct hub_progress *p, const char *name)
{
    char size[SIZE_TEXT_BYTES], fetched[SIZE_TEXT_BYTES];
    if (p->state != HUB_PULL_COMPLETED)
        return fail(&p->err);
    printf("%s: %s whole and verified, %s fetched, in %s%s%s\n", name, size_text((double)p->bytes_total, size),
           size_text((double)p->bytes_fetched, fetched), p->snapshot_dir, p->entry[0] ? "/" : "", p->entry);
    return 0;
}

static int pull_here(const char *name)
{
    struct err err = {0};
    struct hub_config config;
    struct hub_ref ref;
    struct hub *hub = hub_ref_parse(name, &ref, &err) && read_config(&config, &err) ? hub_open(&config, &err) : NULL;
    struct hub_pull *pull = hub ? hub_pull_start(hub, &ref, NULL, NULL, &err) : NULL;
    struct view v = {.terminal = isatty(STDOUT_FILENO)};
    struct hub_progress p = {0};
    bool ended = false, ok = pull != NULL;
    while (ok && !ended) {
        ended = hub_pull_wait(pull, DRAW_MS);
        if (interrupted)
            hub_pull_cancel(pull);
        hub_progress_release(&p);
        ok = hub_pull_progress(pull, &p, &err);
        if (ok)
            view_show(&v, &p);
    }
    view_end(&v);
    int status = ok ? finish(&p, name) : fail(&err);
    hub_progress_release(&p);
    hub_pull_unref(pull);
    hub_close(hub);
    return status;
}

int cli_pull(const struct cli_client *c)
{
    if (c->n_words != 1) {
        fprintf(stderr, "inferd: usage: inferd pull MODEL, as in inferd pull org/name, org/name:Q4_K_M or org/name@REVISION\n");
        return 2;
    }
    catch_interrupt();
    return pull_here(c->words[0]);
}

/* ---- rm, verify -------------------------------------------------------------------------------------------------------------- */

static bool find(const struct cli_client *c, const char *verb, struct hub_config *config, struct hub_ref *ref,
                 struct err *err)
{
    if (c->n_words != 1)
        return err_set(err, ERR_USAGE, "usage: inferd %s MODEL, as in inferd %s org/name", verb, verb);
    return hub_ref_parse(c->words[0], ref, err) && hub_config_from_env(config, err);
}

int cli_rm(const struct cli_client *c)
{
    struct hub_config config;
    struct hub_ref ref;
    struct err err = {0};
    uint64_t freed = 0;
    char size[SIZE_TEXT_BYTES];
    if (!find(c, "rm", &config, &ref, &err) || !hub_cache_remove(config.cache_dir, &ref, &freed, &err))
        return fail(&err);
    printf("%s: removed, %s freed\n", c->words[0], size_text((double)freed, size));
    return 0;
}

static bool tell_file(void *user, const char *path, uint64_t bytes)
{
    char size[SIZE_TEXT_BYTES];
    (void)user;
    printf("reading %s (%s)\n", path, size_text((double)bytes, size));
    fflush(stdout);
    return !interrupted;
}

int cli_verify(const struct cli_client *c)
{
    struct hub_config config;
    struct hub_ref ref;
    struct err err = {0};
    catch_interrupt();
    if (!find(c, "verify", &config, &ref, &err) || !hub_cache_verify(config.cache_dir, &ref, tell_file, NULL, &err))
        return fail(&err);
    printf("%s: every file has the checksum that the hub gave\n", c->words[0]);
    return 0;
}
