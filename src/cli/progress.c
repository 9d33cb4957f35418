/* What a person sees of a pull; see progress.h. */
#include "cli/progress.h"

#include "base/clock.h"
#include "cli/terminal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLAIN_LINE_NS 5000000000u /* between two plain lines of progress */
#define BAR_CELLS     16          /* so that what follows fits 80 columns */
#define FILES_SHOWN   6

const char *cli_size_text(double bytes, char out[CLI_SIZE_BYTES])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    size_t i = 0;
    for (; bytes >= 999.95 && i + 1 < sizeof units / sizeof *units; i++)
        bytes /= 1000;
    snprintf(out, CLI_SIZE_BYTES, i ? "%.1f %s" : "%.0f %s", bytes, units[i]);
    return out;
}

static const char *left_text(double s, char out[CLI_SIZE_BYTES])
{
    if (s < 0)
        snprintf(out, CLI_SIZE_BYTES, "time left unknown");
    else if (s < 3600)
        snprintf(out, CLI_SIZE_BYTES, "%d:%02d left", (int)s / 60, (int)s % 60);
    else
        snprintf(out, CLI_SIZE_BYTES, "%.1f h left", s / 3600 < 10000 ? s / 3600 : 9999.0);
    return out;
}

/* One line of the block, cut so that it never wraps. */
static void put_line(struct cli_progress *v, const char *text)
{
    printf("\r\033[K%.*s\n", (int)terminal_bytes_within(text, terminal_width(STDOUT_FILENO) - 1), text);
    v->lines++;
}

void cli_progress_clear(struct cli_progress *v)
{
    if (v->lines)
        printf("\033[%zuA\r\033[J", v->lines);
    fflush(stdout);
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
    char done[CLI_SIZE_BYTES], total[CLI_SIZE_BYTES], rate[CLI_SIZE_BYTES], left[CLI_SIZE_BYTES];
    bool whole = p->bytes_total && p->bytes_done == p->bytes_total;
    snprintf(out, out_bytes, "%3d %%  %s of %s  %s/s  %s%s%s", (int)(p->fraction * 100),
             cli_size_text((double)p->bytes_done, done), cli_size_text((double)p->bytes_total, total),
             cli_size_text(p->bytes_per_s, rate), left_text(whole ? 0 : p->eta_s, left), p->waiting_for[0] ? "  " : "",
             p->waiting_for);
}

static void asking_text(const struct hub_progress *p, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "asking the hub%s%s", p->waiting_for[0] ? ": " : " ...", p->waiting_for);
}

static void draw_block(struct cli_progress *v, const struct hub_progress *p)
{
    char line[2048], cells[BAR_CELLS + 1], done[CLI_SIZE_BYTES], total[CLI_SIZE_BYTES], text[512];
    size_t shown = 0, n_done = 0;
    cli_progress_clear(v);
    for (size_t i = 0; i < p->n_files; i++) {
        const struct hub_file_progress *f = &p->files[i];
        bool running = f->state == HUB_FILE_RUNNING || f->state == HUB_FILE_CHECKING;
        n_done += f->state == HUB_FILE_DONE;
        if (!running || shown++ >= FILES_SHOWN)
            continue;
        bar(f->bytes_total ? (double)f->bytes_done / (double)f->bytes_total : 0, cells);
        snprintf(line, sizeof line, "  [%s] %9s of %9s  %s%s", cells, cli_size_text((double)f->bytes_done, done),
                 cli_size_text((double)f->bytes_total, total), f->path, f->state == HUB_FILE_CHECKING ? " (checking)" : "");
        put_line(v, line);
    }
    if (!p->n_files) {
        asking_text(p, line, sizeof line);
    } else {
        bar(p->fraction, cells);
        summary(p, text, sizeof text);
        snprintf(line, sizeof line, "[%s] %zu/%zu file%s %s", cells, n_done, p->n_files, p->n_files == 1 ? "" : "s", text);
    }
    put_line(v, line);
    fflush(stdout);
}

static void plain_lines(struct cli_progress *v, const struct hub_progress *p)
{
    char text[512], size[CLI_SIZE_BYTES];
    asking_text(p, text, sizeof v->asking);
    if (p->state == HUB_PULL_RESOLVING && strcmp(text, v->asking) != 0)
        puts(memcpy(v->asking, text, strlen(text) + 1));
    if (!v->told && p->n_files && (v->told = calloc(p->n_files, 1))) {
        v->n_told = p->n_files;
        printf("%zu file%s, %s, commit %s\n", p->n_files, p->n_files == 1 ? "" : "s",
               cli_size_text((double)p->bytes_total, size), p->commit);
        v->line_ns = clock_mono_ns();
    }
    for (size_t i = 0; i < v->n_told && i < p->n_files; i++) {
        if (v->told[i] || p->files[i].state != HUB_FILE_DONE)
            continue;
        v->told[i] = 1;
        printf("done %s (%s)\n", p->files[i].path, cli_size_text((double)p->files[i].bytes_total, size));
    }
    uint64_t now_ns = clock_mono_ns();
    if (v->told && p->state == HUB_PULL_RUNNING && now_ns >= v->line_ns + PLAIN_LINE_NS) {
        v->line_ns = now_ns;
        summary(p, text, sizeof text);
        puts(text);
    }
    fflush(stdout);
}

void cli_progress_show(struct cli_progress *v, const struct hub_progress *p)
{
    if (v->terminal)
        draw_block(v, p);
    else
        plain_lines(v, p);
}

void cli_progress_end(struct cli_progress *v)
{
    if (v->terminal)
        cli_progress_clear(v);
    free(v->told);
}
