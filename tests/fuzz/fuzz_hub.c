/* Any bytes as what a hub, a disk or a person may give the hub's parsers; the first byte says which. Whatever is taken
 * must be safe to become a path, a range or an address. */
#include "hub/impl.h"
#include "hub/journal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define JOURNAL_SIZE 100000

static void check_listing(struct hub_listing *l)
{
    for (size_t i = 0; i < l->n_items; i++) {
        const struct hub_entry *e = &l->items[i];
        CHECK(hub_path_valid(str_from(e->path)));
        CHECK(e->size == HUB_SIZE_UNKNOWN || e->size <= HUB_FILE_SIZE_MAX);
        CHECK(!e->sha256[0] || hub_is_sha256(e->sha256));
        CHECK(!e->etag[0] || hub_is_commit(e->etag) || hub_is_sha256(e->etag));
    }
    struct hub_plan p;
    struct err err = {0};
    if (plan_make(l, "org/name", "", &p, &err)) {
        for (size_t i = 0; i < p.n; i++)
            CHECK(p.index[i] < l->n_items);
        plan_release(&p);
    } else {
        CHECK(err.code != ERR_NONE && err.text[0]);
    }
    hub_listing_release(l);
}

static void index_names(struct str s)
{
    char **names;
    size_t n;
    bool ok = reply_parse_index(s, &names, &n, NULL);
    CHECK(ok || n == 0);
    for (size_t i = 0; i < n; i++) {
        CHECK(hub_path_valid(str_from(names[i])));
        free(names[i]);
    }
    free(names);
}

static void reference(struct str s)
{
    char *text = str_dup(s), again[HUB_REF_TEXT_BYTES];
    struct hub_ref ref, back;
    if (text && hub_ref_parse(text, &ref, NULL)) {
        CHECK(hub_path_valid(str_from(ref.repo)) && hub_path_valid(str_from(ref.revision)));
        hub_ref_format(&ref, again);
        CHECK(hub_ref_parse(again, &back, NULL));
        CHECK(!strcmp(ref.repo, back.repo) && !strcmp(ref.quant, back.quant) && !strcmp(ref.revision, back.revision));
    }
    free(text);
}

static void headers(struct str s)
{
    char out[64], etag[HUB_ETAG_BYTES_MAX], quant[HUB_QUANT_BYTES_MAX];
    uint64_t begin, end, total;
    reply_parse_error(s, out, sizeof out);
    reply_parse_link_next(s, out, sizeof out);
    CHECK(reply_parse_retry_after(s, 1000000) >= -1);
    CHECK(reply_parse_ratelimit(s) >= -1);
    if (reply_parse_content_range(s, &begin, &end, &total))
        CHECK(begin < end && (total == HUB_SIZE_UNKNOWN || end <= total));
    if (hub_etag_normalize(s, etag))
        CHECK(hub_path_valid(str_from(etag)) && !strchr(etag, '/'));
    char *text = str_dup(s);
    if (text)
        plan_gguf_quant(text, quant);
    free(text);
}

static void journal(struct str s)
{
    struct ranges r;
    if (!journal_parse(s, JOURNAL_SIZE, "etag", &r))
        return;
    for (size_t i = 0; i < r.n; i++)
        CHECK(r.items[i].begin < r.items[i].end && r.items[i].end <= JOURNAL_SIZE &&
              (i == 0 || r.items[i - 1].end < r.items[i].begin));
    ranges_release(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct str s = {(const char *)data + 1, size - 1};
    struct hub_listing l = {0};
    switch (data[0] % 6) {
    case 0:
        if (reply_parse_info(s, &l, NULL))
            CHECK(hub_is_commit(l.commit));
        check_listing(&l);
        break;
    case 1:
        reply_parse_tree(s, &l, NULL);
        check_listing(&l);
        break;
    case 2: index_names(s); break;
    case 3: reference(s); break;
    case 4: headers(s); break;
    default: journal(s);
    }
    return 0;
}
