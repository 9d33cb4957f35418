/* Hashes that name blobs: LFS files by their sha256, files that git holds itself by git's sha1 of "blob <size>\0" and the
 * bytes. Any other etag (a mirror's own) can be held against nothing but the size. */
#include "hub/impl.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

struct digest {
    EVP_MD_CTX *ctx;
    EVP_MD_CTX *plain; /* sha1 without git's head; NULL for sha256 */
};

enum digest_kind digest_kind_of(const char *hash)
{
    return hub_is_sha256(hash) ? DIGEST_SHA256 : hub_is_commit(hash) ? DIGEST_GIT_SHA1 : DIGEST_NONE;
}

static bool failed(struct err *err)
{
    return err_set(err, ERR_INTERNAL,
                   "the crypto library cannot hash (is SHA-1 or SHA-256 switched off in its "
                   "configuration?)");
}

static bool start(struct digest *d, enum digest_kind kind, uint64_t size)
{
    char head[48];
    int n = snprintf(head, sizeof head, "blob %llu", (unsigned long long)size);
    if (kind == DIGEST_SHA256)
        return EVP_DigestInit_ex(d->ctx, EVP_sha256(), NULL) == 1;
    return EVP_DigestInit_ex(d->ctx, EVP_sha1(), NULL) == 1 && EVP_DigestUpdate(d->ctx, head, (size_t)n + 1) == 1 &&
           EVP_DigestInit_ex(d->plain, EVP_sha1(), NULL) == 1;
}

struct digest *digest_new(enum digest_kind kind, uint64_t size, struct err *err)
{
    struct digest *d = calloc(1, sizeof *d);
    if (d) {
        d->ctx = EVP_MD_CTX_new();
        d->plain = kind == DIGEST_GIT_SHA1 ? EVP_MD_CTX_new() : NULL;
    }
    if (!d || !d->ctx || (kind == DIGEST_GIT_SHA1 && !d->plain)) {
        digest_free(d);
        err_set(err, ERR_MEMORY, "no memory for a hash");
        return NULL;
    }
    if (start(d, kind, size))
        return d;
    digest_free(d);
    failed(err);
    return NULL;
}

bool digest_add(struct digest *d, const void *bytes, size_t len, struct err *err)
{
    return (EVP_DigestUpdate(d->ctx, bytes, len) == 1 && (!d->plain || EVP_DigestUpdate(d->plain, bytes, len) == 1)) ||
           failed(err);
}

static bool end(EVP_MD_CTX *ctx, char out[65])
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (EVP_DigestFinal_ex(ctx, raw, &n) != 1 || n > 32)
        return false;
    for (unsigned i = 0; i < n; i++)
        snprintf(out + 2 * i, 3, "%02x", raw[i]);
    return true;
}

bool digest_end(struct digest *d, const char *want, char got[65], bool *same, struct err *err)
{
    char plain[65] = "";
    if (!end(d->ctx, got) || (d->plain && !end(d->plain, plain)))
        return failed(err);
    *same = strcasecmp(got, want) == 0 || strcasecmp(plain, want) == 0;
    return true;
}

void digest_free(struct digest *d)
{
    if (!d)
        return;
    EVP_MD_CTX_free(d->ctx);
    EVP_MD_CTX_free(d->plain);
    free(d);
}
